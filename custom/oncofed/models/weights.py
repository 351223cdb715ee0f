"""A network's weights by name, each once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from blake3 import blake3
from torch import Tensor, nn

from oncofed.errors import TrainingError

Weights = dict[str, Tensor]
# Values of a block, whose squares are summed in single precision (error of some millionths), and blocks summed at once.
_BLOCK, _BLOCKS = 1 << 15, 1 << 6
# Sums of squares in single precision hold within these.
_LEAST, _MOST = 1e-30, 1e38
_INDICES = frozenset({torch.int32, torch.int64})
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def weights_of(network: nn.Module) -> Weights:
    """Return a network's parameters and buffers by their first name.

    MONAI's DynUNet holds every layer under two names: sending both would double what travels.

    Returns:
        The tensors themselves, not copies.
    """
    found: Weights = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, values in network.state_dict().items():
        place = (values.data_ptr(), tuple(values.shape))
        if place not in seen or not values.numel():
            seen.add(place)
            found[name] = values
    return found


def norm_names(network: nn.Module) -> set[str]:
    """Return the names of normalisation weights and statistics."""
    return {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, _NORMS)
        for name in module.state_dict()
    }


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Put weights into a network.

    Raises:
        TrainingError: they are not those of this network.
    """
    expected = weights_of(network)
    if set(expected) != set(weights):
        odd = sorted(set(expected) ^ set(weights))[0]
        raise TrainingError(f"the weights are not those of this network (first difference: {odd})")
    # Not strict: tied weights have one name only, and the others follow.
    network.load_state_dict(weights, strict=False)


def trained_names(network: nn.Module) -> frozenset[str]:
    """Return the names of weights trained by gradients.

    All others are statistics or fixed.
    """
    known = weights_of(network)
    return frozenset(name for name, value in network.named_parameters() if value.requires_grad and name in known)


def exchanged_names(network: nn.Module) -> frozenset[str]:
    """Return the names of trained weights and statistics.

    Tables of indices, such as a Swin transformer's relative positions, are neither: no training changes them.
    """
    fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
    fixed |= {name for name, value in network.named_buffers() if value.ndim and value.dtype in _INDICES}
    return frozenset(weights_of(network)) - fixed


@dataclass(frozen=True)
class WeightLayout:
    """A network's weights without their values.

    Attributes:
        weights: all of them by name, as tensors that have a shape and a type alone (device ``meta``).
        travelling: names of those that training changes.
        trained: names of those that it changes by gradients.
    """

    weights: Weights
    travelling: frozenset[str]
    trained: frozenset[str]

    @property
    def sent(self) -> Weights:
        """Those that travel."""
        return {name: value for name, value in self.weights.items() if name in self.travelling}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(value.nbytes for value in self.weights.values())


def layout_of(network: nn.Module) -> WeightLayout:
    """Return the layout of a network's weights."""
    weights = {name: value.to("meta") for name, value in weights_of(network).items()}
    return WeightLayout(weights, exchanged_names(network), trained_names(network))


class Hash(Protocol):
    """A cryptographic hash, as ``hashlib`` has them."""

    @property
    def name(self) -> str:
        """The algorithm's."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all."""


class Digest:
    """A digest of weights: names, types and values.

    Weights are added one by one, in the order of their names.

    Weights are hashed in each round. BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020) is as hard to forge as
    SHA-256, which would take longer than sending the weights on processors without instructions for it.

    Args:
        algorithm: makes the hash.
    """

    def __init__(self, algorithm: Callable[[], Hash] = blake3) -> None:
        self._digest = algorithm()

    def add(self, name: str, value: Tensor) -> None:
        """Add one of them."""
        self._digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        self._digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """Return it without the name of its algorithm."""
        return self._digest.hexdigest()

    def __str__(self) -> str:
        return f"{self._digest.name}:{self.hexdigest()}"


def digest_of(weights: Weights, algorithm: Callable[[], Hash] = blake3) -> Digest:
    """Return the digest of weights, their names and types."""
    digest = Digest(algorithm)
    for name, value in sorted(weights.items()):
        digest.add(name, value)
    return digest


def sum_of_squares(value: Tensor) -> float:
    """Return a tensor's sum of squares, exact to some millionths.

    It is not finite if a value is not.

    Example:
        >>> sum_of_squares(torch.tensor([3.0, -4.0]))
        25.0
    """
    return sum(map(_squares, torch.split(value.detach().reshape(-1), _BLOCKS * _BLOCK)))


def _squares(values: Tensor) -> float:
    if values.dtype != torch.float64 and len(values):
        single = values.float()
        blocked = len(values) // _BLOCK * _BLOCK
        blocks = [single[:blocked].view(-1, _BLOCK), single[blocked:].view(1, -1)]
        norms = torch.cat([torch.linalg.vector_norm(block, dim=1) for block in blocks if block.numel()])
        squares = norms.double().square()
        if bool(((squares > _LEAST) & (squares < _MOST)).all()):
            return float(squares.sum())
    # Zero, not finite, or outside the range of single precision; double precision takes twice as long.
    wide = values.double()
    return float(torch.dot(wide, wide))
