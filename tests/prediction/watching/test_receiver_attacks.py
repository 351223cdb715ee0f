"""Attacks by a malicious peer at the port.

Nothing is written outside the inbox, and nothing blocked for long.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, MRImageStorage

from dicoms import make_series, make_xray, volume

pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[dicom]'")

from pynetdicom import AE

from dicom_peers import SCANNER, TITLE, Bare, Desk, call, opened, send
from oncofed.prediction.watching import storage_scp
from oncofed.prediction.watching.application_entity import RateLimitedNotify
from oncofed.prediction.watching.inbox import Limits
from watched import eventually

TAKEN, FULL, NOT_AS_SAID = 0x0000, 0xA700, 0xA900


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A receiver for one scanner."""
    found = opened(tmp_path / "inbox")
    with found.receiver:
        yield found


@pytest.mark.attack(
    "sending images under an AE title that is not on the list", by="a machine of the network", logged="the watch's own"
)
def test_unlisted_peers_are_rejected(desk: Desk) -> None:
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
    notify = RateLimitedNotify(lambda kind, text: told.append(text), most=3, clock=lambda: now[0])
    for number in range(100):
        notify("rejected", str(number))
    assert told == ["0", "1", "2"]
    now[0] = 61.0
    notify("rejected", "again")
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
def test_path_like_identifiers_do_not_escape_the_inbox(desk: Desk, tmp_path: Path) -> None:
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
def test_data_that_differ_from_the_announcement_are_refused(desk: Desk, tmp_path: Path) -> None:
    scan = pydicom.dcmread(make_series(tmp_path / "scan")[0])
    xray = pydicom.dcmread(make_xray(tmp_path, volume()[..., 0].astype("uint16")))
    peer = Bare(desk)
    peer.associate()
    assert peer.store(peer.store_command(scan), xray) == NOT_AS_SAID
    assert peer.store(peer.store_command(scan), scan) == TAKEN
    peer.close()


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.attack("names of patients in what is printed", by="a scanner's images", logged="where it must not be")
def test_messages_and_file_names_hold_no_patient_data(
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
def test_invalid_messages_end_only_their_connection(desk: Desk, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    good = call(desk)
    peer = Bare(desk)
    peer.send(sent)
    assert peer.is_ended()
    assert good.send_c_echo().Status == TAKEN
    good.release()
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.attack(FILLING, by="a machine that may send", logged="nowhere: the association is aborted")
@pytest.mark.parametrize("control", [1, 0], ids=["a command without an end", "data without a command"])
def test_endless_messages_do_not_fill_memory(desk: Desk, control: int) -> None:
    peer = Bare(desk)
    peer.associate()
    assert peer.send_until_ended(peer.data(bytes(60_000), control)) < 1000


@pytest.mark.attack(FILLING, by="a machine that may send", logged="nowhere: the association is aborted")
def test_objects_sent_without_waiting_for_responses_are_limited(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_silent_connections_are_few_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_scp, "_NEGOTIATION_SECONDS", 1.0)
    desk = opened(tmp_path / "inbox")
    with desk.receiver:
        peers = [Bare(desk) for _ in range(40)]
        eventually(lambda: sum(peer.is_ended(0.001) for peer in peers) >= 20)
        eventually(lambda: call(desk).is_established)
