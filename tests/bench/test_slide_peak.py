"""The peak memory of an answer for a slide is that answer's, also of a small one."""

from __future__ import annotations

import json
import subprocess
import sys

import slide_peak

_WINDOW = 3 * slide_peak.SIDE**2  # bytes of its pixels


def test_a_small_answer_takes_memory_too() -> None:
    """Not that of imports, nor what its parent held before it, which is more."""
    ballast = bytearray(1 << 28)
    command = [sys.executable, "-P", slide_peak.__file__, "boxes", "2048", "1024"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert _WINDOW < found["peak"] < len(ballast)
    assert found["count"] > 0
