"""How many results suffice, and how long to wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping

from oncofed.algorithms.settings import RoundsSpec
from oncofed.errors import NotEnoughSitesError
from oncofed.rounds.intake import UpdateIntake
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.sites import Sites
from oncofed.rounds.transport import Transport

# How long the loop sleeps when nothing happens.
LOOK_SECONDS = 0.5
SECONDS_BETWEEN_TRIES = 5.0


class Goal(ABC):
    """A condition that the server waits for.

    Attributes:
        description: completes "… has 1 of the 2 sites that it needs".
    """

    description: str

    @abstractmethod
    def is_reached(self) -> bool:
        """Return whether the wait is over; may add sites."""

    @property
    @abstractmethod
    def have(self) -> int:
        """Sites that count so far."""

    @property
    @abstractmethod
    def needed(self) -> int:
        """Sites that must count."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Sites that no longer count, with the reason.

        Lost sites are not among them.
        """
        return {}

    @property
    def unable(self) -> Collection[str]:
        """Refused sites that can be retried."""
        return ()

    @property
    def idle(self) -> Collection[str]:
        """Sites that joined but have no task in this round."""
        return ()

    @property
    def coming(self) -> Collection[str]:
        """Sites whose processes may still be starting."""
        return ()


class Quorum:
    """Waits until enough sites have answered.

    It gives up where they cannot.

    Args:
        rules: the job's ``rounds``.
        sites: which are present.
        intake: knows why results do not count.
        transport: to the sites.
        clock: monotonic, in seconds.
        smallest_sum: fewest sites in a sum of masked updates; None: no masks.
    """

    def __init__(
        self,
        *,
        rules: RoundsSpec,
        sites: Sites,
        intake: UpdateIntake,
        transport: Transport,
        clock: Callable[[], float],
        smallest_sum: int | None = None,
    ) -> None:
        self._rules = rules
        self._sites = sites
        self._intake = intake
        self._transport = transport
        self._clock = clock
        self._smallest_sum = smallest_sum

    def wait_for(self, goal: Goal) -> None:
        """Wait until a goal is reached.

        Raises:
            NotEnoughSitesError: too few sites are left, and none came back for as long as the job allows.
        """
        hopeless_since: float | None = None
        while not goal.is_reached():
            self._sites.watch(LOOK_SECONDS)
            # A site whose data did not pass the checks cannot recover, and a revoked one does not come back.
            out = set(self._transport.banned) | {
                site for site in list(self._intake.reasons) if site not in self._sites.cases
            }
            out |= set(goal.refused) | set(goal.idle)
            present = (self._sites.known() | set(goal.coming)) - set(self._sites.lost) - out
            if len(present) >= goal.needed:
                hopeless_since = None
                continue
            now = self._clock()
            if hopeless_since is None:
                hopeless_since = now
            may_come = (set(self._sites.all) | self._sites.known()) - (out - set(goal.unable))
            if len(may_come) < goal.needed or now - hopeless_since > self._rules.return_s:
                raise NotEnoughSitesError(self.too_few(goal.description, goal.have, goal.needed))

    def wait_for_site(self, task: SiteTask, site: str) -> None:
        """Wait for one site's answer, loss or deadline."""
        started = self._clock()
        while not task.done and site not in self._sites.lost and not self.time_is_up(started):
            self._sites.watch(LOOK_SECONDS)

    def needed(self, asked: Collection[str], refused: Collection[str]) -> int:
        """Return how many results are enough.

        The quorum, or one of every site that is neither refused nor revoked.
        """
        if self._rules.quorum is not None:
            return min(self._rules.quorum, len(asked))
        return max(1, len(set(asked) - set(refused) - self._transport.banned))

    def is_complete(self, task: SiteTask, current: RoundState, enough: bool) -> bool:
        """Return whether a task's wait is over.

        Enough sites answered, and time is up or no other one is awaited.
        """
        if not enough:
            self._retry(task, current)
            return False
        if self.time_is_up(current.started):
            return True
        lost = self._sites.lost
        return all((site in task.done and site not in current.apart) or site in lost for site in current.asked)

    def time_is_up(self, started: float) -> bool:
        """Return whether the job's deadline has passed."""
        deadline = self._rules.deadline_s
        return deadline is not None and self._clock() - started > deadline

    def _retry(self, task: SiteTask, current: RoundState) -> None:
        """Retry sites that failed, for example on a full disk."""
        now = self._clock()
        if now - current.started > self._rules.return_s:
            return
        for site, since in list(current.unable.items()):
            if now - since > SECONDS_BETWEEN_TRIES:
                self._intake.allow_retry(current, site)
                self._transport.retry(task, site)

    def too_few(self, what: str, have: int, needed: int) -> str:
        """Return why the job cannot go on."""
        reasons = {**self._intake.reasons, **self._sites.lost}
        why = "; ".join(f"{site}: {reason.rstrip('.')}" for site, reason in sorted(reasons.items()))
        without = "set rounds.quorum lower to go on without it"
        if self._smallest_sum and needed <= self._smallest_sum:
            without = (
                f"name more sites: under masks no sum is formed of fewer than {self._smallest_sum} "
                "(privacy.secure_aggregation.minimum_sites)"
            )
        return (
            f"{what} has {have} of the {needed} sites that it needs ({why or 'none answered'}). Repair the "
            f"site and run the job again, or {without}."
        )
