"""Give each forked process its own stream numbers.

FLARE 2.9.0 numbers its streams from the time of its import, and drops a number that it has seen. Forks share that time:
messages of a restarted process would be dropped until it had sent as many streams as the one before. Replaces
``stream_utils.sid_base``.
"""

from __future__ import annotations

import secrets
import time

from nvflare.fuel.f3.streaming import stream_utils

# Microseconds between the numbers of processes that start at the same time.
_SPREAD = 1_000_000


def renumber_streams() -> None:
    """Number this process's streams from now on."""
    stream_utils.sid_base = time.time_ns() // 1000 + secrets.randbelow(_SPREAD)
