"""Shorten the timeouts of a site's running job.

FLARE 2.9.0 reads them once, when it creates its ``ClientRunner``: replaces ``get_task_timeout`` and
``submit_task_result_timeout`` of that object.
"""

from __future__ import annotations

from collections.abc import Callable

from nvflare.private.fed.client.client_runner import ClientRunner


def change_timeouts(runner: ClientRunner, changed: Callable[[float], float]) -> Callable[[], None]:
    """Change a runner's timeouts; return a function that restores them.

    Args:
        runner: of the site's job.
        changed: given a timeout in seconds, returns the new one. Timeouts that are not set stay so.
    """
    fetch, submit = runner.get_task_timeout, runner.submit_task_result_timeout

    def restore() -> None:
        runner.get_task_timeout, runner.submit_task_result_timeout = fetch, submit

    runner.get_task_timeout = changed(fetch) if fetch else fetch
    runner.submit_task_result_timeout = changed(submit) if submit else submit
    return restore
