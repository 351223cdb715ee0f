"""Each arriving input is processed once.

Despite interruptions; results are sent until they are acknowledged.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicoms import make_series
from oncofed.cli.watching import Watching, watching
from oncofed.errors import DataError, SpecError, StateError, UnreadableError
from oncofed.prediction.watching.application_entity import Address
from oncofed.prediction.watching.folder_scanner import FolderScanner, WatchItem
from oncofed.prediction.watching.journal import Journal
from oncofed.prediction.watching.watcher import JOURNAL_FILE, FolderWatcher, ItemResult, lock_output
from watched import Hand, Place, eventually

SETTLE = 10.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two empty folders; failures are retried at once."""
    monkeypatch.setattr("oncofed.prediction.watching.watcher._SECONDS_BETWEEN_TRIES", 0.0)
    monkeypatch.setattr("oncofed.prediction.watching.watcher._SECONDS_WHEN_FULL", 0.0)
    return Place(tmp_path)


def names(scanner: FolderScanner) -> list[str]:
    return [item.name for item in scanner.ready_items()]


# What arrived, and when it is whole.


def test_a_changing_input_is_not_complete(place: Place) -> None:
    scanner = FolderScanner(place.folder, SETTLE, place.clock)
    file = place.folder / "a.nii"
    file.write_bytes(b"1")
    assert (names(scanner), scanner.unsettled) == ([], ["a.nii"])
    place.clock.now += 0.9 * SETTLE
    with file.open("ab") as copied:
        copied.write(b"2")
    assert names(scanner) == []
    place.clock.now += 0.9 * SETTLE
    assert names(scanner) == []
    place.clock.now += 0.2 * SETTLE
    assert (names(scanner), scanner.unsettled) == (["a.nii"], [])


def test_a_copy_with_an_old_mtime_is_not_complete(place: Place) -> None:
    scanner = FolderScanner(place.folder, SETTLE, place.clock)
    file = place.folder / "a.nii"
    for _ in range(3):
        file.write_bytes(b"12")
        os.utime(file, ns=(1, 1))
        assert names(scanner) == []
        place.clock.now += 0.9 * SETTLE
        time.sleep(0.01)
    place.clock.now += SETTLE
    assert names(scanner) == ["a.nii"]


def test_partial_names_wait_and_hidden_files_are_ignored(place: Place) -> None:
    scanner = FolderScanner(place.folder, 0.0, place.clock)
    for name in ("a.nii.part", "b.nii.TMP", ".hidden.nii", "case/one.nii", "case/two.nii.part", ".d/x.nii"):
        path = place.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
    assert names(scanner) == []
    assert scanner.open == ["a.nii.part", "b.nii.TMP", "case"]
    for path in (place.folder / "a.nii.part", place.folder / "case" / "two.nii.part"):
        path.rename(path.with_suffix(""))
    found = scanner.ready_items()
    assert {item.name: item.files for item in found} == {"a.nii": 1, "case": 2}
    assert scanner.open == ["b.nii.TMP"]


def test_loose_dicom_files_are_one_input_per_series(place: Place) -> None:
    make_series(place.folder, names=lambda number: f"a{number}")
    make_series(place.folder, names=lambda number: f"b{number}")
    (place.folder / "note.txt").write_text("x")
    found = FolderScanner(place.folder, 0.0, place.clock).ready_items()
    assert sorted(item.files for item in found) == [1, 8, 8]
    for item in found:
        assert len({path.name[0] for path in item.paths}) == 1
        assert "MRN" not in item.name


def test_a_folder_is_one_input_and_a_new_one_when_it_changes(place: Place) -> None:
    make_series(place.folder / "case" / "series")
    scanner = FolderScanner(place.folder, 0.0, place.clock)
    (before,) = scanner.ready_items()
    assert before.paths == (place.folder / "case",)
    assert scanner.ready_items() == [before]
    (place.folder / "case" / "more.nii").write_bytes(b"1")
    (after,) = scanner.ready_items()
    assert (after.name, after.files) == ("case", 9)
    assert after.fingerprint != before.fingerprint


# Each thing once.


def test_each_input_is_processed_once_across_processes(place: Place) -> None:
    for name in ("a.nii", "b.nii"):
        (place.folder / name).write_bytes(b"1")
    counts = place.watch().run(once=True)
    assert (counts.done, counts.failed) == (2, 0)
    (place.folder / "c.nii").write_bytes(b"1")
    assert place.watch().run(once=True).done == 1
    assert place.hand.seen == ["a.nii", "b.nii", "c.nii"]
    (place.folder / "a.nii").write_bytes(b"12")
    assert place.watch().run(once=True).done == 1
    assert place.hand.seen[3:] == ["a.nii"]


