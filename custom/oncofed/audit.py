"""A site's append-only, hash-chained audit log.

One JSON object per line. Each holds the digest of the previous line and its own: SHA-256 over the rest of the line as
it was written. An anchor, the number and digest of a line stored elsewhere, reveals a cut-off tail; the alliance's
server stores one of each site with every message.
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
# Entries that are written in several places, or searched for.
ADMITTED, REFUSED, LEFT, HELD_BACK = "job admitted", "job refused", "message left", "message held back"
RECEIVED, MASKED, CHARGED = "code received", "update masked", "privacy charged"
ANCHORED = "a site's last line"
RESTORED = "put back from a backup"
LET_IN, COMMANDED = "let in", "command"

_FIRST = "0" * 64
BREAKS_OFF = "it breaks off"  # a last line that was being written; the next one mends it
_TORN = "a line that was being written when the machine stopped"
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Anchor:
    """A line that the log has contained.

    Attributes:
        number: of the line, from 1.
        digest: of the line.
    """

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """Parse an anchor.

        Raises:
            ValueError: not an anchor.
        """
        number, _, digest = text.partition(":")
        if len(digest) != len(_FIRST):
            raise ValueError(text)
        int(digest, 16)
        return cls(int(number), digest)


@dataclass(frozen=True)
class Problem:
    """A problem of a log.

    Attributes:
        line: number in the file, from 1; 0: no single line.
        what: description.
    """

    line: int
    what: str


class AuditLog:
    """The log of one participant.

    Args:
        folder: of the participant.
        file: the log in it.
    """

    def __init__(self, folder: Path, file: Path = AUDIT_FILE) -> None:
        self.path = folder / file

    def write(self, what: str, who: str | None = None, **facts: Any) -> Anchor:
        """Append a line and sync it to disk.

        Several processes may write.

        Args:
            what: kind of event, a constant text.
            who: person; None: this process's user on this machine.
            facts: further values; nothing about patients.

        Raises:
            AuditError: not written, so the recorded action must not happen.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path) as descriptor:
                last, torn = _end_of(descriptor)
                text = "\n" if torn else ""
                if torn and (whole := _following(torn, last)):
                    last = whole
                elif torn:
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
        """Yield the complete, readable lines in order; none without a log."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def verify(self, anchors: tuple[Anchor, ...] = ()) -> tuple[list[Problem], Anchor | None]:
        """Return the log's problems and its last anchor.

        Args:
            anchors: lines that the log must contain.

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
                    what = "it is no entry" if line.endswith(b"\n") else BREAKS_OFF
                    problems.append(Problem(position, what))
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
    """Return a line that follows ``last``, and its anchor."""
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


def _following(torn: bytes, last: Anchor) -> Anchor | None:
    """Return the anchor of a line that lacks nothing but its end; None of one that lacks more."""
    entry = _parsed(torn + b"\n")
    if entry is None or entry["hash"] != _digest(entry):
        return None
    follows = (entry["n"], entry["previous"]) == (last.number + 1, last.digest)
    return Anchor(last.number + 1, str(entry["hash"])) if follows else None


def _end_of(descriptor: int) -> tuple[Anchor, bytes]:
    """Return the anchor of the last complete line.

    And the incomplete line after it, if any.
    """
    size = os.lseek(descriptor, 0, os.SEEK_END)
    begin = max(0, size - _LONGEST_LINE)
    end = os.pread(descriptor, size - begin, begin)
    complete, _, torn = end.rpartition(b"\n")
    if not complete:
        return Anchor(0, _FIRST), torn
    entry = json.loads(complete.rpartition(b"\n")[2])
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
    """Write all data, or leave the file unchanged.

    A full disk may take a part.
    """
    size = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(28, "No space left on device")
    except OSError:
        os.ftruncate(descriptor, size)
        raise
