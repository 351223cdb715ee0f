"""The sites of a run as the server sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from oncofed.artifacts.training_profile import SiteProfile
from oncofed.data.moments import Sums
from oncofed.rounds.events import Lost, Returned
from oncofed.rounds.intake import Record
from oncofed.rounds.transport import Transport

_SECONDS_BETWEEN_SYNCS = 2.0


class StoppedError(Exception):
    """The job was aborted."""


class Sites:
    """Watches which sites are present.

    Sites join on the transport's threads. ``cases``, ``profiles``, ``sums`` and ``combat`` are replaced then, never
    changed, so that the round loop can iterate over them.

    Args:
        transport: to the sites.
        registered: returns the sites that are registered now.
        record: writes an event to the run's record.
        synchronize: fetches changes in registered and revoked sites.
        is_stopped: whether the job was aborted.
        clock: monotonic, in seconds.

    Attributes:
        cases: numbers of cases by site that joined.
        profiles: histograms of their training images.
        sums: of their tables' numbers (``data.moments``).
        combat: sums for ComBat, of those that told them (``data.harmonization``).
        earlier: sites that took part in an earlier process of the server.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        registered: Callable[[], Collection[str]],
        record: Record,
        synchronize: Callable[[], None],
        is_stopped: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.cases: Mapping[str, dict[str, Any]] = {}
        self.profiles: Mapping[str, SiteProfile] = {}
        self.sums: Mapping[str, Mapping[str, Sums]] = {}
        self.combat: Mapping[str, Mapping[str, Any]] = {}
        self.earlier: set[str] = set()
        self._transport = transport
        self._registered = registered
        self._record = record
        self._synchronize = synchronize
        self._is_stopped = is_stopped
        self._clock = clock
        self._recorded_lost: set[str] = set()
        self._synchronized: float | None = None
        self._lock = threading.Lock()

    def join(
        self,
        site: str,
        cases: dict[str, Any],
        profile: SiteProfile,
        sums: Mapping[str, Sums] | None = None,
        combat: Mapping[str, Any] | None = None,
    ) -> None:
        """Note that a site has loaded its data.

        Args:
            site: its name.
            cases: its numbers of cases.
            profile: histograms of its training images.
            sums: of its table's numbers.
            combat: its sums for ComBat.
        """
        with self._lock:
            self.profiles = {**self.profiles, site: profile}
            self.sums = {**self.sums, site: sums or {}}
            self.combat = {**self.combat, **({site: combat} if combat else {})}
            self.cases = {**self.cases, site: cases}

    @property
    def all(self) -> list[str]:
        """Sites that are registered now, or took part before."""
        return sorted(set(self._registered()) | set(self.cases) | self.earlier)

    @property
    def lost(self) -> dict[str, str]:
        """Sites that are away, with the reason."""
        return dict(self._transport.lost)

    def known(self) -> set[str]:
        """Return all sites that this process has heard of."""
        return self._transport.known()

    def able(self, fewest_cases: int) -> list[str]:
        """Return the sites that joined with enough training cases."""
        return sorted(site for site, numbers in self.cases.items() if numbers["train"] >= fewest_cases)

    def watch(self, seconds: float) -> None:
        """Wait, then record lost and returned sites.

        Raises:
            StoppedError: the job was aborted.
        """
        self._transport.wait(seconds)
        if self._is_stopped():
            raise StoppedError
        self._transport.mark_silent()
        lost = self.lost
        for site, reason in lost.items():
            if site not in self._recorded_lost:
                self._recorded_lost.add(site)
                self._record(Lost(site=site, reason=reason))
        for site in sorted(self._recorded_lost - set(lost)):
            self._recorded_lost.discard(site)
            self._record(Returned(site=site))
        now = self._clock()
        if self._synchronized is None or now - self._synchronized > _SECONDS_BETWEEN_SYNCS:
            self._synchronized = now
            self._synchronize()
