"""The round loop's interface to the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from oncofed.rounds.site_task import SiteTask

# Why a banned site is lost, and its updates are refused.
REVOKED = "revoked by the alliance"


class Transport(Protocol):
    """Gives tasks to sites and takes their results.

    An idle site is given the first open task that is for it; so one that comes late or comes back is given what is open
    then. Results of a closed task still reach its ``on_result``.
    """

    @property
    def lost(self) -> Mapping[str, str]:
        """Sites that are away, with the reason."""

    @property
    def banned(self) -> frozenset[str]:
        """Revoked sites.

        They get no tasks, and their results are dropped.
        """

    def open(self, task: SiteTask) -> SiteTask:
        """Give a task to sites until it is closed."""

    def add_sites(self, task: SiteTask, sites: set[str]) -> None:
        """Give an open task to more sites."""

    def retry(self, task: SiteTask, site: str) -> None:
        """Let a site do an open task again."""

    def close(self, task: SiteTask) -> None:
        """Give a task to no more sites."""

    def wait(self, seconds: float) -> None:
        """Wait until a result arrives or a site is lost."""

    def known(self) -> set[str]:
        """Return all sites that this process has heard of."""

    def lose(self, site: str, reason: str) -> None:
        """Count a site as lost until its next message."""

    def mark_silent(self) -> None:
        """Count silent sites as lost."""
