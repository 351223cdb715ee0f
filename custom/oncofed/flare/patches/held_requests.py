"""Hold a site's request for a task until there is one.

FLARE 2.9.0 answers each request at once, under a lock that results wait for: replaces ``process_task_request`` of the
server's ``ServerRunner``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.private.fed.server.server_runner import ServerRunner


def hold_requests(runner: ServerRunner, hold: Callable[[str], bool]) -> None:
    """Hold requests back before FLARE answers them.

    Args:
        runner: of the server's job.
        hold: called with a site's name, and without FLARE's lock; returns once the request should be answered, and
            whether it may be given a task.
    """
    process = runner.process_task_request

    def process_held(client: Client, fl_ctx: FLContext) -> Any:
        return process(client, fl_ctx) if hold(client.name) else runner._task_try_again()

    runner.process_task_request = process_held
