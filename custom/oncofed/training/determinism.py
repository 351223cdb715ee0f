"""Bit-wise reproducible training.

Switches of PyTorch, deterministic forms of a network's operations, and those without one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

import torch
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.nn import functional

# PyTorch's message for an operation without a deterministic form on the device.
_ALERT = re.compile(r"(\S+) does not have a deterministic implementation")
_LINEAR = frozenset({"linear", "bilinear", "trilinear"})
_LOG = logging.getLogger(__name__)


def make_repeatable(seed: int, deterministic: bool) -> None:
    """Seed random generators, and choose deterministic or fastest kernels.

    An operation without a deterministic form still runs: a pack's network or another part of this process may have one.
    ``alerts_told`` names it.
    """
    set_determinism(seed)
    # Torch's default is for finding errors: it fills all memory before use.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # ``use_deterministic_algorithms`` does both of these, and imports the compiler: 1.7 s and 73 MB in each process.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(deterministic))  # read when it is imported
    if compiler := sys.modules.get("torch._inductor.config"):
        compiler.deterministic = deterministic  # type: ignore[attr-defined]
    if not deterministic:
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True


@contextlib.contextmanager
def alerts_told() -> Iterator[None]:
    """Report operations of the block without a deterministic form.

    In one line, on this device.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _ALERT.pattern)
        yield
    found = {match[1] for warning in caught if (match := _ALERT.match(str(warning.message)))}
    for warning in caught:
        if not _ALERT.match(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if found:
        _LOG.warning(
            "training.deterministic: on this device there is no deterministic form of %s. Two runs may differ in their "
            "last bits",
            ", ".join(sorted(found)),
        )


def use_deterministic_forms(network: nn.Module) -> int:
    """Replace nondeterministic layers by equal ones; return their number.

    These are layers whose gradients CUDA sums in any order.

    Linear interpolation becomes a matrix product for each axis, and an average pool without overlap a mean. Neither has
    weights, so that those and their names stay as they are; values are equal within rounding.
    """
    count = 0
    for name, child in network.named_children():
        form = _form_of(child)
        if form is None:
            count += use_deterministic_forms(child)
        else:
            setattr(network, name, form)
            count += 1
    return count


def _form_of(layer: nn.Module) -> nn.Module | None:
    if type(layer) is nn.Upsample and layer.mode in _LINEAR:
        return _Interpolation(layer)
    if type(layer) is nn.AvgPool3d:
        kernel, stride = (_three(size) for size in (layer.kernel_size, layer.stride))
        plain = _three(layer.padding) == (0, 0, 0) and not layer.ceil_mode and layer.divisor_override is None
        return _BlockMean(kernel) if plain and kernel == stride else None
    return None


def _three(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size,) * 3 if isinstance(size, int) else tuple(size)


class _Interpolation(nn.Module):
    """Linear interpolation of (n, channel, x[, y[, z]]) as ``nn.Upsample``.

    In float32, rounded once.
    """

    def __init__(self, layer: nn.Upsample) -> None:
        super().__init__()
        self._size, self._factor, self._align = layer.size, layer.scale_factor, layer.align_corners
        self._again = layer.recompute_scale_factor

    def forward(self, values: Tensor) -> Tensor:
        # Autocast would compute these products in half precision, which rounds weights and each axis' values.
        with torch.autocast("cpu" if values.is_meta else values.device.type, enabled=False):
            moved = values.float()
            for axis in range(values.ndim - 1, 1, -1):
                matrix = self._matrix(axis, values)
                if axis == values.ndim - 1:
                    moved = moved @ matrix
                else:
                    shape = moved.shape
                    moved = (matrix.T @ moved.flatten(axis + 1)).reshape(*shape[:axis], -1, *shape[axis + 1 :])
            return moved.to(values.dtype)

    def _matrix(self, axis: int, values: Tensor) -> Tensor:
        """Return an axis's interpolation matrix (before, after).

        It holds torch's result for each unit vector.
        """
        size = self._size[axis - 2] if isinstance(self._size, tuple) else self._size
        factor = self._factor[axis - 2] if isinstance(self._factor, tuple) else self._factor
        unit = torch.eye(values.shape[axis], device=values.device)[None]
        return functional.interpolate(unit, size, factor, "linear", self._align, self._again)[0]


class _BlockMean(nn.Module):
    """Average pooling of (n, channel, x, y, z) without overlap.

    The remainder at the end of an axis is dropped.
    """

    def __init__(self, block: tuple[int, ...]) -> None:
        super().__init__()
        self._block = block

    def forward(self, values: Tensor) -> Tensor:
        for axis, side in enumerate(self._block):
            first = 2 + 2 * axis
            count = values.shape[first] // side
            values = values.narrow(first, 0, count * side)
            values = values.reshape(*values.shape[:first], count, side, *values.shape[first + 1 :])
        return values.mean((3, 5, 7))
