from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.fuel.f3.cellnet.core_cell import Message, MessageHeaderKey
from nvflare.fuel.f3.cellnet.defs import ReturnCode
from nvflare.private.fed.client.client_app_runner import ClientAppRunner

from oncofed.flare.patches.parent_watch import notify_parent

_PROGRAM = """
import subprocess, sys, threading
from nvflare.private.fed.app.utils import monitor_parent_process
from nvflare.private.fed.client.client_app_runner import ClientAppRunner
from oncofed.flare.patches.parent_watch import watch_parent
from test_parent_watch import client

watch_parent()
runner = ClientAppRunner(time_out=1.0)
parent = subprocess.Popen(["sleep", "2"])
threading.Thread(target=parent.wait).start()
threading.Thread(target=monitor_parent_process, args=(runner, parent.pid, threading.Event())).start()
runner.notify_job_status(client(10**9), "job", 2, timeout=0.1, retry_timeout=0.1)
"""


def client(deaf: int) -> SimpleNamespace:
    """A client whose parent ignores this many messages."""

    def send_request(**message: object) -> Message:
        asked.append(time.monotonic())
        code = ReturnCode.OK if len(asked) > deaf else ReturnCode.TIMEOUT
        return Message(headers={MessageHeaderKey.RETURN_CODE: code})

    asked: list[float] = []
    core = SimpleNamespace(get_fqcn=lambda: "east.job")
    return SimpleNamespace(cell=SimpleNamespace(core_cell=core, send_request=send_request), asked=asked)


def test_status_is_reported_until_the_parent_acknowledges(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("nvflare.private.fed.client.client_app_runner.time.sleep", waits.append)
    hears = client(deaf=5)
    notify_parent(ClientAppRunner(time_out=1.0), hears, "job", 2, timeout=0.1, retry_timeout=1e-9)
    assert len(hears.asked) == 6
    assert waits == [0.5] * 5


def test_a_job_that_has_not_begun_ends_with_its_parent() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    job = subprocess.Popen([sys.executable, "-c", _PROGRAM], env={**os.environ, "PYTHONPATH": path})
    try:
        assert job.wait(300) == 1
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
