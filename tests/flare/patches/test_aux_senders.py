"""Messages in another's name, and sites that speak as the server does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.private.aux_runner import AuxRunner
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.client.command_agent import CommandAgent
from nvflare.private.fed.server.server_command_agent import ServerCommandAgent

from oncofed.flare.patches.aux_senders import refuse_false_names, refuse_other_sites
from oncofed.flare.wire import TOLD_TOPIC, WAIT_TOPIC, wait_reply

refuse_false_names(WAIT_TOPIC)
refuse_other_sites(TOLD_TOPIC)


class _Process:
    """FLARE's own dispatch of auxiliary messages, of a server's or a site's job."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        runner = AuxRunner(SimpleNamespace())
        for topic in (WAIT_TOPIC, TOLD_TOPIC, "other"):
            runner.register_aux_message_handler(topic, self._handle)
        state = SimpleNamespace(aux_communicate=lambda context: None)
        server = SimpleNamespace(server_state=state, authentication_check=lambda request, check: None)
        self.engine = SimpleNamespace(new_context=self._context, dispatch=runner.dispatch, server=server)
        self.cell = SimpleNamespace(register_request_cb=lambda **_: None, get_fqcn=lambda: "server.job")

    def _handle(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self.heard.append(str(request.get_peer_prop(ReservedKey.IDENTITY_NAME, "")))
        return wait_reply("wait")

    @contextlib.contextmanager
    def _context(self) -> Iterator[FLContext]:
        context = FLContext()
        context.get_engine = lambda: self.engine  # type: ignore[method-assign, return-value, assignment]
        yield context

    def server(self) -> ServerCommandAgent:
        return ServerCommandAgent(self.engine, self.cell)

    def site(self) -> CommandAgent:
        agent = CommandAgent(SimpleNamespace(cell=self.cell))
        agent.engine = self.engine
        return agent


def _message(topic: str, states: str, **headers: str) -> Message:
    body = Shareable()
    body.set_peer_props({ReservedKey.IDENTITY_NAME: states})
    return Message({MessageHeaderKey.TOPIC: topic, **headers}, body)


def _code(reply: Any) -> str:
    return str(reply.get_header(MessageHeaderKey.RETURN_CODE))


@pytest.mark.attack(
    "keeping a site that is gone from counting as lost, or from hearing of its steps, by another that asks in its name",
    by="the server's job process: the name in a message is that of the kit which sent it",
    logged="the job's log on the server: refused a message oncofed.wait",
)
def test_a_site_cannot_ask_for_work_in_the_name_of_another() -> None:
    process = _Process()
    agent = process.server()
    own = {CellMessageHeaderKeys.CLIENT_NAME: "east"}
    assert _code(agent.aux_communicate(_message(WAIT_TOPIC, "west", **own))) == ReturnCode.UNAUTHENTICATED
    assert process.heard == []
    assert _code(agent.aux_communicate(_message(WAIT_TOPIC, "east", **own))) == ReturnCode.OK
    # FLARE's own messages are as they were, and a simulation has no certificates.
    assert _code(agent.aux_communicate(_message("other", "west", **own))) == ReturnCode.OK
    assert _code(agent.aux_communicate(_message(WAIT_TOPIC, "north"))) == ReturnCode.OK
    assert process.heard == ["east", "west", "north"]


@pytest.mark.attack(
    "sending a site to work, or past the queue for a GPU, in the server's place",
    by="the site's job process: what the server says comes from the server's cell, which FLARE checks on the way",
    logged="the job's log at the site: refused a message oncofed.told",
)
def test_a_site_cannot_speak_for_the_server() -> None:
    process = _Process()
    agent = process.site()
    for origin in ("west.job", "west", "", "servers.job"):
        message = _message(TOLD_TOPIC, "server", **{MessageHeaderKey.ORIGIN: origin})
        assert _code(agent.aux_communication(message)) == ReturnCode.UNAUTHENTICATED
    assert process.heard == []
    message = _message(TOLD_TOPIC, "server", **{MessageHeaderKey.ORIGIN: "server.job"})
    assert _code(agent.aux_communication(message)) == ReturnCode.OK
    other = _message("other", "west", **{MessageHeaderKey.ORIGIN: "west.job"})
    assert _code(agent.aux_communication(other)) == ReturnCode.OK
    assert process.heard == ["server", "west"]
