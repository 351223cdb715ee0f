"""Checks of a message's fields, and its way to plain values and back.

A field states its check in its type: ``Annotated[int, integer(1, 9)]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from torch import Tensor

from oncofed.privacy.secure_aggregation.failures import ProtocolError

Check = Callable[[Any], Any]
_M = TypeVar("_M", bound="Message")


def _wrong(expected: str, found: Any) -> ProtocolError:
    return ProtocolError("message", f"expected {expected}, found {type(found).__name__}")


def text(longest: int) -> Check:
    """Check printable text; ``|`` separates names in labels."""

    def check(value: Any) -> str:
        if type(value) is not str or not 0 < len(value) <= longest or not value.isprintable() or "|" in value:
            raise _wrong(f"printable text of 1 to {longest} characters without '|'", value)
        return value

    return check


def integer(least: int, most: int) -> Check:
    """Check a whole number; booleans are none."""

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(f"a whole number of {least} to {most}", value)
        return value

    return check


def real(least: float, most: float) -> Check:
    """Check a finite float."""

    def check(value: Any) -> float:
        if type(value) is not float or not math.isfinite(value) or not least <= value <= most:
            raise _wrong(f"a decimal number of {least:g} to {most:g}", value)
        return value

    return check


def octets(least: int, most: int) -> Check:
    """Check bytes of a length."""

    def check(value: Any) -> bytes:
        if type(value) is not bytes or not least <= len(value) <= most:
            raise _wrong(f"{least} to {most} bytes" if least != most else f"{most} bytes", value)
        return value

    return check


def by_name(name: Check, of: Check, least: int, most: int) -> Check:
    """Check a dictionary."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not least <= len(value) <= most:
            raise _wrong(f"{least} to {most} values by name", value)
        return {name(key): of(one) for key, one in value.items()}

    return check


def several(of: Check, least: int, most: int) -> Check:
    """Check a tuple; a list, as a wire returns it, becomes one."""

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list) or not least <= len(value) <= most:
            raise _wrong(f"a list of {least} to {most}", value)
        return tuple(of(one) for one in value)

    return check


def words(value: Any) -> Tensor:
    """Check a tensor of words of the ring."""
    if not isinstance(value, Tensor) or value.dtype not in {torch.int32, torch.int16}:
        raise _wrong("a tensor of int32 or int16", value)
    return value


@dataclass(frozen=True)
class Message:
    """Base of the messages; checks each field.

    Raises:
        ProtocolError: a field has a wrong type, length or range.
    """

    _checks: ClassVar[dict[str, Check]] = {}

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True).items()
        cls._checks = {name: hint.__metadata__[0] for name, hint in hints if hasattr(hint, "__metadata__")}

    def __post_init__(self) -> None:
        for name, check in self._checks.items():
            try:
                value = check(getattr(self, name))
            except ProtocolError as error:
                raise ProtocolError(error.rule, f"{type(self).__name__}.{name}: {error.text}") from None
            object.__setattr__(self, name, value)

    def to_fields(self) -> dict[str, Any]:
        """Return plain values by field, for a wire's codec."""
        return {name: _plain(getattr(self, name)) for name in self._checks}

    @classmethod
    def from_fields(cls: type[_M], fields: Any) -> _M:
        """Read a message from a stranger.

        Args:
            fields: as of ``to_fields``.

        Raises:
            ProtocolError: a field is missing or unknown, or has a wrong type, length or range.
        """
        if not isinstance(fields, Mapping) or set(fields) != set(cls._checks):
            raise ProtocolError("message", f"expected {cls.__name__} with the fields {', '.join(cls._checks)}")
        return cls(**fields)


def message(kind: type[_M]) -> Check:
    """Check a message within another, or its fields."""

    def check(value: Any) -> _M:
        return value if isinstance(value, kind) else kind.from_fields(value)

    return check


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_fields()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
