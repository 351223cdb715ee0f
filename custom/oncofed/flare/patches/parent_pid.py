"""Name the parent of a forked job process.

FLARE 2.9.0 ends a job's process when the process that ``os.getppid`` names has ended. A fork's parent is the fork
server, which several participants may share: replaces ``os.getppid``.
"""

from __future__ import annotations

import os


def set_parent(pid: int) -> None:
    """Let ``os.getppid`` return the process that requested this one."""
    os.getppid = lambda: pid
