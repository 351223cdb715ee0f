"""A simulated site's process ends with its parent."""

from __future__ import annotations

import os
from multiprocessing import connection
from threading import Event, Thread

from nvflare.private.fed.app import utils

_end_by_looking = utils.check_parent_alive


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


def learn_of_parent() -> None:
    """Have FLARE's simulator call that in the processes of its sites."""
    utils.check_parent_alive = end_with_parent
