"""MONAI is imported without what is not needed, whoever imports it."""

from __future__ import annotations

import subprocess
import sys


def test_the_first_import_of_monai_is_lean_and_later_ones_are_not() -> None:
    program = """
import gc, sys
from oncofed.lean_imports import import_monai_leanly
import_monai_leanly()
import monai.networks.nets
print([name for name in ("matplotlib", "pandas", "sklearn", "transformers", "zarr") if name in sys.modules])
print("Monai" in str(sys.meta_path), gc.isenabled())
import matplotlib, monai
import_monai_leanly()
import oncofed.models.networks
print(monai.__spec__.name, "Monai" in str(sys.meta_path))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["[]", "False True", "monai False", ""]
