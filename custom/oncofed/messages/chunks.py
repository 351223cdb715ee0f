"""Cut large tensors into pieces, to spare relays memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from oncofed.errors import UpdateRejectedError
from oncofed.models.weights import Weights, sum_of_squares

# FLARE sends a tensor whole, and holds several copies of it for each site. Eight MiB of float32.
_LARGEST_PIECE = 2 << 20
_MARK = "#"


def in_pieces(weights: Weights) -> Weights:
    """Return tensors cut into pieces.

    A piece has at most two million elements; a tensor is cut between rows, and one of a single row stays whole. Pieces
    are views of its rows and named ``NAME#0``, ``NAME#1`` and so on.

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
    """A tensor without its values.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        finite: whether all values are.
        squares: sum of the squares; 0 for integers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    finite: bool
    squares: float


# Results of early inspection, with the version of the tensor's values.
_ahead: MutableMapping[Tensor, tuple[int, Seen]] = WeakIdKeyDictionary()


def inspect_early(tensors: Iterable[Tensor]) -> None:
    """Inspect tensors as they arrive.

    Updates arrive together, but FLARE passes them on one by one. A tensor whose values change later is inspected again.
    """
    for value in tensors:
        _ahead[value] = (value._version, _look(value))


class ChunkedTensors(Mapping[str, Tensor]):
    """Tensors joined from their pieces on access.

    Args:
        pieces: by name: tensors, or FLARE's references to tensors that it keeps in a file.

    Raises:
        UpdateRejectedError: they are something else, or a piece is missing.
    """

    def __init__(self, pieces: Any) -> None:
        if not isinstance(pieces, dict):
            raise UpdateRejectedError(f"it sent a {type(pieces).__name__}, expected tensors by name")
        self._pieces = pieces
        self._names: dict[str, list[str]] = {}
        for key in map(str, pieces):
            name, mark, number = key.rpartition(_MARK)
            if not mark:
                self._names[key] = [key]
                continue
            keys = self._names.setdefault(name, [])
            if number != str(len(keys)):
                raise UpdateRejectedError(f"it sent {key} where piece {len(keys)} of {name} was expected")
            keys.append(key)

    def __getitem__(self, name: str) -> Tensor:
        found = [_tensor(self._pieces[key]) for key in self._names[name]]
        return found[0] if len(found) == 1 else _join(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def look(self, name: str) -> Seen:
        """Inspect a tensor, reading one piece at a time.

        Raises:
            UpdateRejectedError: its pieces do not fit together.
        """
        first, *others = (_seen(_tensor(self._pieces[key])) for key in self._names[name])
        for other in others:
            if other.dtype != first.dtype or not first.shape or other.shape[1:] != first.shape[1:]:
                raise UpdateRejectedError(f"it sent pieces of {name} that do not fit together")
        if not others:
            return first
        rows = first.shape[0] + sum(other.shape[0] for other in others)
        finite = first.finite and all(other.finite for other in others)
        squares = first.squares + sum(other.squares for other in others)
        return Seen((rows, *first.shape[1:]), first.dtype, finite, squares)

    @property
    def nbytes(self) -> int:
        """Bytes that travelled."""
        return sum(_tensor(value).nbytes for value in self._pieces.values())


def _join(pieces: list[Tensor]) -> Tensor:
    """Return pieces as one tensor.

    Pieces that are adjacent in memory are not copied.
    """
    first = pieces[0]
    memory, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for piece in pieces:
        if piece.untyped_storage().data_ptr() != memory or piece.storage_offset() != end or not piece.is_contiguous():
            return torch.cat(pieces)
        end += piece.numel()
    whole = torch.empty((sum(piece.shape[0] for piece in pieces), *first.shape[1:]), device="meta")
    return first.as_strided(whole.shape, whole.stride(), first.storage_offset())


def _seen(value: Tensor) -> Seen:
    """Return the result of ``look`` for one piece."""
    version, found = _ahead.get(value, (None, None))
    return found if found and version == value._version else _look(value)


def _look(value: Tensor) -> Seen:
    """Inspect a tensor.

    Its values are read once: where one is not finite, their sum of squares is not either.
    """
    if not value.is_floating_point():
        return Seen(tuple(value.shape), value.dtype, True, 0.0)
    squares = sum_of_squares(value)
    # Finite values may have squares that overflow double precision.
    finite = math.isfinite(squares) or bool(torch.isfinite(value).all())
    return Seen(tuple(value.shape), value.dtype, finite, squares)


def _tensor(value: Any) -> Tensor:
    materialize = getattr(value, "materialize", None)
    found = materialize() if materialize else value
    if not isinstance(found, Tensor):
        raise UpdateRejectedError(f"it sent a {type(found).__name__} where a tensor was expected")
    return found
