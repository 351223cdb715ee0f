"""A folder for images that are received: no identifier in a path, nothing half-written under its final name.

``INBOX/STUDY/SERIES/INSTANCE.dcm``, each a keyed hash of its UID. While a series comes in, it holds a hidden file for
each association that brings it; one whose association broke off keeps its file, and is not complete.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import secrets
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from oncofed.data.dicom.header_types import BrokenFile, ImageHeader, SlideHeader
from oncofed.data.dicom.headers import read_header
from oncofed.data.manifest import write_whole

KEY_FILE = ".key"  # of the hashes; it also marks a folder as an inbox
_COMING = ".coming"  # where files lie while they come in
_OPEN = ".open-"  # of a series: an association that brings it has not ended well
_KEY_BYTES, _NAME_BYTES = 32, 12
_BUFFER = 1 << 20
_BETWEEN_LOOKS = 16 << 20  # bytes of an object that come in between two looks at the disk
_FEWEST_FILES = 1_000
# PS3.4, table B.2-1.
SUCCESS, OUT_OF_RESOURCES, NOT_THAT_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
# What our reader takes for an image.


@dataclass(frozen=True)
class Limits:
    """How much is taken in.

    Attributes:
        largest: bytes of one object.
        reserve: bytes that stay free on the disk.
    """

    largest: int = 4 << 30
    reserve: int = 2 << 30


class StoreRefused(Exception):  # noqa: N818 - an answer, not a fault
    """An object is not kept; the message says why and names nobody.

    Attributes:
        status: of PS3.4, table B.2-1.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Inbox:
    """Where received images lie.

    Args:
        folder: made where it is missing, for its owner alone.
        limits: of what is taken in.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder = folder
        self.limits = limits or Limits()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._coming = folder / _COMING
        self._coming.mkdir(mode=0o700, exist_ok=True)
        for left in self._coming.iterdir():
            left.unlink()
        self._key = _key(folder)

    def full_reason(self) -> str:
        """Return why nothing more is taken in; empty where there is room."""
        there = os.statvfs(self.folder)
        free = there.f_bavail * there.f_frsize
        if free < self.limits.reserve:
            return f"the disk is nearly full: {free >> 20} MiB free, {self.limits.reserve >> 20} are kept"
        # Some file systems make as many as are wanted, and say 0.
        if there.f_files and there.f_favail < _FEWEST_FILES:
            return f"the disk holds nearly as many files as it can: {there.f_favail} more"
        return ""

    def begin(self, sop_class: str, instance: str, syntax: str) -> IncomingObject:
        """Return where an object that comes in is written to."""
        return IncomingObject(self, self._coming / secrets.token_hex(_NAME_BYTES), sop_class, instance, syntax)

    def keep(self, incoming: IncomingObject, association: str) -> Path:
        """Put an object where it belongs, whole and safe from a power cut, and return its series' folder.

        The same again changes nothing; another one with the same UID takes its place.

        Raises:
            Refusal: it is no image, or not what the sender said.
        """
        incoming.finish()
        try:
            path = self._place(incoming)
            series = path.parent
            _make_private_folder(series.parent)
            _make_private_folder(series)
            (series / f"{_OPEN}{association}").touch(0o600)
            if path.is_file() and filecmp.cmp(path, incoming.path, shallow=False):
                incoming.discard()
            else:
                incoming.path.replace(path)
                _sync(series)
        except OSError as error:
            raise _unwritten(error) from None
        finally:
            incoming.discard()
        return series

    def settle(self, series: Path, alive: Iterable[str]) -> None:
        """Note that an association brought a series to its end, as an earlier one that broke off did not.

        Args:
            series: its folder.
            alive: associations that are still going on, and may be bringing it too.
        """
        going_on = {f"{_OPEN}{association}" for association in alive}
        for left in series.glob(f"{_OPEN}*"):
            if left.name not in going_on:
                left.unlink(missing_ok=True)

    @staticmethod
    def is_inbox(folder: Path) -> bool:
        """Return whether a folder is an inbox."""
        return (folder / KEY_FILE).is_file() and (folder / _COMING).is_dir()

    @staticmethod
    def is_incomplete(series: Path) -> bool:
        """Return whether an association brings a series, or broke off before it had brought all of it."""
        return any(series.glob(f"{_OPEN}*"))

    def _place(self, incoming: IncomingObject) -> Path:
        header = read_header(incoming.path)
        if not isinstance(header, ImageHeader | SlideHeader):
            why = "it cannot be read" if isinstance(header, BrokenFile) else "it is no image"
            raise StoreRefused(NOT_UNDERSTOOD, why)
        if (header.sop_class, header.instance) != (incoming.sop_class, incoming.instance):
            raise StoreRefused(NOT_THAT_CLASS, "it is not the object that was announced")
        if not (header.study and header.series and header.instance):
            raise StoreRefused(NOT_UNDERSTOOD, "it does not say which study and series it is of")
        # Never a part of a path as it came: a UID may be anything that somebody sent.
        study, series, instance = (self._name(uid) for uid in (header.study, header.series, header.instance))
        return self.folder / study / series / f"{instance}.dcm"

    def _name(self, uid: str) -> str:
        return hashlib.blake2b(uid.encode(), key=self._key, digest_size=_NAME_BYTES).hexdigest()


class IncomingObject:
    """An object while it comes in: its bytes go into a hidden file, and nowhere once it will not be kept.

    It stands where the network library would have a temporary file of its own, which hold what a connection that broke
    off had sent, for ever.

    Attributes:
        path: the hidden file.
        sop_class: as announced.
        instance: its SOP Instance UID, as announced.
        refusal: why it will not be kept, as soon as that is known.
    """

    def __init__(self, inbox: Inbox, path: Path, sop_class: str, instance: str, syntax: str) -> None:
        self.path, self.sop_class, self.instance = path, sop_class, instance
        self.refusal: StoreRefused | None = None
        self._inbox = inbox
        self._size, self._looked_at = 0, 0
        self._file: BinaryIO | None = None
        self._attempt(lambda: self._open(_preamble(sop_class, instance, syntax)))

    @property
    def name(self) -> str:
        """The hidden file, which the network library removes where it is still there in the end."""
        return str(self.path)

    @property
    def file(self) -> IncomingObject:
        """Itself: the network library flushes the file inside of a temporary one."""
        return self

    def flush(self) -> None:
        """Do nothing: the network library asks for it after each few kilobytes."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._attempt(lambda: self._append(data))

    def finish(self) -> None:
        """Write all of it, safe from a power cut.

        Raises:
            Refusal: it is not kept.
        """
        self._attempt(self._sync)
        if self.refusal is not None:
            raise self.refusal
        self.close()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def discard(self) -> None:
        """Remove what lies under the hidden name; nothing where it was kept."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.refusal is not None:
            return
        try:
            step()
        except StoreRefused as refusal:
            self.refusal = refusal
        except OSError as error:
            self.refusal = _unwritten(error)
        if self.refusal is not None:
            self.discard()

    def _open(self, preamble: bytes) -> None:
        self._require_room()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        file = self._file = os.fdopen(descriptor, "wb", _BUFFER)
        file.write(preamble)

    def _append(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._inbox.limits.largest:
            raise StoreRefused(OUT_OF_RESOURCES, f"it is larger than {self._inbox.limits.largest >> 20} MiB")
        if self._size - self._looked_at > _BETWEEN_LOOKS:
            self._looked_at = self._size
            self._require_room()
        if self._file is not None:
            self._file.write(data)

    def _sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _require_room(self) -> None:
        why = self._inbox.full_reason()
        if why:
            raise StoreRefused(OUT_OF_RESOURCES, why)


def _preamble(sop_class: str, instance: str, syntax: str) -> bytes:
    """Return what comes before a data set in a file: PS3.10, section 7.1.

    By hand: what a sender announces may be no valid UID, and still is what the object is called.
    """
    uids = ((0x0002, sop_class), (0x0003, instance), (0x0010, syntax), (0x0012, PYDICOM_IMPLEMENTATION_UID))
    version = struct.pack("<HH2s2xI2s", 0x0002, 0x0001, b"OB", 2, b"\x00\x01")
    elements = version + b"".join(_uid(number, uid) for number, uid in uids)
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements))
    return bytes(128) + b"DICM" + length + elements


def _uid(number: int, uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    value += bytes(len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, number, b"UI", len(value)) + value


def _unwritten(error: OSError) -> StoreRefused:
    return StoreRefused(OUT_OF_RESOURCES, f"it cannot be written: {error.strerror or error}")


def _make_private_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Have a folder's entries outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(folder: Path) -> bytes:
    path = folder / KEY_FILE
    if not path.is_file():
        write_whole(path, secrets.token_bytes(_KEY_BYTES), 0o600)
    return path.read_bytes()[:_KEY_BYTES]
