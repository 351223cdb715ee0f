"""Poisoned updates of a site, as a FLARE filter."""

from __future__ import annotations

import time
from typing import Any

import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

_HANGS_SECONDS = 10.0


class Poison(DXOFilter):
    """Changes each update before it leaves.

    Args:
        kind: "none", "nan", "shape", "scale" (times ten), "flip" (times minus one), "reverse" (times minus four: as far
            the wrong way as passes the door), "noise", or "stale" (the first one again and again). Others smuggle:
            "tensor" (a new one), "metric" (a number with a telling name), "text" (in a number's place), "cases" (more
            than there are). And "hang": it is there, and sends no tensors for a while.
    """

    def __init__(self, kind: str) -> None:
        super().__init__([DataKind.WEIGHT_DIFF], [DataKind.WEIGHT_DIFF])
        self._kind = kind
        self._first: dict[str, Any] = {}

    def process_dxo(self, dxo: Any, shareable: Shareable, fl_ctx: FLContext) -> Any:
        """Change the tensors in place."""
        del shareable, fl_ctx
        if self._kind == "hang":
            if dxo.data:
                time.sleep(_HANGS_SECONDS)
            return dxo
        first = next(name for name, value in dxo.data.items() if value.is_floating_point())
        if self._kind == "nan":
            dxo.data[first] = torch.full_like(dxo.data[first], float("nan"))
        elif self._kind == "shape":
            dxo.data[first] = dxo.data[first][:1]
        elif self._kind == "tensor":
            dxo.data["patient.pixels"] = torch.rand(64, 64)
        elif self._kind in ("metric", "text"):
            numbers = dict(dxo.get_meta_prop("oncofed.numbers"))
            numbers |= {"MRN-0001": 0.5} if self._kind == "metric" else {"not_kept": "MRN-0001"}
            dxo.set_meta_prop("oncofed.numbers", numbers)
        elif self._kind == "cases":
            dxo.set_meta_prop("NUM_STEPS_CURRENT_ROUND", 10**6)
        elif self._kind == "stale":
            self._first = self._first or {name: value.clone() for name, value in dxo.data.items()}
            dxo.data.update(self._first)
        elif self._kind != "none":
            factor = {"scale": 10.0, "flip": -1.0, "reverse": -4.0, "noise": 1.0}[self._kind]
            for name, value in dxo.data.items():
                if value.is_floating_point():
                    noise = torch.randn_like(value) * value.std(correction=0) * 3 if self._kind == "noise" else 0
                    dxo.data[name] = value * factor + noise
        return dxo
