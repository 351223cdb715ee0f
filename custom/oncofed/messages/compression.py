"""Compression of updates, with error feedback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from oncofed.algorithms.settings import ExchangeType
from oncofed.errors import UpdateRejectedError
from oncofed.messages.chunks import ChunkedTensors, Seen
from oncofed.models.weights import Weights

_SCALE = "scale."
EXTRA = "extra."
# Fits into a core's cache.
_VALUES_TOGETHER = 1 << 18


class Compressor:
    """Rounds a site's updates, with error feedback.

    bfloat16 halves the bytes, int8 quarters them, with a scale for each row of a tensor. Without the feedback the
    errors of many rounds add up (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019).

    Args:
        kind: type of the updates.
    """

    def __init__(self, kind: ExchangeType) -> None:
        self._kind = kind
        self.left_over: Weights = {}

    def compress(self, delta: Weights) -> Weights:
        """Return an update as it travels; integer tensors are unchanged."""
        if self._kind == "native":
            return delta
        sent: Weights = {}
        for name, value in delta.items():
            if not value.is_floating_point():
                sent[name] = value
                continue
            # Written in place: new memory costs more than the addition.
            whole = self.left_over[name].add_(value) if name in self.left_over else value.contiguous().clone()
            if self._kind == "bfloat16":
                sent[name] = whole.to(torch.bfloat16, copy=True)
                whole.sub_(sent[name])
            else:
                sent[name], sent[_SCALE + name] = _round_off(whole)
            self.left_over[name] = whole
        return sent


def travelling_bytes(weights: Weights, kind: ExchangeType) -> int:
    """Return the size of compressed weights.

    Framing and TLS are not counted.
    """
    floating = [value for value in weights.values() if value.is_floating_point()]
    whole = sum(value.nbytes for value in weights.values() if not value.is_floating_point())
    if kind == "native":
        return whole + sum(value.nbytes for value in floating)
    if kind == "bfloat16":
        return whole + sum(2 * value.numel() for value in floating)
    # A byte for each element, and a float32 scale for each row.
    return whole + sum(value.numel() + 4 * (value.shape[0] if value.ndim > 1 else 1) for value in floating)


def with_extra(weights: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> Weights:
    """Return weights and extra tensors as one message."""
    return {**weights, **{EXTRA + name: value for name, value in extra.items()}}


def without_extra(chunks: Any) -> tuple[ChunkedTensors, ChunkedTensors]:
    """Return the weights and the extra tensors of a message.

    Args:
        chunks: by name: tensors, or FLARE's references to tensors that it keeps in a file.

    Raises:
        UpdateRejectedError: they are something else, or one is missing.
    """
    if not isinstance(chunks, dict):
        return ChunkedTensors(chunks), ChunkedTensors({})
    named = {str(name): value for name, value in chunks.items()}
    extra = {name.removeprefix(EXTRA): value for name, value in named.items() if name.startswith(EXTRA)}
    return (
        ChunkedTensors({name: value for name, value in named.items() if not name.startswith(EXTRA)}),
        ChunkedTensors(extra),
    )


class ReceivedUpdate(Mapping[str, Tensor]):
    """An update that is decompressed on access.

    Args:
        sent: tensors by name, as ``Compressor`` made them.
        like: tensors as the global model has them; their values do not matter.
        kind: type of the updates.
        extra: the extra tensors, which travel in their own type.
        extra_like: the extra tensors that sites may send; their values do not matter.

    Attributes:
        squares: sum of squares by name, of tensors whose values travel unchanged.

    Raises:
        UpdateRejectedError: it does not fit the model; names the first difference.
    """

    def __init__(
        self,
        sent: Mapping[str, Tensor],
        like: Weights,
        kind: ExchangeType,
        extra: Mapping[str, Tensor] | None = None,
        extra_like: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._sent, self._extra = _chunked(sent), _chunked(extra or {})
        self._like, self._kind, extra_like = like, kind, extra_like or {}
        self.squares: dict[str, float] = {}
        scaled = [n for n, v in like.items() if kind == "int8" and v.is_floating_point()]
        expected = {*like, *(_SCALE + name for name in scaled)}
        found = set(self._sent)
        if found != expected:
            raise UpdateRejectedError(
                f"it sent other tensors than the model has (first difference: {sorted(found ^ expected)[:1]})"
            )
        unknown = self._extra.keys() - extra_like.keys()
        if unknown:
            raise UpdateRejectedError(f"it sent {EXTRA}{min(unknown)}, which the strategy does not ask for")
        for name in sorted(found):
            self._check(name)
        for name in self._extra:
            _require(EXTRA + name, self._extra.look(name), extra_like[name].shape, extra_like[name].dtype)
        self.extra: Weights = {name: self._extra[name] for name in extra_like if name in self._extra}

    def _check(self, name: str) -> None:
        seen = self._sent.look(name)
        if name.startswith(_SCALE) and name not in self._like:
            of = self._like[name.removeprefix(_SCALE)]
            _require(name, seen, _largest_of_rows(of).shape, torch.float32)
            return
        of = self._like[name]
        kinds = {"native": of.dtype, "bfloat16": torch.bfloat16, "int8": torch.int8}
        _require(name, seen, of.shape, kinds[self._kind] if of.is_floating_point() else of.dtype)
        if of.is_floating_point() and self._kind != "int8":
            self.squares[name] = seen.squares

    def __getitem__(self, name: str) -> Tensor:
        like = self._like[name]
        value = self._sent[name]
        if self._kind == "int8" and like.is_floating_point():
            return _restored(value, self._sent[_SCALE + name], like.dtype)
        return value.to(like.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)

    @property
    def nbytes(self) -> int:
        """Bytes that travelled."""
        return self._sent.nbytes + self._extra.nbytes

    @property
    def floats(self) -> int:
        """Number of elements, without integers."""
        return sum(value.numel() for value in self._like.values() if value.is_floating_point())


def _chunked(tensors: Mapping[str, Tensor]) -> ChunkedTensors:
    return tensors if isinstance(tensors, ChunkedTensors) else ChunkedTensors(dict(tensors))


class NotFiniteError(UpdateRejectedError):
    """An update has infinite or NaN values: its training diverged."""


def _require(name: str, seen: Seen, shape: torch.Size, dtype: torch.dtype) -> None:
    if seen.shape != tuple(shape) or seen.dtype != dtype:
        raise UpdateRejectedError(f"it sent {name} as {seen.shape} {seen.dtype}, expected {tuple(shape)} {dtype}")
    if not seen.finite:
        raise NotFiniteError(f"it sent values in {name} that are not finite")


def _largest_of_rows(value: Tensor) -> Tensor:
    if value.ndim < 2:
        return value.abs().amax() if value.numel() else value.new_zeros(())
    return value.abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True)


def _round_off(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tensor's rows as int8, and their scales.

    The tensor keeps the rounding error.
    """
    scale = (_largest_of_rows(whole) / 127).float()
    rounded = torch.empty(whole.shape, dtype=torch.int8)
    rows, numbers, scales = (value.view(scale.numel(), -1) for value in (whole, rounded, scale))
    together = max(1, _VALUES_TOGETHER // rows.shape[1])
    for some, target, factor in zip(*(torch.split(v, together) for v in (rows, numbers, scales)), strict=True):
        found = (some / factor.clamp_min(1e-30)).round_().clamp_(-127, 127)
        target.copy_(found)
        some.sub_(_restored(target, factor, some.dtype))
    return rounded, scale


def _restored(rounded: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return rounded.float().mul_(scale).to(dtype)
