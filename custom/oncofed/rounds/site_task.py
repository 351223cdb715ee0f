"""One task for some sites."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from oncofed.messages.requests import Request
from oncofed.messages.results import Refusal, Result


@dataclass
class SiteTask:
    """A task for sites, until it is closed.

    Attributes:
        name: of the task, as ``Request.task``.
        sites: those that are to do it; None for all, also those that come later.
        make_request: makes the request to one site.
        on_result: called with each result, its site and this task, from any thread, also after it was closed.
        repeatable: a site that answered gets it again.
        brief: it takes a site milliseconds, for which it need not wait for a compute slot.
        closed: no site gets it any more.
        done: sites that answered.
        key: names the task's messages.
    """

    name: str
    sites: set[str] | None
    make_request: Callable[[str], Request]
    on_result: Callable[[str, Result | Refusal, SiteTask], None]
    repeatable: bool = False
    brief: bool = False
    closed: bool = False
    done: set[str] = field(default_factory=set)
    key: str = field(default_factory=lambda: str(uuid.uuid4()))

    def is_for(self, site: str) -> bool:
        """Return whether a site should get the task now."""
        if self.closed or (self.sites is not None and site not in self.sites):
            return False
        return self.repeatable or site not in self.done

    def close(self) -> None:
        """Close it, and release the model in its requests."""
        self.closed = True
        self.make_request = _no_request


def _no_request(site: str) -> Request:
    raise RuntimeError(f"{site} was given a task that is closed")
