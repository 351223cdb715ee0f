"""The heap of a job's process.

Measured in a separate process, because its settings cannot be undone.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_STEPS = """
import resource
from oncofed.flare.runtime.malloc import share_one_heap
import numpy as np
share_one_heap()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    held = [np.ones(1 << 20, np.float32) for _ in range(8)]  # 32 MiB in all, as much as a small network's activations
    del held

step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_training_steps_reuse_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, "of 80 000 pages that ten steps write"
