"""What trains a baseline, imported once for all processes that are forked."""

from __future__ import annotations

from oncofed.lean_imports import lean_imports

with lean_imports():
    import oncofed.training.baselines  # noqa: F401
