"""What commands need, imported once for all forks.

It is frozen: a fork that looked through it for garbage would have to copy it.
"""

from __future__ import annotations

import gc
import importlib

gc.disable()
for name in ("oncofed.cli.main", "oncofed.job.run", "oncofed.job.remote"):
    importlib.import_module(name)
gc.freeze()
gc.enable()
