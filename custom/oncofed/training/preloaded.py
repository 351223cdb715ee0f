"""What baselines and processes that read images need, imported once for all forks."""

from __future__ import annotations

from oncofed.lean_imports import lean_imports

with lean_imports():
    import oncofed.data.register
    import oncofed.training.baselines  # noqa: F401
