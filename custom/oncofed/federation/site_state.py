"""What a site keeps between its turns, so that a later process of it goes on."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from oncofed.models.weights import Weights

_FILE = "site.safetensors"


class SiteState:
    """Parts of a state, each tensors by name, in one file.

    Args:
        folder: of this job at this site; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / _FILE if folder else None
        self._tensors = load_file(self._path) if self._path and self._path.is_file() else {}

    def part(self, name: str) -> Weights:
        """Return one part of what an earlier process left; empty without it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}

    def write(self, parts: dict[str, Weights]) -> None:
        """Keep all parts; the file of the turn before stands until the new one is complete."""
        tensors = {f"{part}.{name}": value.contiguous() for part, ws in parts.items() for name, value in ws.items()}
        if self._path is None or not tensors:
            return
        unfinished = self._path.with_suffix(".unfinished")
        save_file(tensors, unfinished)
        unfinished.replace(self._path)
