"""An append-only record of what happened at a site, chained so that no line can be changed, moved or taken out unseen.

One JSON object a line. Each holds the digest of the line before it, and its own: SHA-256 over the rest of the line, as
it was written. Lines that were cut off at the end are found by an anchor: number and digest of a line, kept elsewhere;
the alliance's server keeps that of each site with every message.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from oncofed.errors import AuditError
from oncofed.processes import user_name

AUDIT_FILE = Path("audit") / "audit.jsonl"
# What is recorded from more than one place, or looked for.
ADMITTED, REFUSED, LEFT, HELD_BACK = "job admitted", "job refused", "message left", "message held back"
RECEIVED = "code received"
ANCHORED = "a site's last line"
LET_IN, COMMANDED = "let in", "command"

_FIRST = "0" * 64
_TORN = "a line that was being written when the machine stopped"
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Anchor:
    """A line that was there once.

    Attributes:
        number: of the line, from 1.
        digest: its own.
    """

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """Return an anchor from its text.

        Raises:
            ValueError: it is none.
        """
        number, _, digest = text.partition(":")
        if len(digest) != len(_FIRST):
            raise ValueError(text)
        int(digest, 16)
        return cls(int(number), digest)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a log.

    Attributes:
        line: its number in the file, from 1; 0: no single one.
        what: is wrong.
    """

    line: int
    what: str


class AuditLog:
    """The log of one participant.

    Args:
        folder: the participant's own, in which the log is ``audit/audit.jsonl``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / AUDIT_FILE

    def write(self, what: str, who: str | None = None, **facts: Any) -> Anchor:
        """Append a line, and have it on the disk when this returns; several processes may write.

        Args:
            what: happened, in a few words that are always the same.
            who: did it; None: this process's user on this machine.
            facts: beside it; nothing about patients.

        Raises:
            AuditError: it cannot be written; whatever was to be recorded must not happen.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path) as descriptor:
                last, torn = _end_of(descriptor)
                text = ""
                if torn:
                    text, last = _chained(_TORN, user_name(), {"digest": hashlib.sha256(torn).hexdigest()}, last)
                    text = "\n" + text
                line, last = _chained(what, who or user_name(), facts, last)
                _write_whole(descriptor, (text + line).encode())
                os.fsync(descriptor)
        except (OSError, ValueError, KeyError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "its last line is broken"
            raise AuditError(
                f"the audit log {self.path} cannot be written: {why}. Nothing runs that is not recorded: free some "
                "space, or see: oncofed site audit verify"
            ) from None
        return last

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that can be read, in order; none where there is no log."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def verify(self, anchors: tuple[Anchor, ...] = ()) -> tuple[list[Problem], Anchor | None]:
        """Return what is wrong with the log, and the anchor of its last line.

        Args:
            anchors: lines of which somebody else knows that they were there.

        Raises:
            AuditError: the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise AuditError(f"{self.path}: {error.strerror}") from None
        problems: list[Problem] = []
        digests: dict[int, str] = {}
        previous, number = _FIRST, 0
        torn: bytes | None = None
        for position, line in enumerate(lines, 1):
            entry = _parsed(line)
            if entry is None:
                torn = line.rstrip(b"\n")
                if position == len(lines):
                    problems.append(Problem(position, "it breaks off"))
                continue
            if torn is not None and (entry["what"] != _TORN or entry.get("digest") != hashlib.sha256(torn).hexdigest()):
                problems.append(Problem(position - 1, "it is no entry"))
            torn = None
            if _digest(entry) != entry["hash"]:
                problems.append(Problem(position, "it was changed"))
            elif entry["previous"] != previous or entry["n"] != number + 1:
                problems.append(Problem(position, f"it does not follow the line before: expected number {number + 1}"))
            previous, number = str(entry["hash"]), int(entry["n"])
            digests[number] = previous
        for anchor in anchors:
            if anchor.number > number:
                cut = f"{anchor.number - number} or more lines are cut off at the end: number {anchor.number} was there"
                problems.append(Problem(0, cut))
            elif digests.get(anchor.number) != anchor.digest:
                problems.append(Problem(0, f"number {anchor.number} is not the one that was there"))
        return problems, Anchor(number, previous) if number else None


def _chained(what: str, who: str, facts: dict[str, Any], last: Anchor) -> tuple[str, Anchor]:
    """Return a line that follows another one, and its anchor."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    entry = {"n": last.number + 1, "time": now, "who": who, "what": what, **facts, "previous": last.digest}
    digest = _digest(entry)
    return json.dumps({**entry, "hash": digest}, sort_keys=True) + "\n", Anchor(last.number + 1, digest)


def _digest(entry: dict[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        if not line.endswith(b"\n") or not {"n", "hash", "previous", "what"} <= entry.keys():
            return None
        int(entry["n"])
    except (ValueError, AttributeError, TypeError):
        return None
    return dict(entry)


def _end_of(descriptor: int) -> tuple[Anchor, bytes]:
    """Return the anchor of the last whole line, and what stands behind it of one that is not whole."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    begin = max(0, size - _LONGEST_LINE)
    end = os.pread(descriptor, size - begin, begin)
    whole, _, torn = end.rpartition(b"\n")
    if not whole:
        return Anchor(0, _FIRST), torn
    entry = json.loads(whole.rpartition(b"\n")[2])
    return Anchor(int(entry["n"]), str(entry["hash"])), torn


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            why = error.strerror or str(error)
            raise AuditError(
                f"the audit log {path} cannot be locked ({why}), so nothing runs: some network drives are mounted "
                "without locks. Put the folder onto a disk of this machine"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write all of it, or leave the file as it was: on a full disk a part may fit."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(28, "No space left on device")
    except OSError:
        os.ftruncate(descriptor, size)
        raise
