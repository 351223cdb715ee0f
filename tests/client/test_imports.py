"""What is in a process that trains: neither FLARE nor PyTorch's compiler, and no library for plots and tables."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from oncofed.lean_imports import lean_imports
for module in ("oncofed.client.sandboxed_process", "oncofed.client.sandbox_worker", "oncofed.training.preloaded"):
    with lean_imports():
        __import__(module)
    unwanted = "oncofed.flare", "nvflare", "torch._dynamo", "matplotlib", "pandas", "sklearn", "transformers", "zarr"
    print(module, [name for name in sys.modules if name.startswith(unwanted)])
"""


def test_processes_that_train_import_no_more_than_they_need() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    modules = "client.sandboxed_process", "client.sandbox_worker", "training.preloaded"
    assert done.stdout.splitlines() == [f"oncofed.{module} []" for module in modules]
