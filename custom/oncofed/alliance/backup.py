"""Backups of kits with their state, and of an alliance's folder: one file, encrypted with age.

A kit may run meanwhile. Its files are replaced whole or grow by lines, so hard links, and how long each file was when
it was linked, hold a moment; it is taken again if something changed between the first link and the last.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO, Any

import psutil
import pyrage

from oncofed import __version__
from oncofed.alliance.facts import KIT_FILE, read_facts
from oncofed.alliance.sealing import identities_in
from oncofed.audit import RESTORED, AuditLog
from oncofed.client.secure_aggregation import SUMS_FILE
from oncofed.errors import AllianceError
from oncofed.flare.folders import STATE_FOLDER
from oncofed.privacy.ledger import note_restored
from oncofed.private_files import open_private, write_private

SCHEMA = 1
_ABOUT_FILE = "backup.json"
# Made anew by the service, and of no use on another machine.
_LEFT_OUT = frozenset({"tmp", "run", "__pycache__"})
_LINKS = ".backup."  # folder of a backup that is being taken, with its process's id
_UNFINISHED = ".unfinished"
# Grow by lines; others are replaced whole.
_GROWING = re.compile(r"\.(log|jsonl)(\.\d+)?$|^log\w*\.(txt|json)(\.\d+)?$")
_TRIES = 20
_SECONDS_BETWEEN_TRIES = 0.5


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds.

    Attributes:
        made: time, in UTC.
        kind: "site", "server", "relay", "person"; "alliance" of the folder with the root key.
        participant: whose kit; the alliance's folder has its name.
        files: how many.
        bytes: of them.
        audit: last line of the audit log, as ``Anchor`` writes it; empty without one.
        oncofed: version that made it.
    """

    made: str
    kind: str
    participant: str
    files: int
    bytes: int
    audit: str
    oncofed: str


def new_key(file: Path) -> str:
    """Write a new age identity, and return the recipient that goes with it.

    Args:
        file: new; only its owner can read it.

    Raises:
        AllianceError: the file exists.
    """
    identity = pyrage.x25519.Identity.generate()
    try:
        with open(file, "x", encoding="utf-8", opener=open_private) as out:
            out.write(f"# public key: {identity.to_public()}\n{identity}\n")
    except FileExistsError:
        raise AllianceError(f"{file} exists. Backups that it opens would be lost: name another file.") from None
    return str(identity.to_public())


def back_up(folder: Path, out: Path, recipients: Sequence[str]) -> BackedUp:
    """Write a kit with its state, or an alliance's folder, into one encrypted file.

    Args:
        folder: what to back up; links in it are left out.
        out: the file; written whole or not at all, and only its owner can read it.
        recipients: age recipients, ``age1...``; each can open it.

    Raises:
        AllianceError: no recipient, the file exists, or the state changed while it was taken, again and again.
        OSError: it cannot be written.
    """
    keys = [_recipient(text) for text in recipients]
    if not keys:
        raise AllianceError("expected an age recipient (age1...), or the file of a new key: --new-key backup.key")
    if out.exists():
        raise AllianceError(f"{out} exists. Name another file: a backup replaces none.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise AllianceError(f"{out} lies in what is backed up. Name a file elsewhere, best on another machine's disk.")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + _UNFINISHED)
    _remove_left_links(folder)
    # In the folder itself: hard links stay on one disk, and whoever may write there may back it up.
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_LINKS}{os.getpid()}.") as temporary:
        moment = _moment(folder, Path(temporary))
        about = _about(folder, moment)
        try:
            with open(unfinished, "wb", opener=open_private) as sealed, _written(about, moment) as tar:
                with _interruptible(tar) as source:
                    pyrage.encrypt_io(source, sealed, keys)
                sealed.flush()
                os.fsync(sealed.fileno())
            unfinished.rename(out)
        finally:
            unfinished.unlink(missing_ok=True)
    return about


