"""A site's local training, as its executor calls it.

It runs in the job's own process (``in_process``), or in one without network (``sandboxed``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from oncofed.client.private_steps import Charge
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import TrainResult

Stop = Callable[[], bool]
# Key of the patients behind the sums that ``prepare`` tells.
PATIENTS_OF_SUMS = "patients_of_sums"


class ProgressReporter(Protocol):
    """Receives the progress and the log lines of local training."""

    def progress(self, **values: Any) -> None:
        """Report progress: ``phase``, and where known ``round``, ``step``, ``steps``, ``loss``."""

    def note(self, text: str, level: int) -> None:
        """Write a line to the site's own log.

        Args:
            text: it may name cases and files.
            level: one of ``logging``.
        """


@dataclass(frozen=True, kw_only=True)
class SiteContext:
    """Where a site trains.

    Attributes:
        site: name of the site.
        data: folder of the dataset.
        state: folder of what must outlive a process.
        initial: file of the job's initial weights; None: its seed gives them.
        against: file of a model that the job's is compared with; None: no comparison.
        charge: takes what a job with differential privacy will cost from its patients' budgets; None: there are none.
        counts: folder where the steps of such a job are counted; None: that of its state.
    """

    site: str
    data: Path
    state: Path
    initial: Path | None = None
    against: Path | None = None
    charge: Charge | None = None
    counts: Path | None = None


@dataclass(frozen=True)
class LocalScore:
    """A model's score on a site's cases.

    Attributes:
        numbers: those that may leave the site (``privacy.outbound.check_numbers``).
        patient_groups: keys of the patients behind each sum among them. They stay at the site.
        own: the site keeps a model of its own, not the job's.
    """

    numbers: dict[str, Any]
    patient_groups: Sequence[Sequence[str]] = ()
    own: bool = False


class LocalTraining(Protocol):
    """Trains and scores the global model on a site's cases."""

    def prepare(self) -> dict[str, Any]:
        """Check and load the cases, unless that was done.

        Returns:
            Numbers of cases, device and version; what all sites must agree in (``Preparation.origin``); and ``profile``
            (``artifacts.training_profile``), ``covariates`` (``data.moments``) and ``tiles``
            (``data.slides.site_tiles``), which leave the site only where the server wants them. ``PATIENTS_OF_SUMS``
            are, by name, the keys of the patients behind the latter two, and stay here.
        """

    def train(self, request: TrainRequest, stop: Stop) -> TrainResult:
        """Score the global model on validation cases, then train it.

        The same request again, also to a later process, gives the same result.

        Args:
            request: of the server.
            stop: polled; true ends the training early.
        """

    def validate(self, request: EvaluateRequest, stop: Stop, keep_as: str | None = None) -> LocalScore:
        """Score a model.

        Args:
            request: of the server.
            stop: polled; true ends it early.
            keep_as: name under which the site keeps the model for its own use; None: it does not.
        """

    def close(self) -> None:
        """Release memory and files."""
