"""torchvision beside a torch for which its compiled operators were not made."""

from __future__ import annotations

import contextlib

import torch

_OPERATORS = ("nms", "qnms")
_LIBRARIES: list[torch.library.Library] = []


def declare() -> None:
    """Declare the two operators that torchvision wants when it is imported.

    There is no torchvision for each build of torch. What timm and torchmetrics import of it calls no operator.
    """
    try:
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401, PLC0415 - it may fail
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
