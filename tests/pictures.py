"""Folders of small pictures, also registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register


def read(source: Path, out: Path, **more: object) -> Manifest:
    """Register a folder in this process."""
    return register(RegisterOptions(source, "demo", out, workers=1, **more))  # type: ignore[arg-type]


def pictures(folder: Path, *names: str) -> Path:
    """Write noise as grey pictures, different by name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 9), np.uint8)).save(folder / name)
    return folder
