"""What a site keeps between its turns, so that a later process of it goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from oncofed.errors import StateError
from oncofed.models.weights import Weights
from oncofed.training import checkpoint

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
            self._tensors, self.facts = checkpoint.read_checkpoint(self._path)

    def part(self, name: str) -> Weights:
        """Return one part of what an earlier process left; empty without it."""
        return checkpoint.without_prefix(self._tensors, name)

    def write(self, parts: dict[str, Weights], facts: dict[str, Any]) -> None:
        """Keep all parts; the file of the turn before stands until the new one is complete, and then beside it."""
        if self._path:
            tensors = {f"{part}.{name}": value for part, ws in parts.items() for name, value in ws.items()}
            checkpoint.write_checkpoint(self._path, tensors, facts)

    def previous(self, **facts: Any) -> SiteState | None:
        """Return what was kept before the last ``write``, where it has these facts; None where it has others."""
        path = checkpoint.previous_of(self._path) if self._path else None
        if path is None or not path.is_file():
            return None
        with contextlib.suppress(StateError):
            # Its tensors are as large as the model, and seldom wanted.
            if facts.items() <= checkpoint.read_facts(path).items():
                found = SiteState()
                found._tensors, found.facts = checkpoint.read_checkpoint(path)
                return found
        return None
