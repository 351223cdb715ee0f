"""What is sent to the port: who may, where it lies, and what a peer that means harm achieves. Real associations."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    RTPlanStorage,
    SegmentationStorage,
)

from dicoms import make_series, make_xray, volume

pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[dicom]'")

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import Verification

from oncofed.errors import SpecError
from oncofed.prediction import receiver
from oncofed.prediction.inbox import Inbox, Limits
from oncofed.prediction.peers import Address, Sparing, parse_address, parse_peer, parse_titles
from oncofed.prediction.receiver import Receiver

TITLE, SCANNER = "ONCOFED", "SCANNER"
TAKEN, FULL, NOT_AS_SAID, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000


@dataclass
class Desk:
    """A receiver that listens, and what it told."""

    inbox: Inbox
    receiver: Receiver
    told: list[tuple[str, str]] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    def until(self, kind: str) -> str:
        """Return the last line of a kind, which comes at any moment."""
        eventually(lambda: kind in self.kinds())
        return [text for told, text in self.told if told == kind][-1]

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.inbox.folder.rglob("*") if path.is_file())

    @property
    def images(self) -> list[Path]:
        return [path for path in self.files if path.suffix == ".dcm"]


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds that other threads bring about."""
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("it never came about")


def opened(folder: Path, callers: Sequence[str] = (SCANNER,), limits: Limits | None = None) -> Desk:
    told: list[tuple[str, str]] = []
    inbox = Inbox(folder, limits or Limits(reserve=0))
    tell = lambda kind, text: told.append((kind, text))  # noqa: E731
    return Desk(inbox, Receiver(inbox, Address("127.0.0.1", 0), TITLE, callers, tell), told)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A receiver for one scanner."""
    found = opened(tmp_path / "inbox")
    with found.receiver:
        yield found


def call(
    desk: Desk, title: str = SCANNER, called: str = TITLE, classes: Sequence[str] = (MRImageStorage, CTImageStorage)
) -> Association:
    entity = AE(title)
    entity.add_requested_context(Verification)
    for sop_class in classes:
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian])
    return entity.associate("127.0.0.1", desk.receiver.port, ae_title=called)


def send(association: Association, files: Sequence[Path | Dataset]) -> list[int]:
    return [association.send_c_store(file).Status for file in files]


def test_a_series_that_is_sent_lies_in_the_inbox_byte_for_byte(desk: Desk, tmp_path: Path) -> None:
    files = make_series(tmp_path / "scan")
    association = call(desk)
    assert association.send_c_echo().Status == TAKEN
    assert set(send(association, files)) == {TAKEN}
    association.release()
    assert desk.until("received") == "SCANNER sent 8 images of 1 series"
    assert len({path.parent for path in desk.images}) == 1
    by_uid = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in desk.images}
    for file in files:
        sent = pydicom.dcmread(file)
        assert by_uid[sent.SOPInstanceUID] == sent
        assert by_uid[sent.SOPInstanceUID].file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert not Inbox.is_open(desk.images[0].parent)


def test_what_is_compressed_stays_so(desk: Desk, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    entity = AE(SCANNER)
    entity.add_requested_context(MRImageStorage, [RLELossless])
    association = entity.associate("127.0.0.1", desk.receiver.port, ae_title=TITLE)
    assert send(association, [dataset]) == [TAKEN]
    association.release()
    kept = pydicom.dcmread(desk.images[0])
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert (kept.pixel_array == dataset.pixel_array).all()


def test_only_its_owner_reads_what_lies_there(desk: Desk, tmp_path: Path) -> None:
    association = call(desk)
    send(association, make_series(tmp_path / "scan")[:1])
    association.release()
    for path in [desk.inbox.folder, *desk.inbox.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.attack(
    "sending images under an AE title that is not on the list", by="a machine of the network", logged="the watch's own"
)
def test_who_is_not_on_the_list_is_rejected_for_that(desk: Desk) -> None:
    association = call(desk, "STRANGER")
    assert association.is_rejected
    answer = association.acceptor.primitive
    # PS3.8, table 9-21: rejected for good, by the service's user, calling AE title not recognized.
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 3)
    assert desk.until("rejected") == "STRANGER at 127.0.0.1 is turned away: it is none of those who may send (--from)"
    association = call(desk, called="ANOTHER")
    assert association.acceptor.primitive.diagnostic == 7
    assert "calls ANOTHER, and this is ONCOFED" in desk.until("rejected") or len(desk.told) > 2
    assert not desk.images


def test_two_send_at_once(tmp_path: Path) -> None:
    desk = opened(tmp_path / "inbox", (SCANNER, "ARCHIVE"))
    with desk.receiver:
        one, other = make_series(tmp_path / "a"), make_series(tmp_path / "b", patient="MRN-9")
        first, second = call(desk), call(desk, "ARCHIVE")
        for file, its in zip(one, other, strict=True):
            assert send(first, [file]) + send(second, [its]) == [TAKEN, TAKEN]
        first.release()
        series = {path.parent for path in desk.images}
        eventually(lambda: sum(Inbox.is_open(folder) for folder in series) == 1)
        second.release()
        eventually(lambda: not any(Inbox.is_open(folder) for folder in series))
        assert sorted(len(list(folder.glob("*.dcm"))) for folder in series) == [8, 8]


def test_a_series_that_broke_off_is_open_until_another_association_ends_well(desk: Desk, tmp_path: Path) -> None:
    files = make_series(tmp_path / "scan")
    association = call(desk)
    send(association, files[:3])
    association.abort()
    assert "SCANNER broke off after 3 images of 1 series" in desk.until("incomplete")
    series = desk.images[0].parent
    assert Inbox.is_open(series)
    # Also where the program ended meanwhile.
    with opened(desk.inbox.folder).receiver:
        assert Inbox.is_open(series)
    association = call(desk)
    send(association, files[3:])
    assert Inbox.is_open(series)
    association.release()
    eventually(lambda: not Inbox.is_open(series))
    assert len(desk.images) == len(files)


def test_the_same_again_changes_nothing_and_another_one_takes_its_place(desk: Desk, tmp_path: Path) -> None:
    file = make_series(tmp_path / "scan")[0]
    for _ in range(2):
        association = call(desk)
        send(association, [file])
        association.release()
    (kept,) = desk.images
    before = kept.stat()
    association = call(desk)
    send(association, [file])
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    dataset = pydicom.dcmread(file)
    dataset.PatientPosition = "HFS"
    send(association, [dataset])
    association.release()
    assert pydicom.dcmread(kept).PatientPosition == "HFS"
    assert desk.images == [kept]


def test_an_object_that_is_half_sent_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    big = make_series(tmp_path / "scan", volume((2000, 2000, 1)))[0]
    peer = Bare(desk)
    peer.associate()
    peer.send(peer.data(peer.store_command(pydicom.dcmread(big)), 3))
    peer.send(peer.data(big.read_bytes()[400:60_000], 0))
    coming = desk.inbox.folder / ".coming"
    eventually(lambda: len(list(coming.iterdir())) == 1)
    peer.close()
    eventually(lambda: not list(coming.iterdir()))
    assert not desk.images


def test_no_image_is_refused(desk: Desk, tmp_path: Path) -> None:
    association = call(desk, classes=[MRImageStorage, RTPlanStorage, SegmentationStorage])
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    assert accepted == {Verification, MRImageStorage}
    dataset = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    assert send(association, [dataset]) == [NOT_UNDERSTOOD]
    association.release()
    assert "an object from SCANNER is refused" in desk.until("refused")
    assert not desk.images


def test_a_port_that_is_taken_is_told(desk: Desk, tmp_path: Path) -> None:
    other = Receiver(Inbox(tmp_path / "b"), Address("127.0.0.1", desk.receiver.port), TITLE, [SCANNER], print)
    with pytest.raises(SpecError, match=r"nothing can listen at 127.0.0.1:\d+: Address already in use"), other:
        pass


def test_addresses_as_they_are_typed() -> None:
    assert parse_address("104", "x") == Address("127.0.0.1", 104)
    assert parse_address("[::1]:104", "x") == Address("::1", 104)
    assert str(parse_peer("PACS@[::1]:104", "x")) == "PACS@[::1]:104"
    assert parse_titles("A, B C", "x") == ["A", "B C"]
    for bad in ("", "x", "1:2:3", "99999", "0", "host:"):
        with pytest.raises(SpecError, match="no address"):
            parse_address(bad, "--listen")
    for bad in ("", "A" * 17, "A\\B", "A,,B", "Ä"):
        with pytest.raises(SpecError, match="no AE title"):
            parse_titles(bad, "--from")
    for bad in ("PACS", "PACS@104", "@host:1"):
        with pytest.raises(SpecError, match="expected AE@HOST:PORT"):
            parse_peer(bad, "--send-to")


FILLING = "filling the disk or the memory of the machine that predicts"


@pytest.mark.attack(FILLING, by="a machine that may send", logged="the watch's own lines")
def test_a_disk_that_is_nearly_full_takes_nothing_and_lives_on(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_series(tmp_path / "scan")
    association = call(desk)
    assert send(association, files[:1]) == [TAKEN]
    real = os.statvfs
    monkeypatch.setattr(desk.inbox, "limits", Limits(reserve=1 << 62))
    assert send(association, files[1:3]) == [FULL, FULL]
    assert "the disk is nearly full" in desk.until("refused")
    assert desk.kinds().count("refused") == 1
    monkeypatch.setattr(desk.inbox, "limits", Limits(reserve=0))
    monkeypatch.setattr(os, "statvfs", lambda path: Room(real(path)))
    assert send(association, files[3:4]) == [FULL]
    monkeypatch.setattr(os, "statvfs", real)
    assert send(association, files[4:5]) == [TAKEN]
    association.release()
    assert "2 images of 1 series, 3 refused" in desk.until("received")
    assert not list((desk.inbox.folder / ".coming").iterdir())


class Room:
    """A file system that can hold hardly any file more."""

    def __init__(self, real: os.statvfs_result) -> None:
        self.f_bavail, self.f_frsize, self.f_files, self.f_favail = real.f_bavail, real.f_frsize, 10_000_000, 3


@pytest.mark.attack(
    "filling the disk with lines about oneself", by="whoever reaches the port", logged="a line a try, then a count"
)
def test_lines_about_peers_are_few_a_minute() -> None:
    told, now = [], [0.0]
    tell = Sparing(lambda kind, text: told.append(text), most=3, clock=lambda: now[0])
    for number in range(100):
        tell("rejected", str(number))
    assert told == ["0", "1", "2"]
    now[0] = 61.0
    tell("rejected", "again")
    assert told[3:] == ["again (97 lines before were left out)"]


@pytest.mark.attack(FILLING, by="a machine that may send", logged="the watch's own lines")
def test_an_object_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    desk = opened(tmp_path / "inbox", limits=Limits(largest=1 << 20, reserve=0))
    with desk.receiver:
        big = make_series(tmp_path / "scan", volume((2000, 2000, 1)))
        association = call(desk)
        assert send(association, big) == [FULL]
        assert "larger than 1 MiB" in desk.until("refused")
        assert send(association, make_series(tmp_path / "small")[:1]) == [TAKEN]
        association.release()
        assert not list((desk.inbox.folder / ".coming").iterdir())


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.attack(
    "writing outside of the inbox by identifiers that are paths", by="a machine that may send", logged="nowhere"
)
def test_identifiers_that_are_paths_lead_nowhere(desk: Desk, tmp_path: Path) -> None:
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(desk.inbox.folder)}
    dataset = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    outside |= {tmp_path / "scan", *(tmp_path / "scan").rglob("*")}
    for evil in ("../../../evil", "/tmp/evil", "..", "a\0b", ".open-x"):
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            dataset.add_new(keyword, "LO", evil)
            dataset[keyword].VR = "UI"
        association = call(desk)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        association.send_c_store(dataset)
        association.release()
    found = {path for path in tmp_path.rglob("*") if not path.is_relative_to(desk.inbox.folder)}
    assert found == outside
    assert len(desk.images) >= 3
    for path in desk.images:
        assert all(len(part) == 24 for part in path.relative_to(desk.inbox.folder).with_suffix("").parts)


@pytest.mark.attack("an image that is something else than announced", by="a machine that may send", logged="the watch")
def test_what_is_not_as_announced_is_refused(desk: Desk, tmp_path: Path) -> None:
    scan = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    xray = pydicom.dcmread(make_xray(tmp_path, volume()[..., 0].astype("uint16")))
    peer = Bare(desk)
    peer.associate()
    assert peer.store(peer.store_command(scan), xray) == NOT_AS_SAID
    assert peer.store(peer.store_command(scan), scan) == TAKEN
    peer.close()


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.attack("names of patients in what is printed", by="a scanner's images", logged="where it must not be")
def test_nothing_that_is_told_or_named_knows_the_patient(
    desk: Desk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_series(tmp_path / "scan", patient="CanaryMRN")
    broken = pydicom.dcmread(files[0])
    broken.add_new("Modality", "CS", "Canary^Modality^Too^Long")
    association = call(desk)
    send(association, [*files[:2], broken])
    association.abort()
    desk.until("incomplete")
    call(desk, "CanaryNot\x1b[2J"[:9]).abort()
    printed = "".join(capfd.readouterr())
    told = " ".join(text for kind, text in desk.told if kind != "rejected")
    names = " ".join(str(path.relative_to(desk.inbox.folder)) for path in desk.inbox.folder.rglob("*"))
    uids = [str(pydicom.dcmread(files[0])[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID")]
    for secret in ("Canary", "MRN", "1950", *uids):
        assert secret not in told + names + printed


@pytest.mark.attack(FILLING, by="whoever reaches the port", logged="nowhere: the connection ends")
@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">BBI", 1, 0, 0xFFFFFFFF) + bytes(100_000),  # a request for an association of 4 GiB
        struct.pack(">BBI", 4, 0, 50) + bytes(50),  # data before an association
        struct.pack(">BBI", 9, 0, 10) + bytes(10),
        bytes(range(256)) * 10,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["4 GiB", "no association", "no such message", "noise", "another protocol"],
)
def test_what_no_peer_sends_ends_its_connection_alone(
    desk: Desk, sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    good = call(desk)
    peer = Bare(desk)
    peer.send(sent)
    assert peer.is_ended()
    assert good.send_c_echo().Status == TAKEN
    good.release()
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.attack(FILLING, by="a machine that may send", logged="nowhere: the association is aborted")
@pytest.mark.parametrize("control", [1, 0], ids=["a command without an end", "data without a command"])
def test_memory_is_not_filled_by_what_never_ends(desk: Desk, control: int) -> None:
    peer = Bare(desk)
    peer.associate()
    assert peer.send_until_ended(peer.data(bytes(60_000), control)) < 1000


@pytest.mark.attack(FILLING, by="a machine that may send", logged="nowhere: the association is aborted")
def test_objects_that_wait_for_no_answer_are_few(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    keep = desk.inbox.keep
    monkeypatch.setattr(desk.inbox, "keep", lambda *given: time.sleep(1) or keep(*given))
    peer = Bare(desk)
    peer.associate()
    both = peer.data(peer.store_command(dataset), 3) + peer.data(peer.encoded(dataset), 2)
    assert peer.send_until_ended(both, 50) < 50
    eventually(lambda: not list((desk.inbox.folder / ".coming").iterdir()))
    assert len(desk.images) <= 1


@pytest.mark.attack(
    "a megabyte that becomes a gigabyte when it is read", by="a machine that may send", logged="nowhere"
)
def test_deflated_data_sets_are_not_taken(desk: Desk) -> None:
    entity = AE(SCANNER)
    entity.add_requested_context(MRImageStorage, [DeflatedExplicitVRLittleEndian])
    association = entity.associate("127.0.0.1", desk.receiver.port, ae_title=TITLE)
    assert not association.accepted_contexts


@pytest.mark.attack("holding all connections open", by="whoever reaches the port", logged="nowhere: they are closed")
def test_connections_that_say_nothing_are_few_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "_NEGOTIATION_SECONDS", 1.0)
    desk = opened(tmp_path / "inbox")
    with desk.receiver:
        peers = [Bare(desk) for _ in range(40)]
        eventually(lambda: sum(peer.is_ended(0.001) for peer in peers) >= 20)
        eventually(lambda: call(desk).is_established)


class Bare:
    """A peer that speaks PS3.8 by hand, and so may say what the library would not."""

    def __init__(self, desk: Desk) -> None:
        self.socket = socket.create_connection(("127.0.0.1", desk.receiver.port), timeout=10)

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def is_ended(self, seconds: float = 10.0) -> bool:
        """Return whether the other side aborts the association, or ends the connection."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(4096)[:1] in {b"", b"\x07"}
        except TimeoutError:
            return False
        except OSError:
            return True

    def send_until_ended(self, data: bytes, most: int = 1000) -> int:
        """Send the same again until the other side ends it, and return how often that was."""
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
