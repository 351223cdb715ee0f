"""How much memory a process has at its highest."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil
from typing_extensions import Self


class Peak:
    """Looks at a process's memory while the block runs. Pages of files that are only mapped do not count.

    Args:
        process: by default this one.
        every: seconds between looks.

    Attributes:
        most: bytes.
    """

    def __init__(self, process: psutil.Process | None = None, every: float = 0.02) -> None:
        self._process, self._every = process or psutil.Process(), every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = 0

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):  # it ended
            while not self._over.wait(self._every):
                self._look()

    def _look(self) -> None:
        memory = self._process.memory_info()
        # Such pages can be dropped at any time.
        self.most = max(self.most, memory.rss - memory.shared)
