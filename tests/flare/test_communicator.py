from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from oncofed.flare import communicator as module
from oncofed.flare import wire
from oncofed.flare.communicator import PullCommunicator
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import Refusal, Result, TrainResult
from oncofed.rounds.site_task import SiteTask


def _waits(communicator: PullCommunicator, site: str) -> Shareable:
    request = Shareable()
    request.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    return communicator._wait("", request, FLContext())


def _task(*sites: str) -> SiteTask:
    return SiteTask("train", set(sites), lambda _: TrainRequest(weights={"w": torch.ones(1)}, round=1), lambda *_: None)


def test_a_waiting_site_gets_a_reply_once_a_task_opens() -> None:
    communicator, told = PullCommunicator(), []
    waiting = threading.Thread(target=lambda: told.append(_waits(communicator, "east")))
    waiting.start()
    communicator.open(_task("west"))
    waiting.join(0.2)
    assert not told, "it is not asked"
    communicator.open(_task("east"))
    waiting.join(3)
    assert wire.get_directive(told[0]) == "come"
    assert wire.get_pause(told[0]) == 0
    assert communicator.known() == {"east"}


@pytest.mark.attack(
    "keeping the server's threads busy, by one site that asks for work again and again",
    by="the server: a site's newer request ends its older one",
    logged="nowhere: the others are served as before",
)
def test_a_site_holds_one_of_the_servers_threads() -> None:
    communicator, told = PullCommunicator(), list[Shareable]()
    asking = [threading.Thread(target=lambda: told.append(_waits(communicator, "east"))) for _ in range(20)]
    for thread in asking:
        thread.start()
    for _ in range(200):
        if len(told) == len(asking) - 1:
            break
        time.sleep(0.01)
    assert [wire.get_directive(reply) for reply in told] == ["wait"] * 19, "one of them waits on"
    communicator.open(_task("east"))
    for thread in asking:
        thread.join(3)
    assert wire.get_directive(told[-1]) == "come"


def test_a_site_that_is_asked_for_a_brief_step_need_not_line_up() -> None:
    communicator = PullCommunicator()
    step = _task("east")
    step.name, step.brief = "confirm", True
    communicator.open(step)
    assert wire.get_directive(_waits(communicator, "east")) == "step"
    communicator.close(step)
    communicator.open(_task("east"))
    assert wire.get_directive(_waits(communicator, "east")) == "come"


def test_sites_beyond_the_waiting_limit_are_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    sent: list[tuple[list[str], str, str | None]] = []
    communicator = PullCommunicator()
    communicator._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda to, topic, word, *_, **__: sent.append((to, topic, wire.get_directive(word))),
    )
    for site in ("east", "west"):
        reply = _waits(communicator, site)
        assert wire.get_directive(reply) == "wait"
        assert wire.get_pause(reply) > 0, "it would ask without a pause"
    task = communicator.open(_task("east"))
    assert sent == [(["east"], wire.TOLD_TOPIC, "come")]
    assert wire.get_directive(_waits(communicator, "east")) == "come"
    communicator.add_sites(task, {"west"})
    communicator.open(_task("west"))
    assert sent[1:] == [(["west"], wire.TOLD_TOPIC, "come")], "once is enough"


def test_waiting_sites_are_notified_of_the_jobs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[list[str], str | None]] = []
    communicator = PullCommunicator()
    communicator._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda to, topic, word, *_, **__: sent.append((to, wire.get_directive(word))),
    )
    told: list[Shareable] = []
    held = threading.Thread(target=lambda: told.append(_waits(communicator, "east")))
    held.start()
    held.join(0.2)
    assert not told
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    assert wire.get_directive(_waits(communicator, "west")) == "wait"
    communicator.finalize_run(FLContext())
    held.join(3)
    assert wire.get_directive(told[0]) == "over"
    assert sent == [(["west"], "over")]


@pytest.mark.parametrize("known", [True, False])
def test_a_site_is_notified_after_its_result(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    sent: list[list[str]] = []
    communicator = PullCommunicator()
    communicator._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()),
        send_aux_request=lambda targets, *_, **__: sent.append(targets),
    )
    client = Client("east", "token")
    communicator.client_is_active("east", "", FLContext())
    if known:
        task = communicator.open(_task("east"))
        name, task_id, _ = communicator.process_task_request(client, FLContext())
        communicator.process_submission(client, name, task_id, Shareable(), FLContext())
        communicator.close(task)
    else:
        peer, context = FLContext(), FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, "east", private=False, sticky=False)
        context.set_peer_context(peer)
        assert not communicator.process_task_check("of a server before this one", context)
    assert not sent
    communicator.open(_task("west"))
    assert not sent
    communicator.open(_task("east"))
    assert sent == [["east"]]
    communicator.open(_task("east"))
    assert sent == [["east"]], "once is enough"


