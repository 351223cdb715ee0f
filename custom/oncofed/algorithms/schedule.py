"""The order in which sites train within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from oncofed.algorithms.settings import EvaluationSpec, RoundsSpec
from oncofed.settings import SettingError


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules; ``rounds.schedules`` carries them out.

    Attributes:
        takes_late: an update of an earlier round may count in a later one.
        reaches_server: sites send their updates to the server, not to each other.
        why_not_private: why no job with differential privacy can have it; None: sites train once a round at most.
    """

    takes_late: ClassVar[bool] = True
    reaches_server: ClassVar[bool] = True
    why_not_private: ClassVar[str | None] = None

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse settings that do not fit.

        Args:
            name: of the algorithm.
            rounds: the job's.
            evaluation: the job's.

        Raises:
            ValueError: names the setting to leave out.
        """
        if rounds.deadline_s is not None and rounds.quorum is None:
            raise SettingError(
                "needs rounds.quorum beside it: how many updates are enough when the time is up?", "rounds.deadline_s"
            )


@dataclass(frozen=True)
class Synchronous(Schedule):
    """All sites train the same model at the same time."""


@dataclass(frozen=True)
class Buffered(Schedule):
    """Sites never wait; a full buffer ends the round.

    Attributes:
        size: updates of a round.
    """

    why_not_private: ClassVar[str | None] = (
        "lets fast sites train more often than the job has rounds, so that their patients' epsilon is not known before"
    )

    size: int

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse a quorum, a deadline and a draw."""
        _leave_out(
            rounds,
            ("quorum", "sites_per_round", "deadline_s", *(["late"] if rounds.late == "drop" else [])),
            f"{name} takes every update as it comes",
        )


@dataclass(frozen=True)
class Sequential(Schedule):
    """One site after the other trains the model further."""

    takes_late: ClassVar[bool] = False

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse a quorum and a draw.

        A deadline applies to each site.
        """
        _leave_out(rounds, ("quorum", "sites_per_round"), f"{name} asks one site after the other")


@dataclass(frozen=True)
class PeerAveraged(Schedule):
    """A drawn site averages all updates.

    It is drawn in each round; the server receives the mean.
    """

    takes_late: ClassVar[bool] = False
    reaches_server: ClassVar[bool] = False

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse settings that need single updates on the server."""
        super().check(name, rounds, evaluation)
        if evaluation.cross_site:
            raise SettingError(
                f"found true, but {name} gives no site's model to the server: leave it out", "evaluation.cross_site"
            )


def _leave_out(rounds: RoundsSpec, names: Sequence[str], why: str) -> None:
    """Refuse settings of the rounds."""
    for name in names:
        if getattr(rounds, name):
            raise SettingError(f"found {getattr(rounds, name)}, but {why}: leave it out", f"rounds.{name}")


# The schedules that the round loop can carry out, also through subclasses.
SCHEDULES = (Synchronous, Buffered, Sequential, PeerAveraged)
