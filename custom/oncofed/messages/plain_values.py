"""Values with bytes and tensors, as JSON holds them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

# No other text begins so.
_BYTES, _TENSOR = "\0bytes:", "\0tensor:"


def plain_value(value: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """Return a value as JSON holds it; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        assert tensors is not None, "no place for tensors"
        name = str(len(tensors))
        tensors[name] = value
        return _TENSOR + name
    if isinstance(value, bytes):
        return _BYTES + base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: plain_value(one, tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(one, tensors) for one in value]
    return value


def restored_value(value: Any, tensors: Mapping[str, Tensor] = MappingProxyType({})) -> Any:
    """Return what ``plain_value`` was given, lists in place of tuples."""
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, str) and value.startswith(_BYTES):
        return base64.b64decode(value.removeprefix(_BYTES))
    if isinstance(value, dict):
        return {key: restored_value(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [restored_value(one, tensors) for one in value]
    return value
