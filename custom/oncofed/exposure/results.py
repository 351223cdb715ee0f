"""What the attacks found, as ``exposure.json`` holds it."""

from __future__ import annotations

from datetime import datetime

from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS

# Stands beside every figure: an attack that fails proves nothing of another one.
WORDS = "of this attack, today: an attacker may do better"


class Recognition(StrictModel):
    """How well patients of an update are told from others.

    Attributes:
        auc: area under the ROC curve; 0.5: by chance.
        interval: of it, 95 %, over patients; None: too few.
        true_positive_rate: share of those inside that are recognised where 1 % of those outside are taken for such.
        inside: patients that were trained on.
        outside: patients that were not.
    """

    auc: float
    interval: tuple[float, float] | None
    true_positive_rate: float
    inside: int
    outside: int


class Reconstruction(StrictModel):
    """How well an image is drawn again from its gradient.

    Attributes:
        targets: images that were tried.
        recognised: drawings that resemble their own image most, among the candidates.
        candidates: images of as many patients.
        chance: share that guessing recognises.
        correlation: mean of drawings with their own images.
        psnr_db: mean peak signal-to-noise ratio, which grey paper has as well: no headline.
    """

    targets: int
    recognised: int
    candidates: int
    chance: float
    correlation: float
    psnr_db: float


class View(StrictModel):
    """What somebody sees of an update, and what it gave away.

    Attributes:
        name: for people.
        sites: in the sum; 1: the update of one site.
        noise: that of the job's differential privacy.
        as_configured: this is what the job's server is given.
        recognition: of patients; None: not tried.
        reconstruction: of images, each of another patient; None: of too few to be shown.
    """

    name: str
    sites: int
    noise: bool
    as_configured: bool
    recognition: Recognition | None
    reconstruction: Reconstruction | None


class Audit(StrictModel):
    """The one-run audit of the job's noise.

    Attributes:
        epsilon_at_least: shown at 95 % confidence.
        epsilon_most: that this many right guesses could show.
        delta: of it.
        right: guesses.
        guesses: of whether a canary was there.
        canaries: planted gradients of the largest length.
    """

    epsilon_at_least: float
    epsilon_most: float
    delta: float
    right: int
    guesses: int
    canaries: int


class Exposure(StrictModel):
    """Attacks on one job with one's own data.

    Attributes:
        job: its name.
        title: of the job.
        date: of the attacks, as ISO 8601 has it.
        words: to be told with each figure.
        version: of oncofed.
        seed: of the attacks.
        model: which weights were attacked.
        stand_ins: the sites of the sum are parts of one dataset.
        patients: trained on at each site.
        steps: that the recognised update is of.
        steps_per_round: of the job.
        iterations: of a reconstruction.
        views: the attacked sums and updates, with the control.
        audit: None: the job has no differential privacy, or too many steps.
        notes: what was done otherwise than in the job.
        seconds: that it took.
    """

    job: str
    title: str
    date: str
    words: str = WORDS
    version: str
    seed: int
    model: str
    stand_ins: bool
    patients: int
    steps: int
    steps_per_round: int
    iterations: int
    views: tuple[View, ...]
    audit: Audit | None
    notes: tuple[str, ...]
    seconds: float

    def of_enough_images(self) -> Exposure:
        """Return it without reconstructions of fewer than five images, as a report that others read may show it."""
        views = [
            view.model_copy(update={"reconstruction": None})
            if view.reconstruction and view.reconstruction.targets < LEAST_PATIENTS
            else view
            for view in self.views
        ]
        return self.model_copy(update={"views": tuple(views)})

    @property
    def when(self) -> str:
        """Date and time for people."""
        return f"{datetime.fromisoformat(self.date):%Y-%m-%d %H:%M %Z}"
