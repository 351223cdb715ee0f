"""End a site's process together with its parent.

FLARE 2.9.0 checks every second whether the parent lives, which costs 64 waiting sites some percent of two cores. A job
process whose parent ended before the job began waits for ever. Replaces ``check_parent_alive``, and ``stop`` and
``notify_job_status`` of ``ClientAppRunner``.
"""

from __future__ import annotations

import math
import os
from multiprocessing import connection
from threading import Event, Thread
from typing import Any

from nvflare.private.fed.app import utils
from nvflare.private.fed.client.client_app_runner import ClientAppRunner

_check_parent_alive = utils.check_parent_alive
_notify_job_status, _stop = ClientAppRunner.notify_job_status, ClientAppRunner.stop
# Set while this process, which runs one job, waits for its parent to acknowledge.
_notifying = Event()


def end_with_parent(parent: int, over: Event) -> None:
    """End this process group with its parent or its work.

    Args:
        parent: process id.
        over: set when the work is done.
    """
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        over.set()
    except (AttributeError, OSError):
        pass  # older than Linux 5.3: FLARE's own loop checks the parent
    else:
        Thread(target=_set_at_end, args=(over, descriptor), daemon=True).start()
        over.wait()
    _check_parent_alive(parent, over)


def _set_at_end(over: Event, process: int) -> None:
    """Set an event once a descriptor's process has ended."""
    connection.wait([process])
    over.set()


def notify_parent(runner: ClientAppRunner, *message: Any, retry_timeout: float | None = None, **options: Any) -> None:
    """Report the job's status until the parent acknowledges it.

    It retries twice a second. FLARE's own retries without a pause once ``retry_timeout`` is over, and no longer checks
    whether the parent lives.
    """
    _notifying.set()
    _notify_job_status(runner, *message, retry_timeout=math.inf if retry_timeout else None, **options)
    _notifying.clear()


def stop_without_parent(runner: ClientAppRunner) -> None:
    """Stop a job whose parent ended, even before it began."""
    if _notifying.is_set():
        os._exit(1)
    _stop(runner)


def watch_parent() -> None:
    """Use these functions in the processes of sites and jobs."""
    utils.check_parent_alive = end_with_parent
    ClientAppRunner.notify_job_status, ClientAppRunner.stop = notify_parent, stop_without_parent
