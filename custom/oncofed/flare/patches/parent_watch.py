"""A site's processes end with their parent: a simulated site's, and a job's that has yet to say that it began."""

from __future__ import annotations

import math
import os
from multiprocessing import connection
from threading import Event, Thread
from typing import Any

from nvflare.private.fed.app import utils
from nvflare.private.fed.client.client_app_runner import ClientAppRunner

_end_by_looking = utils.check_parent_alive
_notify, _stop = ClientAppRunner.notify_job_status, ClientAppRunner.stop


def end_with_parent(parent: int, over: Event) -> None:
    """End this process and all of its group once its parent has ended, or its work is over.

    FLARE's own looks for both each second, which takes 64 sites that wait some percent of two cores; here the system
    tells.

    Args:
        parent: its number.
        over: set when the work is.
    """
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        over.set()
    except (AttributeError, OSError):
        pass  # the system cannot tell, so FLARE's own looks
    else:
        Thread(target=_set_at_end, args=(over, descriptor), daemon=True).start()
        over.wait()
    _end_by_looking(parent, over)


def _set_at_end(over: Event, process: int) -> None:
    """Set an event once the process has ended that a descriptor stands for."""
    connection.wait([process])
    over.set()


def notify_parent(runner: ClientAppRunner, *told: Any, retry_timeout: float | None = None, **how: Any) -> None:
    """Tell the site's process what became of the job, twice a second until it hears.

    FLARE 2.9's own asks on without a pause once its time is over, and looks no more whether anybody is there.
    """
    runner.asks_parent = True
    _notify(runner, *told, retry_timeout=math.inf if retry_timeout else None, **how)
    runner.asks_parent = False


def stop_without_parent(runner: ClientAppRunner) -> None:
    """Stop a job whose parent has ended; one that has not begun ends here and now."""
    if getattr(runner, "asks_parent", False):
        os._exit(1)
    _stop(runner)


def learn_of_parent() -> None:
    """Have FLARE call that in the processes of its sites and jobs."""
    utils.check_parent_alive = end_with_parent
    ClientAppRunner.notify_job_status, ClientAppRunner.stop = notify_parent, stop_without_parent
