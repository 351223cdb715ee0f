"""Processes each input of a watched folder exactly once."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oncofed.errors import OncofedError, SpecError, UnreadableError, one_line
from oncofed.prediction.permissions import make_private
from oncofed.prediction.watching.application_entity import Notify
from oncofed.prediction.watching.folder_scanner import FolderScanner, WatchItem
from oncofed.prediction.watching.journal import Journal, Record

if TYPE_CHECKING:
    from oncofed.prediction.watching.store_scu import SendQueue

JOURNAL_FILE, _LOCK_FILE = "watch.jsonl", ".watch.lock"
# Attempts after which an input that crashes or fails unexpectedly is set aside.
_MOST_TRIES = 3
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_SECONDS_BETWEEN_LOOKS, _SECONDS_WHEN_FULL, _LONGEST_SLEEP = 1.0, 60.0, 0.2
_SECONDS_BETWEEN_TRIES = 30.0
# At most one tenth of the time is spent scanning.
_SHARE_OF_LOOKING = 10
_LONGEST_NAME, _LONGEST_REASON = 80, 500


@dataclass(frozen=True)
class ItemResult:
    """Result of one input.

    Attributes:
        written: result files.
        to_send: result files for the receiver.
        set_aside: why some or all of its cases have no result.
    """

    written: tuple[Path, ...] = ()
    to_send: tuple[Path, ...] = ()
    set_aside: tuple[str, ...] = ()


@dataclass
class WatchCounts:
    """Counts since the start."""

    done: int = 0
    failed: int = 0
    unsent: int = 0


# Makes the result of an input; repeated calls overwrite the same files.
ProcessItem = Callable[[WatchItem], ItemResult]


class FolderWatcher:
    """Processes the inputs of a folder.

    Args:
        scanner: of the watched folder.
        out: folder of the results and the journal.
        process_item: makes a result. Exceptions set the input aside, unless they may be temporary.
        notify: called with each event's kind and one line of text.
        make_send_queue: makes the queue of results to send; None: nothing is sent.
        model: digest of the model.
        seconds: between two scans.

    Raises:
        StateError: the journal file is invalid.
        SpecError: the folder holds results of another model.
    """

    def __init__(
        self,
        scanner: FolderScanner,
        out: Path,
        process_item: ProcessItem,
        notify: Notify,
        make_send_queue: Callable[[Journal], SendQueue] | None = None,
        model: str | None = None,
        seconds: float = _SECONDS_BETWEEN_LOOKS,
    ) -> None:
        self._scanner, self._out = scanner, out
        self._process_item, self._notify = process_item, notify
        self._seconds = seconds
        self._journal = Journal(out / JOURNAL_FILE, model)
        self._send_queue = make_send_queue(self._journal) if make_send_queue else None
        self._is_stopped = False
        self._counts, self._reported_incomplete = WatchCounts(), set[str]()
        self._not_before, self._is_away = 0.0, False
        self._again: dict[str, float] = {}

    def stop(self) -> None:
        """Stop after the current input; safe in signal handlers."""
        self._is_stopped = True

    def run(self, once: bool = False) -> WatchCounts:
        """Process inputs until ``stop``.

        Args:
            once: return when no input is complete or about to be.

        Raises:
            OSError: the folder is not readable, or the journal not writable.
        """
        while not self._is_stopped:
            begun = time.monotonic()
            waiting = self._look(once) if begun >= self._not_before else []
            looked = time.monotonic() - begun
            due = [item for item in waiting if self._again.get(item.name, 0.0) <= begun]
            for number, item in enumerate(due, start=1):
                self._process_if_space(item, len(waiting) - number)
                if self._is_stopped or time.monotonic() < self._not_before:
                    break
            if self._send_queue is not None and not self._is_stopped:
                self._send_queue.send_due()
            if once and not (waiting or self._scanner.unsettled):
                break
            self._pause(max(self._seconds, _SHARE_OF_LOOKING * looked))
        self._counts.unsent = self._send_queue.waiting if self._send_queue is not None else 0
        return self._counts

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        # Polls a flag, since no lock is safe to use in a signal handler.
        while not self._is_stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LONGEST_SLEEP))

    def _look(self, once: bool) -> list[WatchItem]:
        try:
            ready_items = [item for item in self._scanner.ready_items() if not self._record(item).is_over]
        except OSError as error:
            # A network drive may be away for a while.
            if once:
                raise
            if not self._is_away:
                self._notify("later", f"the folder cannot be read ({error.strerror or error}): it is tried again")
            self._is_away = True
            return []
        self._is_away = False
        for name in set(self._scanner.open) - self._reported_incomplete:
            self._notify("incomplete", f"{one_line(name, _LONGEST_NAME)} is not whole: it waits for its rest")
        self._reported_incomplete = set(self._scanner.open)
        return ready_items

    def _record(self, item: WatchItem) -> Record:
        return self._journal.record(item.name, item.fingerprint)

    def _process_if_space(self, item: WatchItem, behind: int) -> None:
        try:
            self._process(item, behind)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self._not_before = time.monotonic() + _SECONDS_WHEN_FULL
            self._notify("later", f"the disk is full: {_name(item)} waits {_SECONDS_WHEN_FULL:.0f} s. Free some space")

    def _process(self, item: WatchItem, behind: int) -> None:
        if self._record(item).tries >= _MOST_TRIES:
            self._fail(item, f"the program ended {_MOST_TRIES} times while it was at it")
            return
        files = "1 file" if item.files == 1 else f"{item.files} files"
        self._notify("begun", f"{_name(item)}: {files}" + (f", {behind} more wait" if behind else ""))
        self._journal.begin(item.name, item.fingerprint)
        begun = time.monotonic()
        try:
            outcome = self._process_item(item)
        except KeyboardInterrupt:
            self._journal.requeue(item.name, item.fingerprint)
            raise
        except UnreadableError as error:
            self._try_again(item, str(error))
        except OncofedError as error:
            self._fail(item, str(error))
        except MemoryError:
            self._fail(item, "it takes more memory than this machine has")
        except OSError as error:
            if error.errno in _DISK_FULL:
                self._journal.requeue(item.name, item.fingerprint)
                raise
            self._try_again(item, error.strerror or "a file cannot be read or written")
        except Exception:  # noqa: BLE001 - one input must not stop the others
            self._try_again(item, "it went wrong in a way that nobody foresaw: oncofed --debug predict of it shows how")
        else:
            self._finish(item, outcome, time.monotonic() - begun)

    def _finish(self, item: WatchItem, outcome: ItemResult, seconds: float) -> None:
        if not outcome.written:
            self._fail(item, "; ".join(outcome.set_aside) or "it holds no image")
            return
        to_send = [path.relative_to(self._out).as_posix() for path in outcome.to_send] if self._send_queue else []
        self._journal.finish(item.name, item.fingerprint, to_send)
        self._counts.done += 1
        aside = f"; set aside: {_reason('; '.join(outcome.set_aside))}" if outcome.set_aside else ""
        self._notify("done", f"{_name(item)}: {len(outcome.written)} files in {seconds:.1f} s{aside}")

    def _fail(self, item: WatchItem, reason: str) -> None:
        self._journal.fail(item.name, item.fingerprint, _reason(reason))
        self._counts.failed += 1
        self._notify("failed", f"{_name(item)} is set aside: {_reason(reason)}")

    def _try_again(self, item: WatchItem, reason: str) -> None:
        tries = self._record(item).tries
        if tries >= _MOST_TRIES:
            self._fail(item, reason)
        else:
            self._again[item.name] = time.monotonic() + _SECONDS_BETWEEN_TRIES
            left = f"{_MOST_TRIES - tries} more tries, the next in {_SECONDS_BETWEEN_TRIES:.0f} s"
            self._notify("later", f"{_name(item)}: {_reason(reason)}; {left}")


def _name(item: WatchItem) -> str:
    return one_line(item.name, _LONGEST_NAME)


def _reason(text: str) -> str:
    return one_line(text, _LONGEST_REASON)


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Lock an output folder against a second watcher.

    Raises:
        SpecError: another process holds it.
    """
    make_private(out)
    with (out / _LOCK_FILE).open("a") as file:
        os.set_inheritable(file.fileno(), False)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"{out}: another process watches for this folder. End it, or name another --out") from None
        yield