def test_more_waiting_sites_ask_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.0)
    communicator = PullCommunicator()
    pauses = [wire.get_pause(_waits(communicator, f"site-{number}")) for number in range(100)]
    assert pauses[0] == 0, "the first are kept waiting"
    assert 0 < pauses[20] < 10
    assert 10 < pauses[50] < pauses[70] == pauses[99], "however many there are, a lost word is made up for"


def test_a_request_for_a_task_is_held_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    communicator, held = PullCommunicator(), list[bool]()
    fetching = threading.Thread(target=lambda: held.append(communicator._hold("east")))
    fetching.start()
    fetching.join(0.2)
    communicator.open(_task("west"))
    fetching.join(0.2)
    assert not held
    communicator.open(_task("east"))
    fetching.join(3)
    assert held == [True]
    assert communicator._hold("east"), "at once"
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.0)
    assert communicator._hold("south"), "it is given no task, and asks again"


def test_a_site_that_fetches_again_has_no_task_at_its_earlier_request() -> None:
    communicator, held = PullCommunicator(), dict[str, bool]()
    first = threading.Thread(target=lambda: held.update(first=communicator._hold("east")))
    first.start()
    while "east" not in communicator._fetching:
        time.sleep(0.001)
    second = threading.Thread(target=lambda: held.update(second=communicator._hold("east")))
    before = communicator._fetching["east"]
    second.start()
    while communicator._fetching["east"] is before:
        time.sleep(0.001)
    communicator.open(_task("east"))
    first.join(3)
    second.join(3)
    assert held == {"first": False, "second": True}


def test_among_many_sites_no_request_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 60.0)
    communicator = PullCommunicator()
    communicator.client_is_active("east", "", FLContext())
    assert communicator._hold("east")


def test_a_banned_site_is_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.1)
    communicator = PullCommunicator()
    communicator.open(_task("east"))
    assert wire.get_directive(_waits(communicator, "east")) == "come"
    communicator.ban(frozenset({"east"}))
    assert wire.get_directive(_waits(communicator, "east")) == "wait"


def test_a_result_reaches_its_task_even_after_it_closed() -> None:
    communicator, results = PullCommunicator(), list[tuple[str, Result | Refusal, bool]]()
    task = _task("east", "west")
    task.on_result = lambda site, result, of: results.append((site, result, of.closed))
    communicator.open(task)
    given = {}
    for site in ("east", "west"):
        name, given[site], message = communicator.process_task_request(Client(site, "token"), FLContext())
        assert (name, wire.read_request(name, message).task) == ("train", "train")
    east = wire.to_shareable(TrainResult(delta={"w": torch.ones(1)}, cases=2, steps=1, numbers={}))
    communicator.process_submission(Client("east", "token"), "train", given["east"], east, FLContext())
    communicator.close(task)
    west = wire.to_shareable(Refusal("its disk is full", may_pass=True))
    communicator.process_submission(Client("west", "token"), "train", given["west"], west, FLContext())
    assert [(site, type(result).__name__, late) for site, result, late in results] == [
        ("east", "TrainResult", False),
        ("west", "Refusal", True),
    ]
    assert task.done == {"east", "west"}


def test_results_of_an_earlier_process_or_another_site_are_dropped() -> None:
    communicator, results = PullCommunicator(), list[str]()
    communicator._engine = SimpleNamespace(
        new_context=lambda: contextlib.nullcontext(FLContext()), send_aux_request=lambda *_, **__: None
    )
    task = _task("east")
    task.on_result = lambda site, result, of: results.append(site)
    communicator.open(task)
    _, first, _ = communicator.process_task_request(Client("east", "token"), FLContext())
    _, second, _ = communicator.process_task_request(Client("east", "token"), FLContext())
    reply = wire.to_shareable(Refusal("no"))
    communicator.process_submission(Client("east", "token"), "train", first, reply, _of("east"))
    assert not results
    communicator.process_submission(Client("west", "token"), "train", second, reply, _of("west"))
    assert not results, "it was given to another site"
    _, third, _ = communicator.process_task_request(Client("east", "token"), FLContext())
    communicator.ban(frozenset({"east"}))
    communicator.process_submission(Client("east", "token"), "train", third, reply, _of("east"))
    assert not results, "it is banned"


def _of(site: str) -> FLContext:
    context = FLContext()
    context.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    return context
