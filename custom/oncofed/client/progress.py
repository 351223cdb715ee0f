"""Progress reports at a bounded rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from oncofed.client.local_training import ProgressReporter

SECONDS_BETWEEN_REPORTS = 0.5


class ThrottledProgress:
    """Reports progress, steps at most twice a second.

    Args:
        reporter: receives the reports.
    """

    def __init__(self, reporter: ProgressReporter) -> None:
        self._reporter = reporter
        self._last = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last report is old enough."""
        return time.monotonic() - self._last >= SECONDS_BETWEEN_REPORTS

    def report(self, **values: Any) -> None:
        """Report at once; see ``ProgressReporter.progress``."""
        self._last = time.monotonic()
        self._reporter.progress(**values)

    def counter(self, phase: str) -> Callable[[int, int], None]:
        """Return a callback that reports a phase's finished cases."""

        def count(done: int, total: int) -> None:
            if self.is_due:
                self.report(phase=phase, step=done, steps=total)

        return count
