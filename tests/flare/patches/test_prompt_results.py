"""Results that are sent without asking first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.private.fed.client.client_runner import (
    _TASK_CHECK_RESULT_OK,
    _TASK_CHECK_RESULT_TASK_GONE,
    ClientRunner,
)

from oncofed.flare.patches.prompt_results import send_promptly


@pytest.mark.parametrize(
    ("small", "arrives", "calls", "code"),
    [
        (True, True, ["sent"], _TASK_CHECK_RESULT_OK),
        (True, False, ["sent", "asked"], _TASK_CHECK_RESULT_TASK_GONE),
        (False, True, ["asked"], _TASK_CHECK_RESULT_TASK_GONE),
    ],
)
def test_a_small_result_is_sent_at_once(small: bool, arrives: bool, calls: list[str], code: int) -> None:
    found: list[str] = []

    def send(result: Shareable, fl_ctx: FLContext, timeout: float) -> bool:
        assert timeout == 5.0
        found.append("sent")
        return arrives

    def asks(result: Shareable, task_id: str, fl_ctx: FLContext) -> int:
        found.append("asked")
        return _TASK_CHECK_RESULT_TASK_GONE

    engine = SimpleNamespace(send_task_result=send)
    runner: Any = SimpleNamespace(engine=engine, task_check_timeout=5.0, _try_send_result_once=asks)
    send_promptly(cast("ClientRunner", runner), lambda result: small)
    assert runner._try_send_result_once(Shareable(), "task", FLContext()) == code
    assert found == calls
