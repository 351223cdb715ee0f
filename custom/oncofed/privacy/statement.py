"""What a job with differential privacy promises, and what not.

With what NIST SP 800-226 (2025) asks of such a claim.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from oncofed.privacy.accountant import accountant_name, epsilon, rounded_up
from oncofed.privacy.settings import DifferentialPrivacySpec
from oncofed.settings import StrictModel

_DEFINITION = "(epsilon, delta)-differential privacy"
_NEIGHBOURS = "one training patient's images there or not; the number of training patients is public"
_TRUST = "each site makes all noise for its own patients: neither the server nor other sites need be trusted"
_TRUST_IN_OTHERS = (
    "sites make the noise together, in sums under masks: at most {colluding} of the sites that take part in a round "
    "{help} the server or one another, at most {lost} {are} lost within it, and the others run this release unmodified"
)
_COMPOSITION = "over all planned steps of the job; over jobs, each site's ledger adds up what each patient has spent"
_RAW_DATA = "by each site's own staff and software, as before"
_VERIFIED = (
    "by the release's own tests: the accountant against a second one and exact values, the noise by an audit that "
    "fails with half of it; by nobody outside"
)
_NOT_COVERED = (
    "validation and test patients, on whose images scores rest",
    "numbers of cases, and seconds",
    "what the same patients add to other jobs",
    "a site whose software is not this release, unmodified",
)


class PrivacyStatement(StrictModel):
    """The promise to each training patient of each site, for all that left the site in one job."""

    definition: str = _DEFINITION
    epsilon: float = Field(description="of all planned steps together, rounded up")
    delta: float
    unit: str = Field(description="whose presence is hidden")
    neighbours: str = _NEIGHBOURS
    noise: str = Field(description="who makes it: local, each site its own; shared, sites together")
    trust: str = _TRUST
    colluding: int | None = Field(None, description="sites that may help the server; null: any, noise is local")
    lost: int | None = Field(None, description="sites that a sum may lack after its roster; null: noise is local")
    noise_multiplier: float = Field(description="standard deviation of the noise in a step's sum, in clips")
    sampling: float = Field(description="a patient's chance to be in a step, drawn by itself (Poisson)")
    steps: int = Field(description="planned for each site")
    patches: int = Field(description="of a patient in a step")
    clip: float = Field(description="largest norm of a patient's mean gradient (L2)")
    accountant: str
    randomness: str = "AES-256 in counter mode, keyed by the system's entropy; normal numbers in float64"
    composition: str = _COMPOSITION
    raw_data: str = Field(_RAW_DATA, description="who sees it")
    verified: str = Field(_VERIFIED, description="by whom")
    not_covered: tuple[str, ...] = _NOT_COVERED

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        yield "Promise", f"epsilon {self.epsilon:g} at delta {self.delta:g}: {self.definition}, by {self.accountant}"
        whom = "left it" if self.noise == "local" else "was read of the sites' sums"
        yield "To whom", f"each training {self.unit} of each site, for all that {whom} in this job"
        yield "Neighbours", self.neighbours
        yield "Trust", self.trust
        how = f"{self.steps:,} steps, {self.patches} patches of a patient, clip {self.clip:g}; {self.randomness}"
        yield "Mechanism", f"{self.noise} noise, noise multiplier {self.noise_multiplier:g}, {how}"
        yield "Sampling", f"in each step, each patient by itself with a chance of {self.sampling:g} (Poisson)"
        yield "Composition", self.composition
        yield "Access to raw data", self.raw_data
        yield "Verified", self.verified
        yield "Not covered", "; ".join(self.not_covered)


def statement_of(private: DifferentialPrivacySpec | None, steps: int) -> PrivacyStatement | None:
    """Return what a job promises; None for a job without differential privacy.

    Args:
        private: the job's section.
        steps: of the whole job at each site.

    Raises:
        SpecError: see ``DifferentialPrivacySpec.event``.
    """
    if private is None:
        return None
    event = private.event(steps)
    together = {} if private.noise == "local" else {"colluding": private.colluding, "lost": private.lost}
    return PrivacyStatement(
        **together,
        trust=_trust(private),
        epsilon=rounded_up(epsilon([event], private.delta)),
        delta=private.delta,
        unit=private.unit,
        noise=private.noise,
        noise_multiplier=event.noise_multiplier,
        sampling=private.sampling,
        steps=steps,
        patches=private.patches,
        clip=private.clip,
        accountant=accountant_name(),
    )


def _trust(private: DifferentialPrivacySpec) -> str:
    if private.noise == "local":
        return _TRUST
    lost, colluding = private.lost, private.colluding
    helps, are = "helps" if colluding == 1 else "help", "is" if lost == 1 else "are"
    return _TRUST_IN_OTHERS.format(colluding=colluding, help=helps, lost=lost, are=are)
