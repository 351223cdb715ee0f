"""The section ``privacy`` of ``job.yaml``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oncofed.privacy.accountant import LEAST_NOISE, Event, noise_multiplier_for
from oncofed.settings import SettingError, StrictModel

NoiseKind = Literal["local", "shared"]
ScoresKind = Literal["each", "summed"]

# Sites with fewer training patients are refused: noise made for one step hides one in twenty at best.
LEAST_TRAINING_PATIENTS = 20


class DifferentialPrivacySpec(StrictModel):
    """Differential privacy of each training patient at its site.

    DP-SGD (Abadi et al., CCS 2016) whose unit is a patient with all images: a patient's mean gradient is clipped.
    """

    unit: Literal["patient"] = Field("patient", description="whose presence is hidden: a patient with all images")
    noise: NoiseKind = Field(
        "local",
        description="local: each site makes all noise itself, and need trust nobody; shared: sites make it together "
        "under privacy.secure_aggregation, one step a round, and the model has less of it",
    )
    colluding: int = Field(
        1,
        ge=1,
        le=300,
        description="with shared: sites that may help the server, or one another, and take their own noise away; each "
        "knows its own, so that it is one at least",
    )
    lost: int = Field(
        0, ge=0, le=300, description="with shared: sites that a sum may lack after a round's roster is settled"
    )
    epsilon: float | None = Field(
        None, gt=0, le=1000, description="of the whole job at each site, at most; the noise follows from it"
    )
    noise_multiplier: float | None = Field(
        None, ge=LEAST_NOISE, le=10_000, description="in place of epsilon: the noise's standard deviation, in clips"
    )
    delta: float = Field(
        gt=0,
        lt=1 / LEAST_TRAINING_PATIENTS,
        description="below one in the number of a site's training patients, of whom there are 20 at least",
    )
    sampling: float = Field(gt=0, le=1, description="a patient's chance to be in a step")
    patches: int = Field(4, ge=1, le=1024, description="of a patient in a step, whose mean gradient is clipped")
    clip: float = Field(0.1, gt=0, le=1000, description="largest norm of a patient's gradient (L2)")

    @field_validator("unit", mode="before")
    @classmethod
    def _sites_are_too_few(cls, value: Any) -> Any:
        if value == "site":
            raise ValueError(
                "hiding whole sites takes hundreds of them: below 100 the noise drowns the model, or delta is above "
                "one in their number. Expected patient"
            )
        return value

    @model_validator(mode="after")
    def _who_makes_noise_fits(self) -> DifferentialPrivacySpec:
        fields = type(self).model_fields
        for name in ("colluding", "lost"):
            if self.noise == "local" and getattr(self, name) != fields[name].default:
                raise SettingError("is of noise that sites make together: leave it out, or take noise: shared", name)
        return self

    @model_validator(mode="after")
    def _one_of_two(self) -> DifferentialPrivacySpec:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            found = "neither" if self.epsilon is None else "both"
            raise SettingError(f"found {found}, expected either epsilon or noise_multiplier", "epsilon")
        return self

    def event(self, steps: int) -> Event:
        """Return what a job's steps do at each site.

        Args:
            steps: of the whole job.

        Raises:
            SpecError: no noise keeps to the epsilon, or the accountant is not installed.
        """
        if self.noise_multiplier is not None:
            return Event(self.noise_multiplier, self.sampling, steps)
        assert self.epsilon is not None
        return Event(noise_multiplier_for(self.epsilon, self.delta, self.sampling, steps), self.sampling, steps)


def too_few_patients(private: DifferentialPrivacySpec | None, patients: int) -> str:
    """Return why a site has too few training patients for a job's promise; empty if it has enough.

    The words do not tell how many it has, and may leave it.

    Args:
        private: the job's section; None: any number is enough.
        patients: of the site that are trained on.
    """
    if private is None:
        return ""
    if patients < LEAST_TRAINING_PATIENTS:
        return f"too few training patients for differential privacy: expected at least {LEAST_TRAINING_PATIENTS}"
    if private.delta * patients >= 1:
        return (
            f"delta is {private.delta:g}, expected less than one in the number of its training patients: else a "
            "patient's images could leave as they are and the promise be kept"
        )
    return ""


class SecureAggregationSpec(StrictModel):
    """Updates are added up under masks, which the server cannot lift from a single one.

    Bonawitz et al., CCS 2017; see docs/secure-aggregation.md.
    """

    minimum_sites: int = Field(
        3,
        ge=3,
        le=255,
        description="fewest sites in a sum; of two, each would learn the other's. Masks hold for 255 sites at "
        "most. With noise: shared, fewest in a round's roster",
    )
    bits: Literal[16, 32] = Field(
        32,
        description="of a masked word; 16: half the bytes from the second round on, where they fit all sites' updates; "
        "what is rounded off is added to the next update",
    )
    scores: ScoresKind = Field(
        "each",
        description="each: a site's scores and losses leave as its own; summed: under masks in the sum, and the "
        "federation's mean alone is known",
    )


class PrivacySpec(StrictModel):
    """What protects patients beyond the rules that hold for every job."""

    differential_privacy: DifferentialPrivacySpec | None = Field(
        None, description="noise in each step, for a promise to each training patient; null: none"
    )
    secure_aggregation: SecureAggregationSpec | None = Field(
        None, description="{}: the server is given the sum of the updates alone; null: each site's update"
    )

    @model_validator(mode="after")
    def _shared_noise_is_finer_than_words(self) -> PrivacySpec:
        if self.shares_noise and self.secure_aggregation and self.secure_aggregation.bits == 16:
            raise SettingError(
                "found 16, but noise that sites make together is counted in finer steps: take 32, or noise: local",
                "secure_aggregation.bits",
                "differential_privacy.noise",
            )
        return self

    @model_validator(mode="after")
    def _shared_noise_is_under_masks(self) -> PrivacySpec:
        section = "differential_privacy"
        if self.shares_noise and self.secure_aggregation is None:
            raise SettingError(
                "found shared, but a site's own update has less noise than the promise needs: add "
                "privacy: {secure_aggregation: {}}, or take local",
                f"{section}.noise",
                "secure_aggregation",
            )
        return self

    @property
    def shares_noise(self) -> bool:
        """Whether sites make a step's noise together."""
        return self.differential_privacy is not None and self.differential_privacy.noise == "shared"

    @property
    def noise_makers(self) -> int:
        """Sites whose noise together is a step's, whoever else is lost or takes its own away; 1: each alone."""
        private, secure = self.differential_privacy, self.secure_aggregation
        if private is None or secure is None or private.noise == "local":
            return 1
        return secure.minimum_sites - private.lost - private.colluding

    def with_own_noise(self) -> PrivacySpec:
        """Return the same section for one who trains alone, and makes all noise."""
        private = self.differential_privacy
        if private is None or private.noise == "local":
            return self
        alone = {**private.model_dump(), "noise": "local", "colluding": 1, "lost": 0}
        return PrivacySpec(differential_privacy=DifferentialPrivacySpec.model_validate(alone))
