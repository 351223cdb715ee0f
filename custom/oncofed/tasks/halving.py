"""Cases in smaller groups where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from oncofed.devices import free_memory, is_out_of_memory
from oncofed.errors import TrainingError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def within_memory(compute: Callable[[Sequence[_Item]], list[_Result]], items: Sequence[_Item]) -> list[_Result]:
    """Compute items' results, in halves where memory is short.

    Raises:
        TrainingError: one item alone does not fit.
    """
    try:
        return compute(items)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise TrainingError(
                "one case alone does not fit into memory while a model looks at it. Free the GPU of other programs "
                "(nvidia-smi), or make data.patch smaller"
            ) from None
    # Outside the except block, because the error's traceback holds the failed pass's memory.
    free_memory()
    middle = len(items) // 2
    return [*within_memory(compute, items[:middle]), *within_memory(compute, items[middle:])]
