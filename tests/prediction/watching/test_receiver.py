"""Reception of DICOM over real associations.

Who may send, where files are stored, when a series is complete.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RLELossless, RTPlanStorage, SegmentationStorage

from dicoms import make_series, volume

pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[dicom]'")

from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicom_peers import SCANNER, TITLE, Bare, Desk, call, opened, send
from oncofed.errors import SpecError
from oncofed.prediction.watching.application_entity import (
    Address,
    parse_address,
    parse_ae_titles,
    parse_application_entity,
)
from oncofed.prediction.watching.inbox import Inbox
from oncofed.prediction.watching.storage_scp import StorageSCP
from watched import eventually

TAKEN, NOT_UNDERSTOOD = 0x0000, 0xC000


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A receiver for one scanner."""
    found = opened(tmp_path / "inbox")
    with found.receiver:
        yield found


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
    assert not Inbox.is_incomplete(desk.images[0].parent)


def test_compressed_images_stay_compressed(desk: Desk, tmp_path: Path) -> None:
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


def test_two_send_at_once(tmp_path: Path) -> None:
    desk = opened(tmp_path / "inbox", (SCANNER, "ARCHIVE"))
    with desk.receiver:
        one, other = make_series(tmp_path / "a"), make_series(tmp_path / "b", patient="MRN-9")
        first, second = call(desk), call(desk, "ARCHIVE")
        for file, its in zip(one, other, strict=True):
            assert send(first, [file]) + send(second, [its]) == [TAKEN, TAKEN]
        first.release()
        series = {path.parent for path in desk.images}
        eventually(lambda: sum(Inbox.is_incomplete(folder) for folder in series) == 1)
        second.release()
        eventually(lambda: not any(Inbox.is_incomplete(folder) for folder in series))
        assert sorted(len(list(folder.glob("*.dcm"))) for folder in series) == [8, 8]


def test_an_interrupted_series_stays_open_until_an_association_completes(desk: Desk, tmp_path: Path) -> None:
    files = make_series(tmp_path / "scan")
    association = call(desk)
    send(association, files[:3])
    association.abort()
    assert "SCANNER broke off after 3 images of 1 series" in desk.until("incomplete")
    series = desk.images[0].parent
    assert Inbox.is_incomplete(series)
    # Also where the program ended meanwhile.
    with opened(desk.inbox.folder).receiver:
        assert Inbox.is_incomplete(series)
    association = call(desk)
    send(association, files[3:])
    assert Inbox.is_incomplete(series)
    association.release()
    eventually(lambda: not Inbox.is_incomplete(series))
    assert len(desk.images) == len(files)


def test_resending_changes_nothing_and_another_version_replaces_it(desk: Desk, tmp_path: Path) -> None:
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


def test_objects_that_are_no_images_are_refused(desk: Desk, tmp_path: Path) -> None:
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
    other = StorageSCP(Inbox(tmp_path / "b"), Address("127.0.0.1", desk.receiver.port), TITLE, [SCANNER], print)
    with pytest.raises(SpecError, match=r"nothing can listen at 127.0.0.1:\d+: Address already in use"), other:
        pass


def test_addresses_as_they_are_typed() -> None:
    assert parse_address("104", "x") == Address("127.0.0.1", 104)
    assert parse_address("[::1]:104", "x") == Address("::1", 104)
    assert str(parse_application_entity("PACS@[::1]:104", "x")) == "PACS@[::1]:104"
    assert parse_ae_titles("A, B C", "x") == ["A", "B C"]
    for bad in ("", "x", "1:2:3", "99999", "0", "host:"):
        with pytest.raises(SpecError, match="no address"):
            parse_address(bad, "--listen")
    for bad in ("", "A" * 17, "A\\B", "A,,B", "Ä"):
        with pytest.raises(SpecError, match="no AE title"):
            parse_ae_titles(bad, "--from")
    for bad in ("PACS", "PACS@104", "@host:1"):
        with pytest.raises(SpecError, match="expected AE@HOST:PORT"):
            parse_application_entity(bad, "--send-to")
