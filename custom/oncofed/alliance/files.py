"""Files that nobody else reads."""

from __future__ import annotations

from pathlib import Path

from oncofed.data.manifest import write_whole


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, content, 0o600)