@pytest.mark.parametrize(
    ("raised", "tries", "told"),
    [
        (DataError("slices are missing"), 1, "slices are missing"),
        (MemoryError(), 1, "more memory than this machine has"),
        (UnreadableError("the drive is away"), 3, "the drive is away"),
        (OSError(errno.EIO, "Input/output error"), 3, "Input/output error"),
        (ZeroDivisionError("Canary\x1b[2J\nsecond line"), 3, "in a way that nobody foresaw"),
    ],
    ids=["data", "memory", "away", "disk", "unforeseen"],
)
def test_a_failed_input_is_set_aside_and_the_next_processed(
    place: Place, raised: Exception, tries: int, told: str
) -> None:
    (place.folder / "bad.nii").write_bytes(b"1")
    bad, good = Hand(place.out, raised), Hand(place.out)

    def process_item(item: WatchItem) -> ItemResult:
        return (bad if item.name == "bad.nii" else good)(item)

    (place.folder / "good.nii").write_bytes(b"1")
    counts = place.watch(process_item).run(once=True)
    assert (counts.done, counts.failed) == (1, 1)
    assert (len(bad.seen), good.seen) == (tries, ["good.nii"])
    text = dict(place.told)["failed"]
    assert told in text
    assert "Canary" not in text
    assert told in Journal(place.out / JOURNAL_FILE).records["bad.nii"].reason
    # Not again, until a file of it changes.
    assert place.watch(process_item).run(once=True).failed == 0
    (place.folder / "bad.nii").touch()
    assert place.watch(process_item).run(once=True).failed == 1


