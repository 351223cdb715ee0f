"""Tests of the audit log: changes and gaps are found."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.audit import Anchor, AuditLog, _digest
from oncofed.errors import AuditError


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path)
    for number in range(5):
        log.write("message left", "eve@example.org", job="j", round=number)
    return log


def _lines(log: AuditLog) -> list[str]:
    return log.path.read_text().splitlines()


def _put(log: AuditLog, lines: list[str]) -> None:
    log.path.write_text("".join(f"{line}\n" for line in lines))


def test_an_untouched_log_is_whole_and_its_file_is_its_owners(log: AuditLog) -> None:
    problems, anchor = log.verify()
    assert problems == []
    assert anchor is not None
    assert anchor.number == 5
    assert log.verify((anchor, Anchor.parse(str(anchor))))[0] == []
    assert (log.path.stat().st_mode & 0o777, log.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry["round"] for entry in log.entries()] == [0, 1, 2, 3, 4]


@settings(max_examples=60)
@given(data=st.data())
def test_every_changed_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = AuditLog(tmp_path_factory.mktemp("log"))
    for number in range(3):
        log.write("message left", "eve", round=number)
    _, anchor = log.verify()
    assert anchor is not None
    content = bytearray(log.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    log.path.write_bytes(bytes(content))
    problems, _ = log.verify((anchor,))
    # JSON has some freedom in blanks, which say nothing.
    assert problems or list(log.entries())[-1]["hash"] == anchor.digest


def test_moved_doubled_and_missing_lines_are_found(log: AuditLog) -> None:
    lines = _lines(log)
    for damaged in (
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        lines[1:],
        [*lines[:2], "not an entry", *lines[2:]],
    ):
        _put(log, damaged)
        assert log.verify()[0]


def test_a_line_that_was_forged_with_its_digest_breaks_the_chain_behind_it(log: AuditLog) -> None:
    lines = _lines(log)
    entry = json.loads(lines[2])
    entry["round"] = 77
    entry["hash"] = _digest(entry)
    _put(log, [*lines[:2], json.dumps(entry, sort_keys=True), *lines[3:]])
    (problem,) = log.verify()[0]
    assert problem.line == 4


def test_a_cut_or_rewritten_tail_is_found_by_the_servers_anchor(log: AuditLog) -> None:
    _, anchor = log.verify()
    assert anchor is not None
    _put(log, _lines(log)[:3])
    assert log.verify()[0] == []
    (problem,) = log.verify((anchor,))[0]
    assert "2 or more lines are cut off" in problem.what
    log.write("something else")
    log.write("something else")
    (problem,) = log.verify((anchor,))[0]
    assert "number 5 is not the one that was there" in problem.what
    log.path.unlink()
    assert log.verify((anchor,))[0]


def test_a_line_cut_by_a_crash_is_reported_and_the_log_continues(log: AuditLog) -> None:
    with log.path.open("a") as file:
        file.write('{"n": 6, "wh')
    assert log.verify()[0][0].what == "it breaks off"
    log.write("message left", "eve")
    problems, anchor = log.verify()
    assert problems == []
    assert anchor is not None
    assert anchor.number == 7
    lines = _lines(log)
    lines[5] = '{"n": 6, "whatever'
    _put(log, lines)
    assert log.verify()[0]


def test_a_line_that_lacks_its_end_alone_is_kept(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-1])
    assert log.verify()[0][0].what == "it breaks off"
    assert len(list(log.entries())) == 4
    log.write("message left", "eve")
    assert log.verify()[0] == []
    assert [entry["n"] for entry in log.entries()] == [1, 2, 3, 4, 5, 6]
    log.path.write_bytes(log.path.read_bytes() + b"{}\n")
    assert log.verify()[0][0].what == "it is no entry"


def _write_many(folder: Path) -> None:
    for number in range(40):
        AuditLog(folder).write("message left", "eve", number=number)


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.map(_write_many, [tmp_path] * 3)
    problems, anchor = AuditLog(tmp_path).verify()
    assert problems == []
    assert anchor is not None
    assert anchor.number == 120


@pytest.mark.attack(
    "a name that would forge a line of the log",
    by="JSON, one object a line",
    logged="the line itself",
)
def test_typed_text_cannot_add_a_line(log: AuditLog) -> None:
    log.write("policy changed", "eve", reason='x"}\n{"n": 7, "what": "job admitted"}\u2028\x1b[2K')
    assert len(_lines(log)) == 6
    assert log.verify()[0] == []


@pytest.mark.attack(
    "a disk filled so that nothing can be logged",
    by="the audit log: what is not recorded does not happen",
    logged="the site's log",
)
def test_a_failed_entry_is_an_error_and_leaves_the_log_whole(log: AuditLog) -> None:
    before = log.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(AuditError, match="Nothing runs that is not recorded"):
            log.write("message left", "eve")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.path.read_bytes() == before
    log.path.write_text("no log\n")
    with pytest.raises(AuditError, match="its last line is broken"):
        log.write("message left")
    if os.getuid():  # root may write everywhere
        log.path.chmod(0o400)
        with pytest.raises(AuditError):
            log.write("message left")


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog(tmp_path).write("message left")
    assert not (tmp_path / "elsewhere").exists()
