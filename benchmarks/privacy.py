"""What privacy costs: DP-SGD, secure aggregation, checks of what leaves a site.

A figure appears with the part of oncofed that it measures; until then its row says so.
"""

from __future__ import annotations

from oncofed.bench.harness import Bench


def run(bench: Bench) -> None:
    """Say what is not there yet."""
    for name in ("a training step with DP-SGD", "a round with secure aggregation", "checks of what leaves a site"):
        bench.skip(name, "share of a round", "oncofed does not have it yet")
