"""Federated training for medical imaging on FLARE and MONAI.

What notebooks and packages need is here by name; each is imported when it is first used.

Example:
    >>> import oncofed
    >>> oncofed.read_job("hippocampus_segmentation").title
    'Hippocampus head and body on T1-weighted MRI'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "JobSpec": "oncofed.job.spec",
    "RegisterOptions": "oncofed.data.register_options",
    "Run": "oncofed.job.run",
    "Trainer": "oncofed.training",
    "check_dataset": "oncofed.data.contract",
    "load_model": "oncofed.prediction.model",
    "predict": "oncofed.prediction.run",
    "read_job": "oncofed.job.spec",
    "register": "oncofed.data.register",
    "register_algorithm": "oncofed.algorithms",
    "register_loss": "oncofed.plugins",
    "register_network": "oncofed.models",
    "register_task": "oncofed.plugins",
    "register_transform": "oncofed.plugins",
    "usable_cases": "oncofed.data.cases",
}

__all__ = [
    "JobSpec",
    "RegisterOptions",
    "Run",
    "Trainer",
    "check_dataset",
    "load_model",
    "predict",
    "read_job",
    "register",
    "register_algorithm",
    "register_loss",
    "register_network",
    "register_task",
    "register_transform",
    "usable_cases",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"oncofed has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
