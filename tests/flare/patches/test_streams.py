"""FLARE's streams, with less work for each message."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from nvflare.fuel.f3.streaming import byte_streamer
from nvflare.fuel.f3.streaming.blob_streamer import BlobStream
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

from oncofed.flare.patches import streams


@pytest.fixture
def retries(monkeypatch: pytest.MonkeyPatch) -> byte_streamer.ReliableRetryScheduler:
    monkeypatch.setattr(streams, "_SECONDS_BETWEEN_LOOKS", 0.05)
    scheduler = byte_streamer.ReliableRetryScheduler()
    monkeypatch.setattr(byte_streamer, "reliable_retry_scheduler", scheduler)
    monkeypatch.setattr(byte_streamer, "TxTask", byte_streamer.TxTask)
    streams.lighten_streams()
    streams.lighten_streams()
    yield scheduler
    scheduler.shutdown()


def _until(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(true())


def _task(retry: Callable[[], float | None]) -> SimpleNamespace:
    class Task(SimpleNamespace):
        __hash__ = object.__hash__

    return Task(sid=object(), retry_task=retry, retry_timeout=60.0)


def test_unacknowledged_streams_are_checked_until_acknowledged(
    retries: byte_streamer.ReliableRetryScheduler,
) -> None:
    looked: list[float] = []
    task = _task(lambda: looked.append(time.monotonic()))
    retries.register(task)
    for _ in range(1000):
        retries.wakeup()
    assert len(looked) <= 1, "it looks whenever something is sent"
    assert _until(lambda: len(looked) > 3)
    retries.unregister(task)
    time.sleep(0.2)
    seen = len(looked)
    time.sleep(0.2)
    assert len(looked) == seen


def test_a_failing_or_slow_stream_does_not_block_retries(
    retries: byte_streamer.ReliableRetryScheduler,
) -> None:
    def fails() -> None:
        raise OSError

    begun: list[int] = []
    looked: list[int] = []

    def takes_long() -> None:
        begun.append(1)
        time.sleep(0.5)

    for retry in (fails, takes_long, lambda: looked.append(1)):
        retries.register(_task(retry))
    assert _until(lambda: len(looked) > 5)
    assert len(begun) == 1, "a second one was begun beside the first"


def test_a_failed_retry_is_logged_once(
    retries: byte_streamer.ReliableRetryScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    task = _task(lambda: time.sleep(0.6))
    task.retry_timeout = 0.1
    retries.register(task)
    assert _until(lambda: "is being sent again" in caplog.text)
    time.sleep(0.2)
    assert caplog.text.count("is being sent again") == 1


def test_the_retry_thread_ends_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = byte_streamer.ReliableRetryScheduler()
    end = scheduler.shutdown  # as FLARE has it before anything is changed
    monkeypatch.setattr(streams, "_SECONDS_BETWEEN_LOOKS", 60.0)
    monkeypatch.setattr(byte_streamer, "reliable_retry_scheduler", scheduler)
    monkeypatch.setattr(byte_streamer, "TxTask", byte_streamer.TxTask)
    streams.lighten_streams()
    scheduler.register(_task(lambda: None))
    assert scheduler.thread.is_alive()
    end()
    assert not scheduler.thread.is_alive()


@pytest.mark.usefixtures("retries")
@pytest.mark.parametrize(("size", "expected"), [(0, 1 << 20), (3, 3), (3 << 20, 1 << 20)])
def test_a_buffer_is_as_large_as_its_message(size: int, expected: int) -> None:
    stream = BlobStream(bytes(size), {})
    task = byte_streamer.TxTask(None, 1 << 20, "channel", "topic", "east", {}, stream, True, False, False)
    assert len(task.buffer) == expected
    byte_streamer.reliable_retry_scheduler.unregister(task)


@pytest.mark.usefixtures("retries")
@pytest.mark.parametrize("size", [0, 3, 999, 1000, 1001, 3500])
def test_a_message_arrives_whole_with_the_given_chunk_size(size: int) -> None:
    content, sent = bytes(number % 251 for number in range(size)), []
    cell = SimpleNamespace(fire_and_forget=lambda *arguments, **_: sent.append(arguments[3]))
    parts = [memoryview(content)[:700], memoryview(content)[700:]]
    stream = BlobStream(parts, {})
    task = byte_streamer.TxTask(cell, 1000, "channel", "topic", "east", {}, stream, False, False, False)
    task.send_loop()
    assert b"".join(bytes(message.payload) for message in sent) == content
    assert {message.get_header(StreamHeaderKey.CHUNK_SIZE) for message in sent} == {1000}
    assert all(len(message.payload) == 1000 for message in sent[:-1])
