"""When, and how fast, images are fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from oncofed.hospital.archive import HoursOverError, Stopped
from oncofed.privacy.time_windows import is_within

_BITS = 1e6 / 8
_BETWEEN_LOOKS = 5.0


class Pace:
    """Delays several threads together to a rate and to hours.

    Args:
        megabits: most in a second, of all threads together; None: no limit.
        windows: when to fetch, such as ``19:00-06:00``; empty: always.
        notify: called with a line when the hours are over.
        stop: set when the work ends.
        now: local time.
    """

    def __init__(
        self,
        megabits: float | None,
        windows: Sequence[str],
        notify: Callable[[str], None],
        stop: threading.Event,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._bytes_per_second = megabits * _BITS if megabits else None
        self._windows, self._notify, self._stop, self._now = list(windows), notify, stop, now
        self._lock = threading.Lock()
        self._free_at = 0.0  # when all that was taken is paid for
        self._waits = False

    def take(self, size: int) -> None:
        """Wait until bytes that have arrived fit the rate.

        Raises:
            Stopped: the work ends.
        """
        if self._bytes_per_second is None:
            if self._stop.is_set():
                raise Stopped
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._bytes_per_second
            until = self._free_at
        self.wait(until - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: the work ends meanwhile.
        """
        if self._stop.wait(max(0.0, seconds)):
            raise Stopped

    def require_hours(self) -> None:
        """Require that images may be fetched now.

        Raises:
            HoursOverError: they may not.
        """
        if not self._is_open():
            raise HoursOverError("the hours are over")

    def wait_for_hours(self) -> bool:
        """Wait until the hours begin, and return whether they had to be waited for.

        Raises:
            Stopped: the work ends meanwhile.
        """
        if self._is_open():
            return False
        with self._lock:
            tells, self._waits = not self._waits, True
        if tells:
            self._notify(f"waits for the hours of pacs.yaml ({', '.join(self._windows)}); it is {self._now():%H:%M}")
        while not self._is_open():
            self.wait(_BETWEEN_LOOKS)
        self._waits = False
        return True

    def _is_open(self) -> bool:
        return not self._windows or is_within(self._now().time(), self._windows)
