"""A watched folder with simulated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed.prediction.watching.folder_scanner import FolderScanner, WatchItem
from oncofed.prediction.watching.watcher import FolderWatcher, ItemResult, ProcessItem


class Clock:
    """Seconds that go on as a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Hand:
    """Makes results and notes them, or raises errors."""

    def __init__(self, out: Path, raises: BaseException | None = None) -> None:
        self.out, self.raises, self.seen = out, raises, list[str]()

    def __call__(self, item: WatchItem) -> ItemResult:
        self.seen.append(item.name)
        if self.raises is not None:
            raise self.raises
        result = self.out / f"{item.name.replace('/', '_')}.txt"
        result.write_text(str(item.files))
        return ItemResult((result,), (result,))


class Place:
    """A watched folder and results, scanned without waiting."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.out = root, root / "in", root / "out"
        self.folder.mkdir()
        self.out.mkdir()
        self.clock, self.told = Clock(), list[tuple[str, str]]()
        self.hand = Hand(self.out)

    def notify(self, kind: str, text: str) -> None:
        self.told.append((kind, text))

    def watch(self, process_item: ProcessItem | None = None) -> FolderWatcher:
        scanner = FolderScanner(self.folder, 0.0, self.clock)
        return FolderWatcher(scanner, self.out, process_item or self.hand, self.notify, seconds=0.001)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds that others bring about."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            pytest.fail("it never came about")
        time.sleep(0.02)
