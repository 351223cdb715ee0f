"""Name FLARE's loggers without reading the whole stack.

FLARE 2.9.0 names a logger for the module that asks for it, which it finds by ``inspect.stack``. That looks for the
source of every caller's caller, among all modules that are imported: a quarter of a second in a process that trains,
and more while it imports. Replaces ``inspect.stack``, for FLARE's loggers alone.
"""

from __future__ import annotations

import inspect
import sys

_LOGGERS = "nvflare.fuel.utils.log_utils"
_stack = inspect.stack


def see_callers_only() -> None:
    """Give FLARE's loggers the frame of their caller alone.

    Before the first import of FLARE, which makes loggers as it is imported.
    """
    inspect.stack = _callers


def _callers(context: int = 1) -> list[inspect.FrameInfo]:
    asking = sys._getframe(1)
    if asking.f_globals.get("__name__") != _LOGGERS or not asking.f_back:
        return _stack(context)[1:]
    return [
        inspect.FrameInfo(frame, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, None, None)
        for frame in (asking, asking.f_back)
    ]
