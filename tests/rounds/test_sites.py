"""Sites join on other threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.sites import Sites


class _Counted(dict[str, Any]):
    """Numbers of cases; reading them lets another site join."""

    def __init__(self, join: Callable[[], None]) -> None:
        super().__init__(train=3)
        self._join = join

    def __getitem__(self, name: str) -> Any:
        self._join()
        return super().__getitem__(name)


def test_a_site_can_join_while_the_others_are_counted() -> None:
    transport = InMemorySites({})
    sites = Sites(
        transport=transport,
        registered=transport.names,
        record=lambda event: None,
        synchronize=lambda: None,
        is_stopped=bool,
        clock=transport.clock,
    )
    sites.join("east", _Counted(lambda: sites.join("west", {"train": 3}, {})), {})
    sites.join("north", {"train": 3}, {})
    assert sites.able(1) == ["east", "north"]
    assert sites.able(1) == ["east", "north", "west"]
