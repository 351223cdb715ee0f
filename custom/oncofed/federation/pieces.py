"""Large tensors travel in pieces, so that nobody on their way holds more of one than a piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.models.weights import Weights

# FLARE sends a tensor whole, and holds several copies of it for each site. Eight MiB of float32.
_LARGEST_PIECE = 2 << 20
_MARK = "#"


def in_pieces(weights: Weights) -> Weights:
    """Return tensors of which none has more than two million elements, where it has rows that it can be cut between.

    The pieces of a tensor are views of its rows and named ``NAME#0``, ``NAME#1`` and so on.

    Example:
        >>> list(in_pieces({"small": torch.zeros(3), "large": torch.zeros(3, 1 << 20)}))
        ['small', 'large#0', 'large#1']
    """
    pieces: Weights = {}
    for name, value in weights.items():
        if value.numel() <= _LARGEST_PIECE or value.shape[0] == 1:
            pieces[name] = value
            continue
        rows = max(1, _LARGEST_PIECE // (value.numel() // value.shape[0]))
        pieces |= {f"{name}{_MARK}{number}": piece for number, piece in enumerate(torch.split(value, rows))}
    return pieces


class Seen(NamedTuple):
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    finite: bool


class Joined(Mapping[str, Tensor]):
    """Tensors as they were before they were split; each is put together when asked for. ``look`` says what it is.

    Args:
        pieces: what arrived, by name: tensors, or FLARE's references to tensors that it keeps in a file.

    Raises:
        FederationError: that is not tensors by name, or a piece is missing.
    """

    def __init__(self, pieces: Any) -> None:
        if not isinstance(pieces, dict):
            raise FederationError(f"it sent a {type(pieces).__name__}, expected tensors by name")
        self._pieces = pieces
        self._names: dict[str, list[str]] = {}
        for key in map(str, pieces):
            name, mark, number = key.rpartition(_MARK)
            if not mark:
                self._names[key] = [key]
                continue
            keys = self._names.setdefault(name, [])
            if number != str(len(keys)):
                raise FederationError(f"it sent {key} where piece {len(keys)} of {name} was expected")
            keys.append(key)

    def __getitem__(self, name: str) -> Tensor:
        found = [_tensor(self._pieces[key]) for key in self._names[name]]
        if len(found) == 1:
            return found[0]
        return torch.cat(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def look(self, name: str) -> Seen:
        """Return what a tensor is; no more than a piece of it is read at a time.

        Raises:
            FederationError: its pieces do not fit together.
        """
        first, *others = (_seen(_tensor(self._pieces[key])) for key in self._names[name])
        for other in others:
            if other.dtype != first.dtype or not first.shape or other.shape[1:] != first.shape[1:]:
                raise FederationError(f"it sent pieces of {name} that do not fit together")
        if not others:
            return first
        rows = first.shape[0] + sum(other.shape[0] for other in others)
        finite = first.finite and all(other.finite for other in others)
        return Seen((rows, *first.shape[1:]), first.dtype, finite)

    @property
    def nbytes(self) -> int:
        """Bytes that travelled."""
        return sum(_tensor(value).nbytes for value in self._pieces.values())


def _seen(value: Tensor) -> Seen:
    finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
    return Seen(tuple(value.shape), value.dtype, finite)


def _tensor(value: Any) -> Tensor:
    materialize = getattr(value, "materialize", None)
    found = materialize() if materialize else value
    if not isinstance(found, Tensor):
        raise FederationError(f"it sent a {type(found).__name__} where a tensor was expected")
    return found
