"""What a job's process makes once, and keeps in FLARE's context."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nvflare.apis.fl_context import FLContext

Kept = TypeVar("Kept")


def made_once(fl_ctx: FLContext, name: str, kind: type[Kept], make: Callable[[FLContext], Kept]) -> Kept:
    """Return a context's property, made at the first call.

    Args:
        fl_ctx: of the job's process.
        name: of the property; it is private and sticky.
        kind: of the value.
        make: makes it; what it raises is passed on, and nothing is kept.
    """
    known = fl_ctx.get_prop(name)
    if isinstance(known, kind):
        return known
    made = make(fl_ctx)
    fl_ctx.set_prop(name, made, private=True, sticky=True)
    return made
