"""A DICOM receiver for tests, and its peers.

One peer is honest, one may send anything.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import Verification

from oncofed.prediction.watching.application_entity import Address
from oncofed.prediction.watching.inbox import Inbox, Limits
from oncofed.prediction.watching.storage_scp import StorageSCP
from watched import eventually

TITLE, SCANNER = "ONCOFED", "SCANNER"


@dataclass
class Desk:
    """A receiver that listens, and what it told."""

    inbox: Inbox
    receiver: StorageSCP
    told: list[tuple[str, str]] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    def until(self, kind: str) -> str:
        """Return the last line of a kind, once it comes."""
        eventually(lambda: kind in self.kinds())
        return [text for told, text in self.told if told == kind][-1]

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.inbox.folder.rglob("*") if path.is_file())

    @property
    def images(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".dcm"]


def opened(folder: Path, callers: Sequence[str] = (SCANNER,), limits: Limits | None = None) -> Desk:
    told: list[tuple[str, str]] = []
    inbox = Inbox(folder, limits or Limits(reserve=0))
    notify = lambda kind, text: told.append((kind, text))  # noqa: E731
    return Desk(inbox, StorageSCP(inbox, Address("127.0.0.1", 0), TITLE, callers, notify), told)


def call(
    desk: Desk,
    title: str = SCANNER,
    called: str = TITLE,
    classes: Sequence[str] = (MRImageStorage, CTImageStorage),
) -> Association:
    entity = AE(title)
    entity.add_requested_context(Verification)
    for sop_class in classes:
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian])
    return entity.associate("127.0.0.1", desk.receiver.port, ae_title=called)


def send(association: Association, files: Sequence[Path | Dataset]) -> list[int]:
    return [association.send_c_store(file).Status for file in files]


class Bare:
    """A peer that writes PS3.8 by hand.

    It may send what the library would not.
    """

    def __init__(self, desk: Desk) -> None:
        self.socket = socket.create_connection(("127.0.0.1", desk.receiver.port), timeout=10)

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def is_ended(self, seconds: float = 10.0) -> bool:
        """Return whether the other side ended the association."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(4096)[:1] in {b"", b"\x07"}
        except TimeoutError:
            return False
        except OSError:
            return True

    def send_until_ended(self, data: bytes, most: int = 1000) -> int:
        """Send repeatedly until the other side ends it.

        Returns how often.
        """
        for number in range(most):
            with contextlib.suppress(ConnectionError):
                self.send(data)
            if self.is_ended(0.001):
                return number
        return most

    def associate(self) -> None:
        item = lambda kind, data: struct.pack(">BBH", kind, 0, len(data)) + data  # noqa: E731 - as in the standard
        context = item(0x30, MRImageStorage.encode()) + item(0x40, ExplicitVRLittleEndian.encode())
        user = item(0x51, struct.pack(">I", 0)) + item(0x52, b"1.2.3")
        body = struct.pack(">HH16s16s32x", 1, 0, TITLE.ljust(16).encode(), SCANNER.ljust(16).encode())
        body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, bytes([1, 0, 0, 0]) + context) + item(0x50, user)
        self.send(struct.pack(">BBI", 1, 0, len(body)) + body)
        assert self.answer()[0] == 2

    def answer(self) -> tuple[int, bytes]:
        head = self._read(6)
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self._read(length)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the connection ended"
            data += more
        return data

    @staticmethod
    def data(value: bytes, control: int) -> bytes:
        fragment = struct.pack(">IBB", len(value) + 2, 1, control) + value
        return struct.pack(">BBI", 4, 0, len(fragment)) + fragment

    @staticmethod
    def store_command(dataset: Dataset) -> bytes:
        element = lambda number, value: struct.pack("<HHI", 0, number, len(value)) + value  # noqa: E731
        uid = lambda text: text.encode() + bytes(len(text) % 2)  # noqa: E731
        body = element(0x0002, uid(dataset.SOPClassUID)) + element(0x0100, struct.pack("<H", 1))
        body += element(0x0110, struct.pack("<H", 7)) + element(0x0700, struct.pack("<H", 0))
        body += element(0x0800, struct.pack("<H", 1)) + element(0x1000, uid(dataset.SOPInstanceUID))
        return element(0x0000, struct.pack("<I", len(body))) + body

    @staticmethod
    def encoded(dataset: Dataset) -> bytes:
        return encode(dataset, is_implicit_vr=False, is_little_endian=True) or b""

    def store(self, command: bytes, dataset: Dataset) -> int:
        """Return the status that comes back."""
        self.send(self.data(command, 3) + self.data(self.encoded(dataset), 2))
        kind, value = self.answer()
        assert kind == 4
        return int(decode(BytesIO(value[6:]), True, True).Status)
