"""Results are sent until acknowledged, to a test receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest

from dicoms import make_seg, make_series, volume

pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[dicom]'")

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.events import Event

from oncofed.loopback import free_port
from oncofed.prediction.watching.application_entity import Address, ApplicationEntity
from oncofed.prediction.watching.folder_scanner import FolderScanner
from oncofed.prediction.watching.store_scu import RequestorMessages, SendQueue, SendStatus, send
from oncofed.prediction.watching.watcher import JOURNAL_FILE, FolderWatcher, ItemResult
from watched import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two folders, still empty."""
    return Place(tmp_path)


@contextmanager
def archive(
    port: int, statuses: list[int] | None = None, takes: str = "1.2.840.10008.5.1.4.1.1.66.4"
) -> Iterator[list]:
    """Listen like an archive, and yield what it received.

    It answers with these statuses, then with success.
    """
    got: list = []
    answers = list(statuses or [])

    def store(event: Event) -> int:
        status = answers.pop(0) if answers else 0
        if not status:
            got.append((event.assoc.requestor.ae_title, event.dataset))
        return status

    entity = AE("ARCHIVE")
    entity.require_called_aet = True
    entity.add_supported_context(takes)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield got
    finally:
        server.shutdown()


def sender(place: Place, port: int) -> FolderWatcher:
    seg = place.out / "seg.dcm"
    if not seg.exists():
        make_seg(seg, make_series(place.root / "scan"), {"x": volume() > 100})
        (place.folder / "a.nii").write_bytes(b"1")
    peer = ApplicationEntity("ARCHIVE", Address("127.0.0.1", port))
    send_queue = lambda journal: SendQueue(place.out, journal, peer, "ONCOFED", place.notify, place.clock)  # noqa: E731
    scanner = FolderScanner(place.folder, 0.0, place.clock)
    return FolderWatcher(
        scanner, place.out, lambda item: ItemResult((seg,), (seg,)), place.notify, send_queue, seconds=0.001
    )


@pytest.fixture
def port() -> int:
    """A free port."""
    return free_port()


def test_a_result_is_kept_until_the_receiver_is_there(place: Place, port: int) -> None:
    counts = sender(place, port).run(once=True)
    assert (counts.done, counts.unsent) == (1, 1)
    assert "nobody answers there" in dict(place.told)["unsent"] or "again in 10 s" in dict(place.told)["unsent"]
    # Another process, later.
    with archive(port) as got:
        counts = sender(place, port).run(once=True)
        assert (counts.done, counts.unsent) == (0, 0)
        assert sender(place, port).run(once=True).unsent == 0
    ((caller, dataset),) = got
    assert caller == "ONCOFED"
    sent = pydicom.dcmread(place.out / "seg.dcm")
    assert dataset == pydicom.dcmread(place.out / "seg.dcm")
    assert sent.Modality == "SEG"


def test_a_receiver_with_an_unknown_host_counts_as_absent(tmp_path: Path) -> None:
    seg = make_seg(tmp_path / "seg.dcm", make_series(tmp_path / "scan"), {"x": volume() > 100})
    gone = tmp_path / "gone.dcm"
    replies = send([gone, seg], ApplicationEntity("ARCHIVE", Address("no-such-host.invalid", 104)), "ONCOFED")
    assert [reply.sent for reply in replies] == [SendStatus.NEVER, SendStatus.AWAY]


def test_an_absent_receiver_is_tried_less_and_less_often(place: Place, port: int) -> None:
    watch = sender(place, port)
    watch.run(once=True)
    times = []
    for _ in range(300):
        place.clock.now += 1
        before = len(place.told)
        watch.run(once=True)
        if len(place.told) > before:
            times.append(place.clock.now)
    assert times == [10, 30, 70, 150]


def test_a_refused_result_is_retried_and_then_given_up(place: Place, port: int) -> None:
    with archive(port, [0xA700, 0xA700]) as got:
        watch = sender(place, port)
        for _ in range(3):
            watch.run(once=True)
            place.clock.now += 1000
        assert len(got) == 1
    assert "status 0xA700" in " ".join(text for _, text in place.told)


@pytest.mark.parametrize(
    ("statuses", "takes", "why"),
    [([0xC000] * 9, "1.2.840.10008.5.1.4.1.1.66.4", "0xC000"), ([], "1.2.840.10008.5.1.4.1.1.2", "of this kind")],
    ids=["refused", "another kind"],
)
def test_a_result_refused_for_good_does_not_block_the_rest(
    place: Place, port: int, statuses: list[int], takes: str, why: str
) -> None:
    with archive(port, statuses, takes):
        watch = sender(place, port)
        for _ in range(7):
            counts = watch.run(once=True)
            place.clock.now += 1000
    assert counts.unsent == 0
    assert why in dict(place.told)["failed"]
    assert why in (place.out / JOURNAL_FILE).read_text()


def test_the_reactor_takes_no_response_from_who_waits_for_it() -> None:
    association = Association(AE("HERE"), "requestor")
    messages = RequestorMessages(association)
    messages.msg_queue.put((1, C_FIND()))
    assert messages.get_msg(block=False) == (None, None)
    context, message = messages.get_msg(block=True)
    assert context == 1
    assert isinstance(message, C_FIND)
