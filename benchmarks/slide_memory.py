"""Memory of answers for whole slides, by width and height.

Regions, single objects and boxes of slides that are made as they are read, all tissue, in windows of 512. Networks know
the answer, so that memory is what stitching, numbering and outlining take, beyond what the process held before: five
tissues, nuclei of one kind, and 300 boxes a window. Each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import slide_peak
from harness.bench import Bench
from harness.results import Target

_MIB = 2**20
# Width and height in pixels, of slides at half a micron.
_SIZES = ((8192, 1024), (8192, 8192), (100_000, 1024))
_SIZES_QUICK = ((2048, 1024),)
# For the widest: a hospital's machine has 16 GiB.
_MOST_MIB = 2048.0


def run(bench: Bench) -> None:
    """Measure each kind of answer."""
    for kind in slide_peak.KINDS:
        for size in _SIZES_QUICK if bench.quick else _SIZES:
            name = f"{kind} of {size[0]:,} × {size[1]:,} pixels, memory"
            bench.doing(name)
            command = [sys.executable, "-P", slide_peak.__file__, kind, *map(str, size)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(told)
            target = Target(of="value", value=_MOST_MIB) if size == _SIZES[-1] else None
            settings = {"found": found["count"], "window": slide_peak.SIDE}
            bench.measured(name, [found["peak"] / _MIB], "MiB", "lower", settings, target=target)
