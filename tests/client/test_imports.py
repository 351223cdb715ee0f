"""Local training and its sandboxed process import neither FLARE nor PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from oncofed.lean_imports import lean_imports
for module in ("oncofed.client.sandboxed_process", "oncofed.client.sandbox_worker"):
    with lean_imports():
        __import__(module)
    print(module, [name for name in sys.modules if name.startswith(("oncofed.flare", "nvflare", "torch._dynamo"))])
"""


def test_the_sandboxed_process_imports_neither_flare_nor_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["oncofed.client.sandboxed_process []", "oncofed.client.sandbox_worker []"]
