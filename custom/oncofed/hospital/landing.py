"""Where pulled objects arrive, and become files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread

from oncofed.atomic import flush_to_disk
from oncofed.data.deidentify import LeftOut, Options, deidentified_file
from oncofed.data.dicom.header_types import ObjectHeader
from oncofed.data.dicom.headers import read_header
from oncofed.errors import DataError, OncofedError
from oncofed.hospital.archive import Series, Stopped
from oncofed.hospital.pace import Pace
from oncofed.hospital.pulled import Line, PulledLog
from oncofed.prediction.watching.inbox import file_header

IMAGES = "images"
_ARRIVING = ".arriving"
_NAME_BYTES = 12
_BUFFER = 1 << 20
_BETWEEN_LOOKS = 16 << 20  # bytes that arrive between two checks of free space
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OncofedError):
    """No room for another object."""


@dataclass
class Arrived:
    """What has arrived in this pull.

    Attributes:
        objects: number of objects kept.
        bytes: of them, as they arrived.
        left_out: why -> number of objects that were not kept.
        unasked: number of objects that are broken, another patient's than their study, or that nobody asked for.
    """

    objects: int = 0
    bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    unasked: int = 0


class Landing:
    """Turns what arrives into files of a folder.

    A file has its name only once it is complete, on disk, and the object that was asked for. Names are keyed digests of
    UIDs: what an archive sends becomes no part of a path.

    Args:
        folder: of the pull.
        log: of that folder.
        key: secret from which names, and pseudonyms, follow.
        options: how objects are de-identified; None: they are kept as they are.
        pace: at which bytes may arrive.
        keep_free: bytes that stay free on the disk.
        stop: set when the work ends.
    """

    def __init__(
        self,
        folder: Path,
        log: PulledLog,
        key: bytes,
        options: Options | None,
        pace: Pace,
        keep_free: int,
        stop: threading.Event,
    ) -> None:
        self.folder, self.log, self.pace, self.stop = folder, log, pace, stop
        self._key, self._options, self._keep_free = key, options, keep_free
        self.arrived = Arrived()
        self._expected: dict[str, Series] = {}
        self._others: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._arriving = folder / _ARRIVING
        self._arriving.mkdir(mode=0o700, exist_ok=True)
        self.clear()

    def clear(self) -> None:
        """Remove what has arrived in part."""
        for left in self._arriving.iterdir():
            left.unlink(missing_ok=True)

    def expect(self, series: Series) -> None:
        """Let a series' objects in."""
        self._expected[series.uid] = series

    def is_others(self, series: str, instance: str) -> bool:
        """Return whether an object arrived that is another patient's than its study."""
        with self._lock:
            return (series, instance) in self._others

    def count_of_others(self, series: str) -> int:
        """Return the number of a series' objects that are another patient's than its study."""
        with self._lock:
            return sum(uid == series for uid, _ in self._others)

    def begin(self, sop_class: str, instance: str, syntax: str) -> ArrivingFile:
        """Open a file for an object that begins to arrive.

        Args:
            sop_class: as announced; empty: a complete file arrives, with its own header.
            instance: its UID, as announced.
            syntax: transfer syntax, as agreed.

        Raises:
            Stopped: the work ends.
            HoursOverError: nothing may arrive now.
            DiskFullError: there is no room.
        """
        if self.stop.is_set():
            raise Stopped
        self.pace.require_hours()
        path = self._arriving / secrets.token_hex(_NAME_BYTES)
        return ArrivingFile(
            self, path, sop_class, instance, file_header(sop_class, instance, syntax) if sop_class else b""
        )

    def digest(self, text: str) -> str:
        """Return a keyed digest, which names a patient or study in a log or on a terminal."""
        return hashlib.blake2b(text.encode(), key=self._key[:64], digest_size=6).hexdigest()

    def require_room(self) -> None:
        """Require free space on the disk.

        Raises:
            DiskFullError: there is too little.
        """
        there = os.statvfs(self.folder)
        free = there.f_bavail * there.f_frsize
        if free <= self._keep_free:
            raise DiskFullError(
                f"the disk is full: {free >> 20:,} MiB are free, and {self._keep_free >> 20:,} stay free "
                "(keep_free_gb). Free some space, and run the command again: it goes on"
            )

    def keep(self, path: Path, announced: tuple[str, str], sha256: str, size: int) -> None:
        """Make a complete object a file of the folder, and log it.

        What is broken, or was not asked for, is not kept: the pull finds out what has not arrived. Nor is what is
        another patient's than the archive says of its study.

        Raises:
            DiskFullError: it cannot be written.
        """
        header = read_header(path)
        series = self._expected.get(header.series) if isinstance(header, ObjectHeader) else None
        if (
            not isinstance(header, ObjectHeader)
            or series is None
            or header.study != series.study.uid
            or (announced[0] and announced != (header.sop_class, header.instance))
        ):
            with self._lock:
                self.arrived.unasked += 1
            return
        if _patient_id(path) != series.study.patient:
            with self._lock:
                self._others.add((series.uid, header.instance))
                self.arrived.unasked += 1
            return
        line = Line(
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "kept",
            self.digest(series.study.patient),
            series.study.uid,
            series.uid,
            header.instance,
            sha256,
        )
        before = self.log.line(series.uid, header.instance)
        if before and (before.state, before.sha256, before.patient) == ("kept", sha256, line.patient):
            return
        try:
            line = self._placed(path, line, size)
        except (LeftOut, DataError) as error:
            line = Line(**{**vars(line), "state": "left out", "note": str(error)})
        self.log.add(line)
        if before and before.file and before.file != line.file:
            (self.folder / before.file).unlink(missing_ok=True)
        with self._lock:
            if line.state == "kept":
                self.arrived.objects += 1
                self.arrived.bytes += size
            else:
                self.arrived.left_out[line.note] = self.arrived.left_out.get(line.note, 0) + 1

    def _placed(self, path: Path, line: Line, size: int) -> Line:
        """Move an object, or its de-identified copy, to its place."""
        sha256 = line.sha256
        if self._options is None:
            names = (self._name(uid) for uid in (line.study, line.series, line.instance))
            name = "/".join(names) + ".dcm"
        else:
            name, content = self._deidentified(path)
            path.write_bytes(content)
            flush_to_disk(path)
            sha256, size = hashlib.sha256(content).hexdigest(), len(content)
        target = self.folder / IMAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        return Line(**{**vars(line), "file": f"{IMAGES}/{name}", "bytes": size, "file_sha256": sha256})

    def _deidentified(self, path: Path) -> tuple[str, bytes]:
        assert self._options is not None
        try:
            return deidentified_file(path, self._key, self._options)
        except (LeftOut, DataError, OSError):
            raise
        except Exception:  # noqa: BLE001 - a broken object raises any type of error, with values in its text
            raise DataError("cannot be read, so that nobody knows what is in it") from None

    def _name(self, uid: str) -> str:
        return hashlib.blake2b(uid.encode(), key=self._key[:64], digest_size=_NAME_BYTES).hexdigest()


