"""What commands need, imported once for all forks.

It is frozen: a fork that looked through it for garbage would have to copy it.
"""

from __future__ import annotations

import gc
import importlib

from oncofed.lean_imports import import_monai_leanly

import_monai_leanly()
gc.disable()
# FLARE first: each of its loggers looks through all modules that are there.
for name in ("nvflare.apis.fl_component", "oncofed.cli.main", "oncofed.job.run", "oncofed.job.remote"):
    importlib.import_module(name)
gc.freeze()
gc.enable()
