"""A site's wait for its next task, without FLARE."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from oncofed.flare import wire
from oncofed.flare.pull import TaskPull


class _Server:
    """Replies in the given order, and sends directives."""

    def __init__(self, *replies: Shareable | None) -> None:
        self.replies = list(replies)
        self.signal = Signal()
        self.handler: Any = None

    def context(self) -> FLContext:
        engine = SimpleNamespace(
            new_context=self._context, send_aux_request=self._ask, register_aux_message_handler=self._register
        )
        return cast("FLContext", SimpleNamespace(get_engine=lambda: engine, get_run_abort_signal=lambda: self.signal))

    def direct(self, directive: wire.Directive) -> None:
        self.handler("", wire.wait_reply(directive), None)

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        yield None

    def _ask(self, **values: Any) -> dict[str, Shareable] | None:
        reply = self.replies.pop(0)
        return {FQCN.ROOT_SERVER: reply} if reply is not None else None

    def _register(self, topic: str, handler: Any) -> None:
        assert topic == wire.TOLD_TOPIC
        self.handler = handler


def _pull(server: _Server) -> TaskPull:
    pull = TaskPull()
    pull.listen(server.context())
    return pull


@pytest.mark.parametrize(
    ("replies", "comes"),
    [
        ([wire.wait_reply("come")], True),
        ([wire.wait_reply("over")], False),
        ([wire.wait_reply("wait"), wire.wait_reply("step")], False),
        ([None], False),
        ([Shareable()], False),
        ([wire.wait_reply("wait"), wire.wait_reply("wait"), wire.wait_reply("come")], True),
    ],
)
def test_a_site_asks_until_the_server_has_a_task(replies: list[Shareable | None], comes: bool) -> None:
    server = _Server(*replies)
    assert _pull(server).wait(server.context()) == comes
    assert not server.replies


def _server_that_directs_at_once() -> _Server:
    """Return a server that requests a long pause.

    It sends a directive before the pause is over.
    """
    server = _Server(wire.wait_reply("wait", 60.0))
    ask = server._ask

    def ask_and_direct(**values: Any) -> dict[str, Shareable] | None:
        reply = ask(**values)
        server.direct("come")
        return reply

    server._ask = ask_and_direct  # type: ignore[method-assign]
    return server


@pytest.mark.parametrize(("told", "paused"), [(1e9, 60.0), (-5.0, 0.0), (7.0, 7.0)])
def test_a_pause_is_bounded_whatever_is_told(told: float, paused: float, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(wire.wait_reply("wait", told), wire.wait_reply("come"))
    pull, waited = _pull(server), list[float]()

    def wait(seconds: float, signal: Signal | None) -> None:
        waited.append(seconds)

    monkeypatch.setattr(pull, "_receive_within", wait)
    assert pull.wait(server.context())
    assert waited == [0.0, paused]


def test_a_directive_ends_a_requested_pause() -> None:
    server = _server_that_directs_at_once()
    assert _pull(server).wait(server.context())


def test_after_its_result_a_site_ignores_earlier_directives() -> None:
    server = _server_that_directs_at_once()
    pull = _pull(server)
    pull.wait(server.context())
    server.direct("over")
    pull.before_submit()
    server.direct("come")
    pull.after_submit()
    assert pull.wait(server.context()), "without asking again: the server would have no reply left"


def test_a_site_fetches_without_asking_where_a_step_follows() -> None:
    server = _Server(wire.wait_reply("come"))
    pull = _pull(server)
    pull.after_submit(step_follows=True)
    assert not pull.wait(server.context())
    assert server.replies, "it did not ask"
    assert pull.wait(server.context()), "there was no step: it asks"


def test_a_site_among_many_is_told_of_a_step() -> None:
    server = _server_that_directs_at_once()
    pull = _pull(server)
    pull.wait(server.context())
    pull.before_submit()
    pull.after_submit(step_follows=True)
    server.direct("step")
    assert not pull.wait(server.context())
    assert not server.replies
    with pytest.raises(IndexError):
        pull.wait(server.context())
