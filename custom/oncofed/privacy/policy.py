"""A site's policy: permitted jobs, users, data, and output."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from oncofed.errors import PolicyError
from oncofed.privacy.settings import NoiseKind, ScoresKind
from oncofed.privacy.time_windows import WINDOW
from oncofed.settings import SettingError, StrictModel, first_problem

POLICY_FILE = "policy.json"

Window = Annotated[str, Field(pattern=WINDOW)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}$")]
Patterns = Annotated[tuple[str, ...] | None, Field(min_length=1)]


class PrivacyLimits(StrictModel):
    """What differential privacy a site asks of jobs that train on its patients."""

    required: bool = Field(False, description="true: a job without differential privacy does not train here")
    noise: Annotated[tuple[NoiseKind, ...], Field(min_length=1)] = Field(
        ("local", "shared"),
        description="who may make it: local, each site all of its own; shared, sites together, which trusts that no "
        "more of them help the server than the job says",
    )
    smallest_noise_multiplier: float | None = Field(
        None, gt=0, le=10_000, description="least noise of a step, in clips; null: any"
    )
    largest_epsilon_a_job: float | None = Field(None, gt=0, description="of one job for each patient; null: no limit")
    largest_epsilon_a_patient: float | None = Field(
        None, gt=0, description="of all jobs of this site together, ever, for each patient; null: no limit"
    )
    delta: float = Field(1e-5, gt=0, le=0.05, description="at which these epsilons are told")


class LeavesSpec(StrictModel):
    """Limits on what leaves a site.

    They add to those of every job: declared tensors and numbers only.
    """

    minimum_patients: int = Field(
        1,
        ge=1,
        le=1000,
        description="fewest patients behind a mean score (of two classes those who have the rarer one); of fewer only "
        "their number leaves. Behind figures of classes, counts and sums stand five at least, whatever it says",
    )
    mb_a_round: float | None = Field(
        None, gt=0, description="megabytes of one message at most; null: a tenth more than the job declares"
    )
    mb_a_job: float | None = Field(None, gt=0, description="megabytes of one job at most; null: no limit")
    training_profile: bool = Field(
        True,
        description="how many patients' training images lie in which range of spacing, size, intensity and stain, and "
        "how many tiles of their slides show pen, fold, blur or bubble; none of fewer than five. It is kept with the "
        "model, to tell when an image is unlike them",
    )
    pooled_figures: bool = Field(
        True,
        description="counts and sums over at least five patients, for figures over all sites such as AUROC with its "
        "curves, for how sure a classifier should be, for mean and spread of a table's numbers such as age, and for "
        "data.harmonization",
    )
    patient_overlap: bool = Field(
        False,
        description="fingerprints of patients' IDs and images under a key that the sites share and the server has not, "
        "to count patients whom two sites have: oncofed data overlap",
    )
    contributions: bool = Field(
        False,
        description="a job's report may show how alike this site's updates are to the others' "
        "(evaluation.contributions), if all sites agree",
    )
    largest_norm: float = Field(
        10.0, gt=1, le=1000, description="an update this many times as long as the job's usual one here is held back"
    )
    secure_aggregation: Literal["accepted", "required"] = Field(
        "accepted", description="required: an update leaves under masks (privacy.secure_aggregation) or not at all"
    )
    smallest_sum: int = Field(
        3, ge=3, le=1000, description="fewest sites in a sum that this site's masked update goes into"
    )
    peers: Annotated[tuple[Fingerprint, ...] | None, Field(min_length=1, max_length=1000)] = Field(
        None,
        description="SHA-256 fingerprints of certificates: of the other sites in a sum at least smallest_sum - 1 must "
        "have one of these; null: any site of the alliance counts",
    )
    scores: Literal["each", "summed", "none"] = Field(
        "each",
        description="each: mean scores and losses of this site leave; summed: only under masks, in jobs with "
        "privacy.secure_aggregation.scores: summed; none: no score leaves, in a sum or alone",
    )
    differential_privacy: PrivacyLimits = PrivacyLimits()

    @model_validator(mode="after")
    def _peers_are_enough(self) -> LeavesSpec:
        least = self.smallest_sum - 1
        if self.peers is not None and len(set(self.peers)) < least:
            raise SettingError(
                f"found {len(set(self.peers))}, expected at least {least} (smallest_sum - 1): with fewer no sum has "
                "this site's update. Name more certificates, or leave peers out",
                "peers",
                "smallest_sum",
            )
        return self


class PacsRules(StrictModel):
    """What passes between a site's archive of images and this software."""

    deidentify: bool = Field(False, description="true: images pulled from the archive are de-identified on the way in")
    push: bool = Field(False, description="true: predictions may be sent to the archive")


