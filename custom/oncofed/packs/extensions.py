"""What a pack may bring beside networks: changes of training batches, and losses, each known under the pack alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from oncofed.errors import SpecError
from oncofed.models.networks import current_pack
from oncofed.tasks import tasks_of_pack

Batch = dict[str, Tensor]
# On the device, after oncofed's own augmentation; tensors by name, such as "image" and "label".
Transform = Callable[[Batch], Batch]
# Of a network's output, in float32, and the batch: the mean loss, a scalar.
Loss = Callable[[Tensor, Batch], Tensor]

_Function = TypeVar("_Function", bound=Callable[..., object])
_TRANSFORMS: dict[tuple[str, str], Transform] = {}
_LOSSES: dict[tuple[str, str], Loss] = {}


def register_transform(name: str) -> Callable[[Transform], Transform]:
    """Make a function a change of training batches that a job may name in ``training.transforms``."""

    def keep(function: Transform) -> Transform:
        _TRANSFORMS[current_pack(), name] = function
        return function

    return keep


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Make a function a loss that a job may name in ``training.loss``, in place of its task's own."""

    def keep(function: Loss) -> Loss:
        _LOSSES[current_pack(), name] = function
        return function

    return keep


def find_transforms(pack: str, names: Sequence[str]) -> list[Transform]:
    """Return changes of batches by name.

    Args:
        pack: digest of the pack that brings them.
        names: in the order in which they are made.

    Raises:
        SpecError: the pack has none of that name.
    """
    return [_found(_TRANSFORMS, pack, name, "transform") for name in names]


def find_loss(pack: str, name: str) -> Loss:
    """Return a loss by name; see ``find_transforms``."""
    return _found(_LOSSES, pack, name, "loss")


def extensions_of(pack: str) -> dict[str, list[str]]:
    """Return the names of what a pack that was loaded registered, by kind."""
    return {
        "tasks": tasks_of_pack(pack),
        "transforms": [name for of, name in _TRANSFORMS if of == pack],
        "losses": [name for of, name in _LOSSES if of == pack],
    }


def _found(registry: dict[tuple[str, str], _Function], pack: str, name: str, what: str) -> _Function:
    if (pack, name) not in registry:
        known = ", ".join(sorted(other for of, other in registry if of == pack)) or "none"
        raise SpecError(f"the pack {pack[:12]}… has no {what} {name!r}; it has {known}")
    return registry[pack, name]
