"""Features in a file of torch: a tensor, as CLAM writes it.

Or a dictionary with a tensor of features and one of coordinates.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.data.features.stored import Rows, Stored, stored, text_of
from oncofed.errors import DataError

_FEATURES, _COORDS = ("features", "feats", "embeddings"), ("coords", "coordinates")


def read(path: Path) -> Stored:
    """Return the features, which stay on the disk until read.

    Raises:
        DataError: it holds anything but tensors, or is damaged.
    """
    values = _load(path)
    if isinstance(values, Tensor):
        return stored(Rows(_Lazy(values)), None, tool="CLAM")
    if not isinstance(values, dict):
        raise DataError("it holds neither a tensor nor named tensors, expected a tensor of tiles x features")
    found = [values[name] for name in _FEATURES if isinstance(values.get(name), Tensor)]
    if len(found) != 1:
        names = ", ".join(map(str, list(values)[:6])) or "nothing"
        raise DataError(f"it holds {names}, expected one tensor called features, and one called coords")
    places = next((values[name] for name in _COORDS if isinstance(values.get(name), Tensor)), None)
    where = None if places is None else places.double().numpy()
    return stored(Rows(_Lazy(found[0])), where, encoder=text_of(values, "encoder", "extractor"))


class _Lazy:
    """A tensor that is converted part by part."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach()
        self.shape = tuple(values.shape)
        # NumPy has no bfloat16.
        self.dtype: Any = np.float32 if values.dtype == torch.bfloat16 else values[:0].numpy().dtype

    def __getitem__(self, where: Any) -> NDArray[Any]:
        part = self._values[where]
        return (part.float() if part.dtype == torch.bfloat16 else part).numpy()


def _load(path: Path) -> Any:
    try:
        # Files of before torch 1.6 are no ZIP archives, and cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise DataError(
            "it holds Python objects, which could run code when they are read, expected tensors alone. Save them as "
            "torch.save(features, FILE)"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError):
        raise DataError("it is damaged or cut off: it cannot be read as a file of torch. Copy it again") from None
