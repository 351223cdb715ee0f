"""Requests for a task that are held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.private.fed.server.server_runner import ServerRunner

from oncofed.flare.patches.held_requests import hold_requests


@pytest.mark.parametrize(("latest", "answer"), [(True, "a task"), (False, "again")])
def test_a_request_is_answered_after_it_was_held(latest: bool, answer: str) -> None:
    calls: list[str] = []

    def hold(site: str) -> bool:
        calls.append(f"held for {site}")
        return latest

    def process(client: Client, fl_ctx: FLContext) -> str:
        calls.append("asked")
        return "a task"

    runner: Any = SimpleNamespace(process_task_request=process, _task_try_again=lambda: "again")
    hold_requests(cast("ServerRunner", runner), hold)
    assert runner.process_task_request(Client("east", "token"), FLContext()) == answer
    assert calls == ["held for east", *(["asked"] if latest else [])]
