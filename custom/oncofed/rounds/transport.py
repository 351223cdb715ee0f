"""What the round loop needs of the connection to the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from oncofed.rounds.site_task import SiteTask

# Why a banned site is lost, and its updates are refused.
REVOKED = "revoked by the alliance"


class Transport(Protocol):
    """Gives tasks to sites and takes their results.

    A site is given the first open task that is for it, whenever it has nothing to do; so one that comes late or comes
    back is given what is open then. Results of a closed task still reach its ``on_result``.
    """

    @property
    def lost(self) -> Mapping[str, str]:
        """Sites that are away, with the reason."""

    @property
    def banned(self) -> frozenset[str]:
        """Revoked sites, which are given no task and whose results are dropped."""

    def open(self, task: SiteTask) -> SiteTask:
        """Give a task to sites until it is closed, and return it."""

    def add_sites(self, task: SiteTask, sites: set[str]) -> None:
        """Give an open task to more sites."""

    def retry(self, task: SiteTask, site: str) -> None:
        """Give an open task again to a site that has answered."""

    def close(self, task: SiteTask) -> None:
        """Give a task to no site any more."""

    def wait(self, seconds: float) -> None:
        """Wait until a result arrives or a site is lost."""

    def known(self) -> set[str]:
        """Return the sites that were ever heard of in this process."""

    def lose(self, site: str, reason: str) -> None:
        """Count a site as lost until it is heard of again."""

    def mark_silent(self) -> None:
        """Count sites as lost that have not been heard of for long."""
