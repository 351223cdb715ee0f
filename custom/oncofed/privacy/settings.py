"""The section ``privacy`` of ``job.yaml``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oncofed.privacy.accountant import LEAST_NOISE, Event, noise_multiplier_for
from oncofed.settings import SettingError, StrictModel

# Sites with fewer training patients are refused: noise made for one step hides one in twenty at best.
LEAST_TRAINING_PATIENTS = 20


class DifferentialPrivacySpec(StrictModel):
    """Differential privacy of each training patient at its site.

    DP-SGD (Abadi et al., CCS 2016) whose unit is a patient with all images: a patient's mean gradient is clipped.
    """

    unit: Literal["patient"] = Field("patient", description="whose presence is hidden: a patient with all images")
    noise: Literal["local"] = Field("local", description="each site makes all noise itself, and need trust nobody")
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
    clip: float = Field(0.5, gt=0, le=1000, description="largest norm of a patient's gradient (L2)")

    @field_validator("unit", mode="before")
    @classmethod
    def _sites_are_too_few(cls, value: Any) -> Any:
        if value == "site":
            raise ValueError(
                "hiding whole sites takes hundreds of them: below 100 the noise drowns the model, or delta is above "
                "one in their number. Expected patient"
            )
        return value

    @field_validator("noise", mode="before")
    @classmethod
    def _noise_is_made_alone(cls, value: Any) -> Any:
        if value == "shared":
            raise ValueError("noise that sites make together needs secure aggregation: expected local")
        return value

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
        description="fewest sites in a sum; of two, each would learn the other's. Masks hold for 255 sites at most",
    )


class PrivacySpec(StrictModel):
    """What protects patients beyond the rules that hold for every job."""

    differential_privacy: DifferentialPrivacySpec | None = Field(
        None, description="noise in each step, for a promise to each training patient; null: none"
    )
    secure_aggregation: SecureAggregationSpec | None = Field(
        None, description="{}: the server is given the sum of the updates alone; null: each site's update"
    )
