"""What commands need, imported once for all forks.

It is frozen: a fork that looked through it for garbage would have to copy it.
"""

from __future__ import annotations

import gc
import importlib
import sys

gc.disable()
sys.modules["transformers"] = None  # type: ignore[assignment] # MONAI would import it for a network that reads text
for name in ("oncofed.cli.main", "oncofed.job.run", "oncofed.job.remote"):
    importlib.import_module(name)
del sys.modules["transformers"]
gc.freeze()
gc.enable()
