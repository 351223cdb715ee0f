"""Look-up of a pack's tasks, transforms and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from oncofed.plugins import LOSSES, TASKS, TRANSFORMS, register_loss, register_transform

__all__ = ["Batch", "Loss", "Transform", "extensions_of", "find_loss", "find_transforms"]
__all__ += ["register_loss", "register_transform"]

Batch = dict[str, Tensor]
# On the device, after oncofed's own augmentation; tensors by name, such as "image" and "label".
Transform = Callable[[Batch], Batch]
# Of a network's output, in float32, and the batch: the mean loss, a scalar.
Loss = Callable[[Tensor, Batch], Tensor]


def find_transforms(pack: str, names: Sequence[str]) -> list[Transform]:
    """Return changes of batches by name.

    Args:
        pack: digest of the pack that brings them.
        names: in the order in which they are made.

    Raises:
        SpecError: the pack has none of that name.
    """
    return [TRANSFORMS.find(name, pack) for name in names]


def find_loss(pack: str, name: str) -> Loss:
    """Return a loss by name; see ``find_transforms``."""
    return LOSSES.find(name, pack)


def extensions_of(pack: str) -> dict[str, list[str]]:
    """Return the names that a loaded pack registered, by kind."""
    return {"tasks": TASKS.names(pack), "transforms": TRANSFORMS.names(pack), "losses": LOSSES.names(pack)}
