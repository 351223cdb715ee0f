"""What a site keeps between its turns, so that a later process of it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from oncofed.models.weights import Weights

_FILE = "site.safetensors"


class SiteState:
    """Parts of a state, each tensors by name, in one file.

    Args:
        folder: of this job at this site; None keeps nothing.

    Attributes:
        facts: what an earlier process wrote beside its tensors; empty without it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / _FILE if folder else None
        self._tensors: Weights = {}
        self.facts: dict[str, Any] = {}
        if self._path and self._path.is_file():
            with safe_open(self._path, framework="pt") as file:
                self.facts = json.loads(file.metadata()["facts"])
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary

    def part(self, name: str) -> Weights:
        """Return one part of what an earlier process left; empty without it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}

    def write(self, parts: dict[str, Weights], facts: dict[str, Any]) -> None:
        """Keep all parts; the file of the turn before stands until the new one is complete."""
        tensors = {f"{part}.{name}": value.contiguous() for part, ws in parts.items() for name, value in ws.items()}
        if self._path is None:
            return
        unfinished = self._path.with_suffix(".unfinished")
        save_file(tensors, unfinished, {"facts": json.dumps(facts)})
        unfinished.replace(self._path)
