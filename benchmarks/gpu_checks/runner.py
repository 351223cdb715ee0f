"""Runs checks in forks of a process without CUDA.

oncofed's jobs run like that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from gpu_checks.checks import Check
from gpu_checks.claims import CLAIMS
from gpu_checks.context import Context
from gpu_checks.forks import Fork
from gpu_checks.results import Header, NoGPUError, Report, append
from oncofed.devices import why_unusable
from oncofed.errors import OncofedError
from oncofed.machine import fingerprint

_SECONDS_TO_LOOK = 60.0
# On a CPU everything is as small as possible and nothing is measured, but the machine may be slow.
_CPU_SECONDS = 120.0
# A check with less time could hardly begin, and would have no result.
_FEWEST_SECONDS = 8.0


@dataclass(frozen=True)
class Runner:
    """Runs checks until the time is up.

    Attributes:
        file: takes the lines.
        folder: for the checks' files.
        device: "cuda" or "cpu".
        until: when the last check ends, by ``time.monotonic``.
    """

    file: Path
    folder: Path
    device: Literal["cuda", "cpu"]
    until: float

    def begin(self, commit: str) -> None:
        """Look for the GPU, and write the first line.

        Raises:
            NoGPUError: torch can use none.
            OncofedError: looking for it failed.
        """
        looked = Fork(partial(_look, self.device), own_group=True).wait(_SECONDS_TO_LOOK)
        if looked.error:
            raise OncofedError(f"looking for the GPU: {looked.error}")
        reason = looked.value["why_not"]
        if reason:
            raise NoGPUError(f"no GPU can be used here: {reason}. make gpu DEVICE=cpu walks all checks on the CPU")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        environment = looked.value["environment"]
        append(self.file, Header(schema=1, started=now, commit=commit, device=self.device, environment=environment))

    def run(self, checks: Sequence[Check]) -> None:
        """Run all checks, even after one hangs or dies."""
        for check in checks:
            report = Report(self.file, check.name, self.device)
            left = self.until - time.monotonic()
            if left < _FEWEST_SECONDS:
                for claim in (claim for claim in CLAIMS if claim.check == check.name):
                    report.skip(claim.name, "no time was left: make gpu ONLY=" + check.name)
                continue
            self.run_one(check.name, check.load, min(check.seconds if self.device == "cuda" else _CPU_SECONDS, left))

    def run_one(self, name: str, load: Callable[[], Callable[[Context], None]], seconds: float) -> None:
        """Run one check in a fork."""
        report = Report(self.file, name, self.device)
        context = Context(torch.device(self.device), self.folder, report)
        begun = time.monotonic()
        ended = Fork(lambda: load()(context), own_group=True).wait(seconds)
        if ended.error:
            report.fail(ended.error)
        print(f"--- {name}: {time.monotonic() - begun:.0f} s", flush=True)


def _look(device: str) -> dict[str, Any]:
    return {"why_not": why_unusable() if device == "cuda" else None, "environment": fingerprint()}
