"""FLARE's homomorphic encryption as a baseline, in a separate environment."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

from environment import with_package
from harness.bench import Bench
from harness.results import Baseline

VERSION = "0.3.18"
_SCRIPT = Path(__file__).parent / "encryption_app" / "encrypt.py"
_RUN_SECONDS = 600.0


def encryption_baselines(bench: Bench, floats: int) -> tuple[Baseline, Baseline]:
    """Return milliseconds of encryption for a megabyte of float32, and bytes as a multiple of float32's.

    Or why they are missing.

    Args:
        bench: of the suite.
        floats: of the update.
    """
    name = f"TenSEAL {VERSION}, homomorphic encryption with the settings of FLARE {metadata.version('nvflare')}"
    if bench.quick:
        missing = "left out of a quick run, for it is installed first"
        return Baseline(name=name, missing=missing), Baseline(name=name, missing=missing)
    bench.doing("TenSEAL")
    try:
        programs = with_package(bench.folder / "tenseal", f"tenseal=={VERSION}")
        command = [str(programs / "python"), str(_SCRIPT), str(floats), str(bench.times())]
        done = json.loads(
            subprocess.run(command, check=True, timeout=_RUN_SECONDS, capture_output=True).stdout.splitlines()[-1]
        )
    except (OSError, subprocess.SubprocessError) as error:
        missing = f"it cannot be installed or run here: {type(error).__name__}"
        return Baseline(name=name, missing=missing), Baseline(name=name, missing=missing)
    size = floats * 4
    times = [seconds * 1e3 / (size / 1e6) for seconds in done["seconds"]]
    return Baseline(name=name, samples=times), Baseline(name=name, samples=[done["bytes"] / size])