class Policy(StrictModel):
    """``policy.yaml``: a site's policy.

    Names may contain ``*``; null allows all.
    """

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    jobs: Patterns = Field(None, description="names of jobs")
    people: Patterns = Field(None, description="who may submit, by the names of their kits")
    datasets: Patterns = Field(None, description="which of this site's datasets may be used")
    networks: Patterns = Field(None, description="see: oncofed job networks")
    strategies: Patterns = Field(None, description="fedavg, fedprox, …")
    job_hours: float | None = Field(None, gt=0, description="hours for which a job may hold this site; null: no limit")
    gpu_hours: float | None = Field(None, gt=0, description="the same, times the GPUs that it has; null: no limit")
    windows: Annotated[tuple[Window, ...] | None, Field(min_length=1, max_length=20)] = Field(
        None, description="when jobs may run, by this machine's clock, such as 18:00-07:00; they pause outside"
    )
    leaves: LeavesSpec = LeavesSpec()
    pacs: PacsRules = PacsRules()

    @field_validator("windows")
    @classmethod
    def _are_not_empty(cls, windows: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for window in windows or ():
            begin, _, end = window.partition("-")
            if begin == end:
                raise ValueError(f"{window} begins when it ends; leave windows out where jobs may always run")
        return windows

    @property
    def digest(self) -> str:
        """SHA-256 of the contents, independent of comments and order."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def hours(self, gpus: int) -> float | None:
        """Return the hours that a job may run; None: unlimited.

        Args:
            gpus: number of GPUs; 0: CPU.
        """
        limits = [self.job_hours, self.gpu_hours / gpus if self.gpu_hours and gpus else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def refusal(self, job: ProposedJob) -> str | None:
        """Return which rule a job violates; None: allowed.

        The words may leave the site.
        """
        rules: tuple[tuple[str, Patterns, str | None], ...] = (
            ("jobs", self.jobs, job.name),
            ("people", self.people, job.person),
            ("datasets", self.datasets, job.dataset),
            ("networks", self.networks, job.network),
            ("strategies", self.strategies, job.strategy),
        )
        for rule, patterns, found in rules:
            if patterns is not None and found is not None and not any(fnmatchcase(found, p) for p in patterns):
                return f"its policy does not allow this job: {rule} has no {found!r}"
        reason = self._refusal_of_sum(job) or self._refusal_of_scores(job) or self._refusal_of_noise(job)
        return f"its policy does not allow this job: {reason}" if reason else None

    def _refusal_of_noise(self, job: ProposedJob) -> str | None:
        limits, noise = self.leaves.differential_privacy, job.noise_multiplier
        if job.strategy is None:
            return None
        if noise is None:
            return "it has no differential privacy (privacy.differential_privacy)" if limits.required else None
        if job.noise is not None and job.noise not in limits.noise:
            expected = " or ".join(limits.noise)
            return f"its noise is {job.noise}, expected {expected} (privacy.differential_privacy.noise)"
        least = limits.smallest_noise_multiplier
        if least is not None and noise < least:
            return f"its noise multiplier is {noise:g}, expected at least {least:g}"
        return None

    def _refusal_of_scores(self, job: ProposedJob) -> str | None:
        if job.strategy is not None and self.leaves.scores == "summed" and job.scores != "summed":
            return "scores leave in sums alone (privacy.secure_aggregation.scores: summed)"
        return None

    def _refusal_of_sum(self, job: ProposedJob) -> str | None:
        if job.strategy is None:
            return None
        least = self.leaves.smallest_sum
        if job.smallest_sum is None and self.leaves.secure_aggregation == "required":
            return "updates leave under masks alone (privacy.secure_aggregation)"
        if job.smallest_sum is not None and job.smallest_sum < least:
            name = "privacy.secure_aggregation.minimum_sites"
            return f"{name} is {job.smallest_sum}, expected at least {least} (smallest_sum); lost sites do not count"
        return None


@dataclass(frozen=True)
class ProposedJob:
    """The job's properties that a policy checks.

    Attributes:
        name: of the job.
        person: submitter; None: not known yet.
        dataset: training dataset.
        network: None if nothing is trained.
        strategy: None if nothing is trained.
        smallest_sum: fewest sites in a sum of masked updates; None: updates leave without masks.
        noise_multiplier: of steps with differential privacy; None: it has none.
        noise: who makes it; None: it has none.
        scores: how the sites' scores leave.
    """

    name: str
    person: str | None
    dataset: str
    network: str | None = None
    strategy: str | None = None
    smallest_sum: int | None = None
    noise_multiplier: float | None = None
    noise: NoiseKind | None = None
    scores: ScoresKind = "each"


def read_policy(folder: Path) -> Policy | None:
    """Return a site's policy; None outside a kit (simulation).

    Args:
        folder: the kit's ``local``.

    Raises:
        PolicyError: the policy is broken, so nothing may run.
    """
    path = folder / POLICY_FILE
    try:
        return Policy.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PolicyError(f"its policy is broken ({first_problem(error)}): nothing runs there") from None
    except (OSError, ValueError) as error:
        raise PolicyError(f"its policy cannot be read ({type(error).__name__}): nothing runs there") from None