class ArrivingFile:
    """An object that arrives.

    Attributes:
        path: temporary file.
        sop_class: as announced; empty: not announced.
    """

    def __init__(self, landing: Landing, path: Path, sop_class: str, instance: str, header: bytes) -> None:
        self.path, self.sop_class = path, sop_class
        self._landing, self._instance = landing, instance
        self._digest, self._size, self._looked_at = hashlib.sha256(), 0, 0
        landing.require_room()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO | None = os.fdopen(descriptor, "wb", _BUFFER)
        if header:
            self._append(header)

    @property
    def name(self) -> str:
        """Path of the temporary file."""
        return str(self.path)

    @property
    def file(self) -> ArrivingFile:
        """Return itself: pynetdicom flushes the ``file`` of a temporary file."""
        return self

    def flush(self) -> None:
        """Do nothing: pynetdicom flushes every few kilobytes."""

    def write(self, data: bytes) -> None:
        """Append bytes, at the pace that is allowed.

        Raises:
            Stopped: the work ends.
            DiskFullError: there is no room.
        """
        self._landing.pace.take(len(data))
        self._append(data)

    def keep(self) -> None:
        """Keep the object, which is complete.

        Raises:
            Stopped: the work ends.
            DiskFullError: there is no room.
        """
        try:
            with _full_disk_told():
                assert self._file is not None
                self._file.flush()
                os.fsync(self._file.fileno())
                self.close()
                if self._landing.stop.is_set():
                    raise Stopped
                self._landing.keep(self.path, (self.sop_class, self._instance), self._digest.hexdigest(), self._size)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what has arrived, unless it is kept."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        self._size += len(data)
        if self._size - self._looked_at > _BETWEEN_LOOKS:
            self._looked_at = self._size
            self._landing.require_room()
        self._digest.update(data)
        with _full_disk_told():
            if self._file is not None:
                self._file.write(data)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _patient_id(path: Path) -> str | None:
    """Return an object's PatientID; None: it cannot be read."""
    try:
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # noqa: BLE001 - a broken object raises any type of error, with values in its text
        return None


@contextlib.contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskFullError(
            f"the disk is full ({error.strerror}). Free some space, and run the command again: it goes on"
        ) from None