def test_a_temporary_failure_is_retried_after_the_next_input(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncofed.prediction.watching.watcher._SECONDS_BETWEEN_TRIES", 0.1)
    (place.folder / "a.nii").write_bytes(b"1")
    time.sleep(0.01)
    (place.folder / "b.nii").write_bytes(b"1")
    away = [UnreadableError("the drive is away")]

    def process_item(item: WatchItem) -> ItemResult:
        if away:
            raise away.pop()
        return place.hand(item)

    assert place.watch(process_item).run(once=True).done == 2
    assert place.hand.seen == ["b.nii", "a.nii"]


def test_one_without_a_result_says_why(place: Place) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    place.watch(lambda item: ItemResult(set_aside=("a colour image for a grey model",))).run(once=True)
    assert ("failed", "a.nii is set aside: a colour image for a grey model") in place.told


def test_a_full_disk_is_waited_for_without_counting_an_attempt(place: Place) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    full = [OSError(errno.ENOSPC, "No space left on device")] * 5

    def process_item(item: WatchItem) -> ItemResult:
        if full:
            raise full.pop()
        return place.hand(item)

    assert place.watch(process_item).run(once=True).done == 1
    assert place.kinds().count("later") == 5
    assert "the disk is full" in dict(place.told)["later"]


def test_a_journal_that_cannot_be_written_is_waited_for_and_stays_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    real, full = os.fsync, [True, False, True, True]

    def sync(descriptor: int) -> None:
        if full and full.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    assert place.watch().run(once=True).done == 1
    assert place.kinds().count("later") == 3
    steps = [json.loads(line)["step"] for line in (place.out / JOURNAL_FILE).read_text().splitlines()]
    assert steps == ["begun", "begun", "done"]


def test_a_folder_that_is_away_for_a_while_is_looked_at_again(place: Place) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    watch = place.watch()

    def notify(kind: str, text: str) -> None:
        place.notify(kind, text)
        if kind == "later":
            (place.root / "away").rename(place.folder)
        if kind == "done":
            watch.stop()

    watch = FolderWatcher(FolderScanner(place.folder, 0.0), place.out, place.hand, notify, seconds=0.001)
    place.folder.rename(place.root / "away")
    assert watch.run().done == 1
    assert place.kinds() == ["later", "begun", "done"]


def test_a_stop_finishes_the_current_input_and_begins_no_other(place: Place) -> None:
    for name in ("a.nii", "b.nii"):
        (place.folder / name).write_bytes(b"1")

    def process_item(item: WatchItem) -> ItemResult:
        watch.stop()
        return place.hand(item)

    watch = place.watch(process_item)
    assert watch.run().done == 1
    assert place.hand.seen == ["a.nii"]


def test_an_interrupted_input_is_restarted_without_counting_an_attempt(place: Place) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            place.watch(Hand(place.out, KeyboardInterrupt())).run(once=True)
    assert place.watch().run(once=True).done == 1


def test_a_journal_whose_last_line_is_cut_off_goes_on(place: Place) -> None:
    for name in ("a.nii", "b.nii"):
        (place.folder / name).write_bytes(b"1")
    place.watch().run(once=True)
    journal = place.out / JOURNAL_FILE
    lines = journal.read_bytes()
    journal.write_bytes(lines[:-7])
    assert place.watch().run(once=True).done == 1
    assert place.hand.seen == ["a.nii", "b.nii", "b.nii"]
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    journal.write_text("no journal\n")
    with pytest.raises(StateError, match=r"line 1: no step of this journal. Move the file away"):
        place.watch()


def test_two_processes_do_not_watch_for_one_folder(place: Place) -> None:
    with lock_output(place.out), pytest.raises(SpecError, match="another process watches for"), lock_output(place.out):
        pass


# A process that watches, killed.

_PROCESS = """
import os, signal, sys, time
from pathlib import Path
from rich.console import Console
from oncofed.cli.watching import watching, work_off
from oncofed.prediction.watching.watcher import ItemResult

folder, out, poison = map(Path, sys.argv[1:4])

def handle(arrival):
    with (out / "handled").open("a") as file:
        file.write(arrival.name + "\\n")
    if arrival.name == poison.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if (out / "slow").exists():
        time.sleep(1)
    result = out / (arrival.name + ".txt")
    result.write_text("done")
    return ItemResult((result,), ())

asked = watching(out, folder, None, "ONCOFED", None, None, 0.5, "once" in sys.argv)
sys.exit(work_off(asked, out, handle, Console(soft_wrap=True), "Research only."))
"""


def process(place: Place, *more: str, poison: str = "-") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROCESS, str(place.folder), str(place.out), poison, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_an_input_that_kills_the_process_is_tried_three_times(place: Place) -> None:
    (place.folder / "a.nii").write_bytes(b"1")
    time.sleep(0.01)
    (place.folder / "b.nii").write_bytes(b"1")
    ended = []
    for _ in range(4):
        one = process(place, "once", poison="a.nii")
        output = one.communicate(timeout=300)[0]
        ended.append(one.returncode)
    assert ended == [-signal.SIGKILL] * 3 + [1], output
    handled = (place.out / "handled").read_text().split()
    assert handled == ["a.nii"] * 3 + ["b.nii"]
    assert "ended 3 times while it was at it" in Journal(place.out / JOURNAL_FILE).records["a.nii"].reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_current_input_and_reports_it(place: Place, number: signal.Signals) -> None:
    (place.out / "slow").touch()
    for name in ("a.nii", "b.nii"):
        (place.folder / name).write_bytes(b"1")
    one = process(place)
    eventually((place.out / "handled").exists)
    one.send_signal(number)
    output = one.communicate(timeout=300)[0]
    assert one.returncode == 0, output
    assert "after the input at hand" in output
    assert output.splitlines()[0].split(maxsplit=2)[2].startswith("Research only")
    assert [path.name for path in place.out.glob("*.txt")] == ["a.nii.txt"]


# What is typed.


def test_options_that_do_not_fit_together_are_refused(place: Place) -> None:
    usual = {"ae_title": "A", "callers": None, "send_to": None, "settle": 1.0, "once": False}

    def ask(watch: Path | None = None, listen: str | None = None, **more: object) -> Watching | None:
        return watching(place.out, watch, listen, **(usual | more))  # type: ignore[arg-type]

    assert ask() is None
    for given, said in (
        ({"once": True}, "--once: of use with --watch FOLDER or --listen PORT alone"),
        ({"send_to": "A@b:1", "callers": "B"}, "--from and --send-to: of use with"),
        ({"watch": place.folder, "callers": "B"}, "--from: of use with --listen"),
        ({"listen": "104"}, "expected who may send, as --from"),
        ({"listen": "104", "callers": "B", "once": True}, "until Ctrl-C"),
        ({"watch": place.folder, "listen": "104", "callers": "B"}, "expected one of them"),
        ({"watch": place.root / "none"}, "no such folder"),
        ({"watch": place.root}, "results would be watched too"),
    ):
        with pytest.raises(SpecError, match=said):
            ask(**given)  # type: ignore[arg-type]
    asked = ask(listen="104", callers="B,C")
    assert asked is not None
    assert (asked.folder, asked.listen) == (place.out / "inbox", Address("127.0.0.1", 104))
    assert asked.callers == ("B", "C")
