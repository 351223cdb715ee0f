"""torchvision beside a build of torch for which its compiled operators were not made.

There is no torchvision for each build of torch, and timm imports it. What timm uses of it calls no compiled operator,
but torchvision registers two of them when it is imported, and fails where nobody declared them.
"""

from __future__ import annotations

import contextlib
import importlib

import torch

_OPERATORS = ("nms", "qnms")
_LIBRARIES: list[torch.library.Library] = []  # an operator lasts as long as the library that declares it


def declare_where_missing() -> None:
    """Declare the operators that torchvision wants, where its own cannot be loaded.

    Calling one of them stays an error.
    """
    if _LIBRARIES:
        return
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _LIBRARIES.append(library)
