"""Updates as integers modulo 2^32 or 2^16, and back.

Fixed point: a value is a number of steps. With 32 bits a step is 2^-24, and values within +-128 fit; with 16 bits a
tensor's step follows from its bound, which all sites derive from the last mean. What is out of range is cut off
*before* it is weighted: a sum that wraps around would be nonsense, and no site could know.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.masks import Words
from oncofed.privacy.secure_aggregation.messages import MOST_SITES

# f of 32 bits.
FRACTION_BITS = 24
# A bound of 16 bits in root mean squares of the last mean: one site's values are larger than the mean's.
BOUND_RMS = 64.0
# At least so many of the longest update, if all its tensors are as much longer than the mean's.
_LEAST_BOUND_RMS = 8.0
# A tensor that hardly moved is bounded by this part of the whole model's root mean square: it may move again.
_LEAST_RMS = 1e-3
# A tensor of fewer values keeps 32 bits: it saves nothing, and a few values are easily all beyond its bound.
LEAST_VALUES = 1024
# Largest share of a tensor's values that 16 bits may cut off: a sum of values that are all cut off is one of signs,
# and each site's can be told from the others' by its weight.
MOST_CUT_OFF = 1e-3
# Largest step of 16 bits, in root mean squares of an update whose whole length were in this tensor.
_COARSEST = 1.0
# The rule that is broken where an update does not fit 16 bits.
NOT_IN_16_BITS = "16 bits"
_CHUNK = 1 << 15
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {torch.int32: np.uint32, torch.int16: np.uint16}


@dataclass(frozen=True)
class Scale:
    """How a tensor's values become words.

    Attributes:
        bits: of a word, 32 or 16.
        step: value of one.
        weight: sum of all sites' factors, if above 1; values are cut off earlier by as much.
    """

    bits: int
    step: float
    weight: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        """Type of the words."""
        return torch.int32 if self.bits == 32 else torch.int16

    @property
    def limit(self) -> float:
        """Largest value before weighting.

        Each of ``MOST_SITES`` may round up by half a step, and the sum still fits.
        """
        return ((1 << (self.bits - 1)) - 1 - (MOST_SITES + 1) // 2) * self.step / max(self.weight, 1.0)


def scale_of(name: str, bounds: Mapping[str, float], weight: float = 1.0) -> Scale:
    """Return a tensor's scale.

    Args:
        name: of the tensor.
        bounds: name -> largest absolute value, of tensors with 16 bits; all others have 32.
        weight: sum of all sites' factors.
    """
    if name not in bounds:
        return Scale(32, 2.0**-FRACTION_BITS, weight)
    return Scale(16, 2 * bounds[name] / (1 << 16), weight)


def bounds_of(mean: Mapping[str, Tensor], longest: float = 0.0) -> dict[str, float]:
    """Return bounds for 16 bits from the last mean.

    Empty, so that 32 bits are used, if it is zero or not finite. Where sites pull in different directions their updates
    are far longer than the mean: the bounds are larger then.

    Args:
        mean: by name, floating-point.
        longest: norm of the longest update in it, as its site declared.
    """
    squares = {name: _sum_of_squares(value) for name, value in sorted(mean.items())}
    count = sum(value.numel() for value in mean.values())
    whole = math.sqrt(sum(squares.values()) / max(count, 1))
    if not math.isfinite(whole) or whole == 0:
        return {}
    roots = {name: math.sqrt(square / max(mean[name].numel(), 1)) for name, square in squares.items()}
    ratio = longest / (whole * math.sqrt(count))
    bound = max(BOUND_RMS, _LEAST_BOUND_RMS * ratio)
    large = {name: root for name, root in roots.items() if mean[name].numel() >= LEAST_VALUES}
    return {name: bound * max(root, _LEAST_RMS * whole) for name, root in large.items()}


def check_fit(name: str, value: Tensor, scale: Scale, norm: float) -> None:
    """Refuse a scale of 16 bits that would tell single values of an update, or next to nothing of it.

    The server says what the bounds are, and chooses the models from which they follow: a site holds them against its
    own update alone.

    Args:
        name: of the tensor.
        value: of the update, floating-point, on the CPU.
        scale: of the tensor.
        norm: of the whole update.

    Raises:
        ProtocolError: the tensor is too small, too many values are beyond the bound, or a step is far too coarse.
    """
    count = value.numel()
    if count < LEAST_VALUES:
        raise ProtocolError("bits", f"{name} has {count} values and a bound, expected at least {LEAST_VALUES} values")
    flat = value.detach().reshape(-1)
    cut_off = sum(
        int((flat[first : first + _CHUNK].double().abs() > scale.limit).sum()) for first in range(0, count, _CHUNK)
    )
    if cut_off > MOST_CUT_OFF * count or scale.step > _COARSEST * norm / math.sqrt(count):
        raise not_in_16_bits()


def not_in_16_bits() -> ProtocolError:
    """Return the refusal of bounds; the same words whichever does not fit, for they reach the server."""
    return ProtocolError(
        NOT_IN_16_BITS, "the bounds of 16-bit words do not fit this site's update: it takes part with 32 bits"
    )


def quantise(value: Tensor, factor: float, scale: Scale, left_over: Tensor | None = None) -> Tensor:
    """Return a tensor's words: cut off, weighted, rounded.

    Args:
        value: floating-point, on the CPU.
        factor: the site's, such as its share of the mean; zero or more.
        scale: of the tensor.
        left_over: float32 of the same shape; takes ``value`` less what the words stand for.

    Returns:
        Words of the scale's type, of the same shape.

    Raises:
        ProtocolError: a value is not finite.
    """
    words = torch.empty(value.shape, dtype=scale.dtype)
    source, target = value.detach().reshape(-1), words.view(-1).numpy()
    rest = None if left_over is None else left_over.view(-1).numpy()
    limit, unweighted = scale.limit, scale.step / factor if factor else 0.0
    for first in range(0, source.numel(), _CHUNK):
        part = slice(first, first + _CHUNK)
        exact = source[part].double().numpy()
        if not np.isfinite(exact).all():
            raise ProtocolError(
                "not finite", "the update has a value that is not finite, expected finite numbers alone"
            )
        steps = np.clip(exact, -limit, limit)
        steps *= factor / scale.step
        np.rint(steps, out=steps)
        target[part] = steps
        if rest is not None:
            rest[part] = exact - steps * unweighted
    return words


def dequantise(words: Tensor, scale: Scale) -> Tensor:
    """Return the values of a sum's words, float32."""
    values = torch.empty(words.shape, dtype=torch.float32)
    source, target = words.reshape(-1), values.view(-1)
    for first in range(0, source.numel(), _CHUNK):
        part = slice(first, first + _CHUNK)
        target[part] = source[part].double() * scale.step
    return values


