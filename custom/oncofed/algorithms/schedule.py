"""The order in which sites train within a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oncofed.algorithms.settings import EvaluationSpec, RoundsSpec


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules; ``rounds.schedules`` carries them out.

    Attributes:
        takes_late: an update of an earlier round may count in a later one.
        reaches_server: sites send their updates to the server, not to each other.
    """

    takes_late: ClassVar[bool] = True
    reaches_server: ClassVar[bool] = True

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
            raise ValueError("rounds.deadline_s needs a quorum: how many updates are enough when the time is up?")


@dataclass(frozen=True)
class Synchronous(Schedule):
    """All sites train the same model at the same time."""


@dataclass(frozen=True)
class Buffered(Schedule):
    """Sites never wait; a full buffer ends the round.

    Attributes:
        size: updates of a round.
    """

    size: int

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse a quorum, a deadline and a draw."""
        if rounds.quorum or rounds.sites_per_round or rounds.deadline_s or rounds.late == "drop":
            raise ValueError(
                f"{name} takes every update as it comes: leave quorum, deadline_s, sites_per_round and late: drop away"
            )


@dataclass(frozen=True)
class Sequential(Schedule):
    """One site after the other trains the model further."""

    takes_late: ClassVar[bool] = False

    def check(self, name: str, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse a quorum and a draw.

        A deadline applies to each site.
        """
        if rounds.sites_per_round or rounds.quorum:
            raise ValueError(f"{name} asks one site after the other: leave quorum and sites_per_round away")


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
            raise ValueError(f"{name} gives no site's model to the server: leave evaluation.cross_site away")


# The schedules that the round loop can carry out, also through subclasses.
SCHEDULES = (Synchronous, Buffered, Sequential, PeerAveraged)
