from __future__ import annotations

import threading

import pytest
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from oncofed.federation import desk as module
from oncofed.federation import exchange
from oncofed.federation.desk import Desk, Question


def _waits(desk: Desk, site: str) -> Shareable:
    request = Shareable()
    request.set_peer_props({ReservedKey.IDENTITY_NAME: site})
    return desk._wait("", request, FLContext())


def _question(*sites: str) -> Question:
    return Question("train", 1, set(sites), lambda _: Shareable(), lambda *_: None)


def test_a_site_that_waits_is_told_as_soon_as_there_is_something_for_it() -> None:
    desk, told = Desk(), []
    waiting = threading.Thread(target=lambda: told.append(_waits(desk, "east")))
    waiting.start()
    desk.ask(_question("west"))
    waiting.join(0.2)
    assert not told, "it is not asked"
    desk.ask(_question("east"))
    waiting.join(3)
    assert not exchange.says_wait(told[0])
    assert exchange.told_pause(told[0]) == 0
    assert desk.known() == {"east"}


def test_more_sites_than_can_be_kept_waiting_ask_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 0)
    desk = Desk()
    reply = _waits(desk, "east")
    assert exchange.says_wait(reply)
    assert exchange.told_pause(reply) > 0, "it would ask without a pause"
    desk.ask(_question("east"))
    assert not exchange.says_wait(_waits(desk, "east"))


def test_a_site_that_was_shut_out_is_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_SECONDS", 0.1)
    desk = Desk()
    desk.ask(_question("east"))
    assert not exchange.says_wait(_waits(desk, "east"))
    desk.ban(frozenset({"east"}))
    assert exchange.says_wait(_waits(desk, "east"))
