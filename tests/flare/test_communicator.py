from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from oncofed.flare import communicator as module
from oncofed.flare import wire
from oncofed.flare.communicator import PullCommunicator, SiteTask


def _waits(desk: PullCommunicator, site: str) -> Shareable:
    request = Shareable()
    request.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    return desk._wait("", request, FLContext())


def _question(*sites: str) -> SiteTask:
    return SiteTask("train", 1, set(sites), lambda _: Shareable(), lambda *_: None)


def test_a_site_that_waits_is_told_as_soon_as_there_is_something_for_it() -> None:
    desk, told = PullCommunicator(), []
    waiting = threading.Thread(target=lambda: told.append(_waits(desk, "east")))
    waiting.start()
    desk.ask(_question("west"))
    waiting.join(0.2)
    assert not told, "it is not asked"
    desk.ask(_question("east"))
    waiting.join(3)
    assert wire.told_word(told[0]) == "come"
    assert wire.told_pause(told[0]) == 0
    assert desk.known() == {"east"}


def test_sites_that_cannot_be_kept_waiting_are_sent_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    sent: list[tuple[list[str], str, str | None]] = []
    desk = PullCommunicator()
    desk._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda to, topic, word, *_, **__: sent.append((to, topic, wire.told_word(word))),
    )
    for site in ("east", "west"):
        reply = _waits(desk, site)
        assert wire.told_word(reply) == "wait"
        assert wire.told_pause(reply) > 0, "it would ask without a pause"
    question = desk.ask(_question("east"))
    assert sent == [(["east"], wire.TOLD_TOPIC, "come")]
    assert wire.told_word(_waits(desk, "east")) == "come"
    desk.include(question, {"west"})
    desk.ask(_question("west"))
    assert sent[1:] == [(["west"], wire.TOLD_TOPIC, "come")], "once is enough"


def test_sites_that_wait_are_told_that_the_job_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[list[str], str | None]] = []
    desk = PullCommunicator()
    desk._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda to, topic, word, *_, **__: sent.append((to, wire.told_word(word))),
    )
    told: list[Shareable] = []
    held = threading.Thread(target=lambda: told.append(_waits(desk, "east")))
    held.start()
    held.join(0.2)
    assert not told
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    assert wire.told_word(_waits(desk, "west")) == "wait"
    desk.finalize_run(FLContext())
    held.join(3)
    assert wire.told_word(told[0]) == "over"
    assert sent == [(["west"], "over")]


@pytest.mark.parametrize("known", [True, False])
def test_a_site_that_handed_in_is_sent_word_without_its_asking(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    sent: list[list[str]] = []
    desk = PullCommunicator()
    desk._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda targets, *_, **__: sent.append(targets),
    )
    client = Client("east", "token")
    desk.client_is_active("east", "", FLContext())
    if known:
        question = desk.ask(_question("east"))
        task, task_id, _ = desk.process_task_request(client, FLContext())
        desk.process_submission(client, task, task_id, Shareable(), FLContext())
        desk.close(question)
    else:
        peer, context = FLContext(), FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, "east", private=False, sticky=False)
        context.set_peer_context(peer)
        assert not desk.process_task_check("of a server before this one", context)
    assert not sent
    desk.ask(_question("west"))
    assert not sent
    desk.ask(_question("east"))
    assert sent == [["east"]]
    desk.ask(_question("east"))
    assert sent == [["east"]], "once is enough"


def test_the_more_sites_wait_the_more_seldom_each_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.0)
    desk = PullCommunicator()
    pauses = [wire.told_pause(_waits(desk, f"site-{number}")) for number in range(100)]
    assert pauses[0] == 0, "the first are kept waiting"
    assert 0 < pauses[20] < 10
    assert 10 < pauses[50] < pauses[70] == pauses[99], "however many there are, a lost word is made up for"


def test_a_site_that_was_shut_out_is_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.1)
    desk = PullCommunicator()
    desk.ask(_question("east"))
    assert wire.told_word(_waits(desk, "east")) == "come"
    desk.ban(frozenset({"east"}))
    assert wire.told_word(_waits(desk, "east")) == "wait"
