"""Daily time windows by local clock, such as ``18:00-07:00``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import time

WINDOW = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


def is_within(now: time, windows: Iterable[str]) -> bool:
    """Return whether a time lies in any window.

    A window that ends before it begins spans midnight.

    Example:
        >>> is_within(time(23, 30), ["18:00-07:00"]), is_within(time(7), ["18:00-07:00"])
        (True, False)
    """
    return any(_is_in(now, window) for window in windows)


def _is_in(now: time, window: str) -> bool:
    begin, end = (time.fromisoformat(text) for text in window.split("-"))
    return begin <= now < end if begin < end else now >= begin or now < end
