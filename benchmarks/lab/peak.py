"""Peak memory of a process, and of its new tensors."""

from __future__ import annotations

import contextlib
import threading
import weakref
from types import TracebackType
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import Self


class Peak:
    """Samples a process's memory in a block, without mapped files.

    Args:
        process: by default this one.
        every: seconds between looks.

    Attributes:
        most: bytes.
    """

    def __init__(self, process: psutil.Process | None = None, every: float = 0.02) -> None:
        self._process, self._every = process or psutil.Process(), every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = 0

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):  # it ended
            while not self._over.wait(self._every):
                self._look()

    def _look(self) -> None:
        memory = self._process.memory_info()
        # Such pages can be dropped at any time.
        self.most = max(self.most, memory.rss - memory.shared)


class TensorPeak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of live tensors made in a block.

    On any device. On the device "meta" nothing is computed or stored, so that what a large GPU would hold is known
    without one.

    Attributes:
        most: bytes, at the highest.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, int] = {}
        self._now = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and id_of(value) not in given | self._held.keys():
                storage = value.untyped_storage()
                self._held[id_of(value)] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, id_of(value))
        self.most = max(self.most, self._now)
        return result

    def _gone(self, number: int) -> None:
        self._now -= self._held.pop(number, 0)


def id_of(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's memory."""
    return int(tensor.untyped_storage()._cdata)
