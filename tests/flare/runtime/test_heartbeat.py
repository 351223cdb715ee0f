"""A simulated site sends heartbeats while it computes or waits."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReservedTopic
from nvflare.apis.fl_context import FLContext

from commands import wait_for
from oncofed.flare.runtime import heartbeat
from oncofed.flare.runtime.heartbeat import Heartbeat


def _context(job_id: str, sent: list[str]) -> Any:
    def send(topic: str, **_: Any) -> None:
        sent.append(topic)

    engine = SimpleNamespace(new_context=lambda: contextlib.nullcontext(FLContext()), send_aux_request=send)
    return SimpleNamespace(get_job_id=lambda: job_id, get_engine=lambda: engine)


def test_a_heartbeat_is_sent_without_other_messages_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN", 1.0)
    sent: list[str] = []
    life = Heartbeat()
    life.begin(_context("simulate_job", sent))
    for _ in range(20):
        life.note_sent()
        time.sleep(0.1)
    assert not sent, "the server heard of it by other messages"
    wait_for(lambda: len(sent) >= 2, "two signs")
    assert set(sent) == {ReservedTopic.JOB_HEART_BEAT}
    life.end()
    time.sleep(0.1)
    number = len(sent)
    time.sleep(1.5)
    assert len(sent) == number


def test_no_heartbeats_where_flare_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SECONDS_BETWEEN", 0.05)
    sent: list[str] = []
    Heartbeat().begin(_context("6a5c2bd1-0f60-4ffc-8a0f-3f0d7e1c3a55", sent))
    time.sleep(0.3)
    assert not sent