def restore(file: Path, folder: Path, identity: Path) -> BackedUp:
    """Put a backup back into a new folder.

    The audit log then says so. What patients of a site spent after the backup is not known, so its ledger takes no
    further charge until somebody confirmed it (``privacy.ledger``).

    Args:
        file: the backup.
        folder: missing or empty. A state that is there is never written over.
        identity: file with an age identity, ``AGE-SECRET-KEY-1...``.

    Raises:
        AllianceError: the key does not open it, it breaks off, a newer version made it, or the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AllianceError(f"{folder} is not empty. {_compared(folder)}Name another folder, or move this one away.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.restored.") as temporary:
        place = Path(temporary) / "state"
        place.mkdir(mode=0o700)
        about = _unpacked(file, identity, place)
        if about.kind != "alliance":
            if about.kind == "site":
                note_restored(place, about.made)
                _stay_out_of_sums(place)
            AuditLog(place).write(RESTORED, made=about.made, by=about.oncofed)
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    return about


def _stay_out_of_sums(place: Path) -> None:
    """Have a site stay out of secure aggregation in jobs that ran.

    What it revealed after the backup is not known, and it reveals once for each model.
    """
    for state in (place / STATE_FOLDER).glob(f"*/{SUMS_FILE}"):
        write_private(state, b"put back from a backup")


@dataclass(frozen=True)
class _File:
    """A file at the moment of a backup: its name, where its bytes are, and how many of them are its."""

    name: str
    path: Path
    size: int
    mode: int


def _remove_left_links(folder: Path) -> None:
    """Remove the links of backups whose process was killed."""
    for left in folder.glob(f"{_LINKS}*"):
        if not psutil.pid_exists(int(left.name.split(".")[2])):
            shutil.rmtree(left, ignore_errors=True)


def _moment(folder: Path, links: Path) -> list[_File]:
    for attempt in range(_TRIES):
        before = _state(folder)
        taken = list(_linked(folder, links / str(attempt)))
        if _state(folder) == before:
            return taken
        shutil.rmtree(links / str(attempt), ignore_errors=True)
        time.sleep(_SECONDS_BETWEEN_TRIES)
    raise AllianceError(
        f"{folder} changed each of {_TRIES} times that it was looked at. Try again when less runs, or stop it: oncofed "
        "site stop"
    )


def _paths(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield a folder's files in order of their names: the audit log before the ledger that it speaks of."""
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(_LINKS)]
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            with contextlib.suppress(FileNotFoundError):  # just replaced or removed
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and not name.endswith(_UNFINISHED):
                    yield path, found


def _state(folder: Path) -> set[tuple[str, int, int]]:
    """Return which files there are; one that was replaced or rewritten is another."""
    return {
        (str(path), found.st_ino, 0 if _GROWING.search(path.name) else found.st_mtime_ns)
        for path, found in _paths(folder)
    }


def _linked(folder: Path, links: Path) -> Iterator[_File]:
    links.mkdir(mode=0o700)
    for number, (path, _) in enumerate(_paths(folder)):
        link = links / str(number)
        try:
            try:
                os.link(path, link)
            except FileNotFoundError:
                raise
            except OSError:  # a disk without hard links
                shutil.copy2(path, link)
            found = link.stat()
        except FileNotFoundError:
            continue
        yield _File(path.relative_to(folder).as_posix(), link, found.st_size, stat.S_IMODE(found.st_mode))


def _about(folder: Path, moment: Sequence[_File]) -> BackedUp:
    is_kit = (folder / KIT_FILE).is_file()
    kind, participant = "alliance", folder.name
    if is_kit:
        facts = read_facts(folder)
        kind, participant = facts.kind, facts.participant
    return BackedUp(
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        kind=kind,
        participant=participant,
        files=len(moment),
        bytes=sum(file.size for file in moment),
        audit=_last_line(folder) if is_kit else "",
        oncofed=__version__,
    )


def _last_line(folder: Path) -> str:
    log = AuditLog(folder)
    if not log.path.is_file():
        return ""
    _, last = log.verify()
    return str(last) if last else ""


@contextlib.contextmanager
def _written(about: BackedUp, moment: Sequence[_File]) -> Iterator[IO[bytes]]:
    """Yield the archive as it is written by a thread.

    Raises:
        OSError: a file could not be read.
    """
    ours, theirs = os.pipe()
    problems: list[BaseException] = []

    def write() -> None:
        try:
            with (
                os.fdopen(theirs, "wb") as pipe,
                tarfile.open(fileobj=pipe, mode="w|") as tar,
            ):
                text = json.dumps({"schema": SCHEMA, **asdict(about)}).encode()
                _add(tar, _ABOUT_FILE, len(text), 0o600, io.BytesIO(text))
                for file in moment:
                    with file.path.open("rb") as content:
                        _add(tar, f"files/{file.name}", file.size, file.mode, content)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that reads
            problems.append(error)

    thread = threading.Thread(target=write, name="backup")
    thread.start()
    with os.fdopen(ours, "rb") as pipe:
        try:
            yield pipe
        finally:
            while pipe.read(1 << 20):  # if the reader failed, the writer must not wait for it
                pass
            thread.join()
    if problems:
        raise problems[0]