def unsigned(words: Tensor) -> Words:
    """Return words as a flat array that shares their memory.

    Sums wrap around.

    Args:
        words: int32 or int16, contiguous.
    """
    return words.view(-1).numpy().view(_UNSIGNED[words.dtype])


def words_digest(words: Mapping[str, Tensor]) -> bytes:
    """Return SHA-256 over names, types, shapes and words, by name."""
    digest = hashlib.sha256()
    for name in sorted(words):
        value = words[name].contiguous()
        head = f"{len(name)}:{name}{value.dtype}{tuple(value.shape)}"
        digest.update(head.encode())
        digest.update(_little_endian(value).data)
    return digest.digest()


def fingerprint(values: Mapping[str, Tensor]) -> bytes:
    """Return 32 bytes that are the same for the same values.

    Each tensor counts by the sum of its bits as integers: fast, and exact on every machine. Others with the same sums
    would be taken for the same, which no site has a reason to make.

    Args:
        values: by name, floating-point.
    """
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().contiguous()
        bits = value.view(_BITS[value.element_size()]).sum(dtype=torch.int64)
        digest.update(f"{len(name)}:{name}{value.dtype}{tuple(value.shape)}{int(bits)}".encode())
    return digest.digest()


def norm_of(values: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all tensors."""
    return math.sqrt(sum(_sum_of_squares(values[name]) for name in sorted(values)))


def _sum_of_squares(value: Tensor) -> float:
    flat = value.detach().reshape(-1)
    parts = (flat[first : first + _CHUNK].double() for first in range(0, flat.numel(), _CHUNK))
    return sum(float(torch.dot(part, part)) for part in parts)


def _little_endian(value: Tensor) -> NDArray[np.uint8]:
    array = value.reshape(-1).numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)
