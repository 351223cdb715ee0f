"""An in-memory federation with a simulated clock.

Sites are functions. Rounds of minutes take milliseconds, so that a schedule, a quorum or a lost site can be tried in a
test or in a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oncofed.messages.requests import Request
from oncofed.messages.results import Refusal, Result
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.transport import REVOKED


@dataclass(frozen=True)
class Delayed:
    """A result that takes a while.

    Attributes:
        result: what the site sends; None: it never answers.
        seconds: until the server has it, by the simulated clock.
    """

    result: Result | Refusal | None
    seconds: float


Site = Callable[[Request], Result | Refusal | Delayed]


@dataclass
class _Work:
    """A task that a site works on."""

    task: SiteTask
    result: Result | Refusal | None
    due: float


class InMemorySites:
    """Implements ``rounds.transport.Transport`` with functions for sites.

    Everything happens within ``wait``, in the thread of the round loop and in the order of the sites' names: idle sites
    are given tasks, results that are due arrive, and the clock advances.

    Args:
        sites: what each site does with a request, by its name.
        before_wait: called before each wait, for instance to lose a site.

    Attributes:
        now: simulated seconds.
        lost: sites that are away, with the reason.
        banned: revoked sites.

    Example:
        >>> from oncofed.messages.requests import PrepareRequest
        >>> from oncofed.messages.results import SiteFacts
        >>> sites = InMemorySites({"east": lambda request: SiteFacts({"train": 3})})
        >>> results = []
        >>> task = SiteTask("prepare", None, lambda site: PrepareRequest(), lambda *result: results.append(result))
        >>> _ = sites.open(task)
        >>> sites.wait(1.0)
        >>> results[0][:2]
        ('east', SiteFacts(numbers={'train': 3}))
    """

    def __init__(self, sites: Mapping[str, Site], before_wait: Callable[[InMemorySites], None] | None = None) -> None:
        self.now = 0.0
        self.lost: dict[str, str] = {}
        self._sites = dict(sites)
        self._before_wait = before_wait
        self._tasks: list[SiteTask] = []
        self._in_work: dict[str, _Work] = {}
        self._known: set[str] = set()
        self.banned: frozenset[str] = frozenset()

    def clock(self) -> float:
        """Return the simulated time."""
        return self.now

    def names(self) -> list[str]:
        """Return the sites' names."""
        return sorted(self._sites)

    def open(self, task: SiteTask) -> SiteTask:
        """Give a task to sites until it is closed."""
        self._tasks.append(task)
        return task

    def add_sites(self, task: SiteTask, sites: set[str]) -> None:
        """Give an open task to more sites."""
        task.sites = (task.sites or set()) | sites

    def retry(self, task: SiteTask, site: str) -> None:
        """Let a site do an open task again."""
        task.done.discard(site)

    def close(self, task: SiteTask) -> None:
        """Give a task to no more sites."""
        task.close()
        if task in self._tasks:
            self._tasks.remove(task)

    def known(self) -> set[str]:
        """Return all sites that were ever present."""
        return set(self._known)

    def mark_silent(self) -> None:
        """Do nothing: sites are lost only by ``lose``."""

    def ban(self, sites: frozenset[str]) -> None:
        """Give these sites no tasks, and drop their results."""
        self.banned = sites
        for site in sites & self._known:
            self.lose(site, REVOKED)
            self.lost[site] = REVOKED  # also one that was lost before

    def lose(self, site: str, reason: str) -> None:
        """Count a site as lost; its work is lost too."""
        self.lost.setdefault(site, reason)
        self._in_work.pop(site, None)

    def come_back(self, site: str) -> None:
        """Have a lost site request tasks again."""
        if site not in self.banned:
            self.lost.pop(site, None)

    def wait(self, seconds: float) -> None:
        """Let sites work until a result arrives.

        Waits at most this many seconds.
        """
        if self._before_wait:
            self._before_wait(self)
        self._give_tasks()
        deadline = self.now + seconds
        due = [work.due for work in self._in_work.values() if work.result is not None]
        self.now = max(self.now, min([deadline, *due]))
        for site, work in sorted(self._in_work.items()):
            if work.result is not None and work.due <= self.now:
                del self._in_work[site]
                work.task.on_result(site, work.result, work.task)
                work.task.done.add(site)

    def _give_tasks(self) -> None:
        """Give each idle, present site its first task."""
        for site in sorted(self._sites.keys() - self.lost.keys() - self.banned):
            self._known.add(site)
            task = next((task for task in self._tasks if task.is_for(site)), None)
            if task is None or site in self._in_work:
                continue
            answer = self._sites[site](task.make_request(site))
            if not isinstance(answer, Delayed):
                answer = Delayed(answer, 0.0)
            self._in_work[site] = _Work(task, answer.result, self.now + answer.seconds)
