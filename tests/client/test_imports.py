"""Local training and its sandboxed process do not import FLARE."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["oncofed.client.sandboxed_process", "oncofed.client.sandbox_worker"])
def test_the_sandboxed_process_imports_no_flare(module: str) -> None:
    program = (
        "import sys\n"
        "from oncofed.lean_imports import lean_imports\n"
        f"with lean_imports(): import {module}\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "flare = [name for name in sys.modules if name.startswith('oncofed.flare')]\n"
        "print(flare, 'nvflare' in found)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[] False"