class _Stream:
    """A file for age's library, which turns Ctrl-C into an error of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.interrupted: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except BaseException as error:
            self.interrupted = error
            raise

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except BaseException as error:
            self.interrupted = error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _interruptible(file: IO[bytes]) -> Iterator[_Stream]:
    """Yield a stream for age's library; raise what a signal's handler raised in it."""
    stream = _Stream(file)
    try:
        yield stream
    except Exception:
        if isinstance(stream.interrupted, KeyboardInterrupt | SystemExit):
            raise stream.interrupted from None
        raise


def _add(tar: tarfile.TarFile, name: str, size: int, mode: int, content: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    tar.addfile(entry, content)


def _unpacked(file: Path, identity: Path, place: Path) -> BackedUp:
    keys = _identities(identity)
    if not file.is_file():
        raise AllianceError(f"{file} is missing, or no file. Expected a backup")
    ours, theirs = os.pipe()
    found: list[BackedUp | BaseException] = []

    def read() -> None:
        with os.fdopen(ours, "rb") as pipe:
            try:
                found.append(_unpack(pipe, place, file))
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that decrypts
                found.append(error)
            while pipe.read(1 << 20):
                pass

    thread = threading.Thread(target=read, name="restore")
    thread.start()
    try:
        with os.fdopen(theirs, "wb") as pipe, file.open("rb") as sealed, _interruptible(pipe) as target:
            pyrage.decrypt_io(sealed, target, keys)
    except (pyrage.DecryptError, OSError) as error:
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else f"{identity} does not open it, or it "
        )
        why += "" if isinstance(error, OSError) and error.strerror else "breaks off or was changed"
        raise AllianceError(f"{file}: {why}. Nothing was put back.") from None
    finally:
        thread.join()
    (outcome,) = found
    if isinstance(outcome, AllianceError):
        raise outcome
    if isinstance(outcome, OSError) and outcome.errno:
        raise AllianceError(f"{place.parent.parent}: {outcome.strerror}. Nothing was put back.") from None
    if isinstance(outcome, BaseException):
        raise AllianceError(f"{file} holds no whole backup ({type(outcome).__name__}). Nothing was put back.") from None
    return outcome


def _unpack(pipe: IO[bytes], place: Path, file: Path) -> BackedUp:
    with tarfile.open(fileobj=pipe, mode="r|") as tar:
        about: BackedUp | None = None
        count = size = 0
        for entry in tar:
            content = tar.extractfile(entry) if entry.isreg() else None
            if content is None:
                raise AllianceError(f"{file} holds {entry.name!r}, which is no file")
            if about is None:
                about = _read_about(entry.name, content.read(), file)
                continue
            path = PurePosixPath(entry.name)
            if path.is_absolute() or ".." in path.parts or path.parts[0] != "files" or len(path.parts) < 2:
                raise AllianceError(f"{file} holds {entry.name!r}, which would lie outside of its folder")
            target = place.joinpath(*path.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(target, "xb", opener=open_private) as out:
                shutil.copyfileobj(content, out, 1 << 20)
            target.chmod(entry.mode & 0o700 or 0o600)
            count, size = count + 1, size + entry.size
    if about is None or (count, size) != (about.files, about.bytes):
        raise AllianceError(f"{file} holds no whole backup: {count} files of {about.files if about else '?'}")
    return about


def _read_about(name: str, text: bytes, file: Path) -> BackedUp:
    values: Any = json.loads(text) if name == _ABOUT_FILE else None
    if not isinstance(values, dict) or "schema" not in values:
        raise AllianceError(f"{file} is no backup of oncofed")
    if values.pop("schema") != SCHEMA:
        raise AllianceError(
            f"{file} was made by oncofed {values.get('oncofed')}, in a form that this version does not know. Put it "
            "back with that version or a later one."
        )
    return BackedUp(**values)


def _compared(folder: Path) -> str:
    """Return what a folder holds, in a sentence; empty if it is no kit."""
    try:
        facts = read_facts(folder)
        last = _last_line(folder)
    except (AllianceError, OSError):
        return ""
    lines = f", whose audit log has {last.partition(':')[0]} lines" if last else ""
    return f"It holds {facts.participant}'s kit{lines}: a backup may be older and is not written over it. "


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text.strip())
    except pyrage.RecipientError:
        raise AllianceError(f"{text!r} is no age recipient; expected age1..., the public key of age-keygen") from None


def _identities(file: Path) -> list[pyrage.x25519.Identity]:
    try:
        keys = identities_in(file)
    except (OSError, ValueError, pyrage.IdentityError) as error:
        raise AllianceError(f"{file}: no age key can be read ({type(error).__name__})") from None
    if not keys:
        raise AllianceError(f"{file} has no line AGE-SECRET-KEY-1..., as age-keygen writes it")
    return keys
