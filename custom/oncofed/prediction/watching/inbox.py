"""Stores received images safely, without identifiers in paths.

A file gets its final name only once it is complete.

Files are ``INBOX/STUDY/SERIES/INSTANCE.dcm``, each name a keyed hash of its UID. While a series is received, it holds a
hidden file for each association that sends it. If an association breaks off, its file stays: the series is incomplete.
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

from oncofed.atomic import flush_to_disk
from oncofed.data.dicom.header_types import BrokenFile, ImageHeader, SlideHeader
from oncofed.data.dicom.headers import read_header
from oncofed.private_files import random_secret

KEY_FILE = ".key"  # of the hashes; also marks a folder as an inbox
_COMING = ".coming"  # holds files while they are received
_OPEN = ".open-"  # in a series: an association that sends it was not released yet
_NAME_BYTES = 12
_BUFFER = 1 << 20
_BETWEEN_LOOKS = 16 << 20  # bytes received between two checks of free space
_FEWEST_FILES = 1_000
# PS3.4, table B.2-1.
SUCCESS, OUT_OF_RESOURCES, NOT_THAT_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000


@dataclass(frozen=True)
class Limits:
    """Limits on what is accepted.

    Attributes:
        largest: largest object in bytes.
        reserve: bytes kept free on the disk.
    """

    largest: int = 4 << 30
    reserve: int = 2 << 30


class StoreRefused(Exception):  # noqa: N818 - an answer, not a fault
    """An object is not stored; the message names no patient.

    Attributes:
        status: of PS3.4, table B.2-1.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Inbox:
    """Stores received images.

    Args:
        folder: created if missing, readable by its owner only.
        limits: on what is accepted.

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
        self._key = random_secret(folder / KEY_FILE)

    def full_reason(self) -> str:
        """Return why nothing more is accepted; empty: space is left."""
        there = os.statvfs(self.folder)
        free = there.f_bavail * there.f_frsize
        if free < self.limits.reserve:
            return f"the disk is nearly full: {free >> 20} MiB free, {self.limits.reserve >> 20} are kept"
        # File systems that create inodes on demand report 0.
        if there.f_files and there.f_favail < _FEWEST_FILES:
            return f"the disk holds nearly as many files as it can: {there.f_favail} more"
        return ""

    def begin(self, sop_class: str, instance: str, syntax: str) -> IncomingObject:
        """Open a temporary file for an incoming object."""
        return IncomingObject(self, self._coming / secrets.token_hex(_NAME_BYTES), sop_class, instance, syntax)

    def keep(self, incoming: IncomingObject, association: str) -> Path:
        """Move a complete object to its series' folder.

        The file is on disk before this returns. Sending the same object again changes nothing; another object with the
        same UID replaces it.

        Raises:
            StoreRefused: it is no image, or not the announced object.
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
                flush_to_disk(series)
        except OSError as error:
            raise _unwritten(error) from None
        finally:
            incoming.discard()
        return series

    def settle(self, series: Path, alive: Iterable[str]) -> None:
        """Mark a series complete after its association was released.

        This also ends the wait for earlier associations that broke off.

        Args:
            series: folder of the series.
            alive: other open associations, which may be sending the series too.
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
        """Return whether associations still send the series, or broke off."""
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
        # Never use a received UID in a path: it may hold anything.
        study, series, instance = (self._name(uid) for uid in (header.study, header.series, header.instance))
        return self.folder / study / series / f"{instance}.dcm"

    def _name(self, uid: str) -> str:
        return hashlib.blake2b(uid.encode(), key=self._key, digest_size=_NAME_BYTES).hexdigest()


class IncomingObject:
    """Temporary file of an object that is being received.

    Replaces the temporary file of pynetdicom, which would stay behind for ever after a broken connection. Once the
    object is refused, further bytes are dropped.

    Attributes:
        path: temporary file.
        sop_class: as announced.
        instance: its SOP Instance UID, as announced.
        refusal: why it will not be stored, once known.
    """

    def __init__(self, inbox: Inbox, path: Path, sop_class: str, instance: str, syntax: str) -> None:
        self.path, self.sop_class, self.instance = path, sop_class, instance
        self.refusal: StoreRefused | None = None
        self._inbox = inbox
        self._size, self._looked_at = 0, 0
        self._file: BinaryIO | None = None
        self._attempt(lambda: self._open(file_header(sop_class, instance, syntax)))

    @property
    def name(self) -> str:
        """Path of the temporary file, which pynetdicom removes if left."""
        return str(self.path)

    @property
    def file(self) -> IncomingObject:
        """Return itself: pynetdicom flushes the ``file`` of a temporary file."""
        return self

    def flush(self) -> None:
        """Do nothing: pynetdicom flushes every few kilobytes."""

    def write(self, data: bytes) -> None:
        """Append received bytes."""
        self._attempt(lambda: self._append(data))

    def finish(self) -> None:
        """Flush the file to disk.

        Raises:
            StoreRefused: it is not stored.
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
        """Remove the temporary file, unless it was stored."""
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


def file_header(sop_class: str, instance: str, syntax: str) -> bytes:
    """Return a file's header (PS3.10, section 7.1).

    Written by hand, since an announced UID may be invalid and must still be kept as it is.
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
        flush_to_disk(folder.parent)
