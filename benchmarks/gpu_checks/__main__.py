"""``python -m gpu_checks``.

Exit status: 0 nothing was refuted, 1 something was, 2 usage, 3 no GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from gpu_checks.checks import CHECKS, chosen
from gpu_checks.claims import CLAIMS
from oncofed.errors import OncofedError
from oncofed.processes import THREADS_VARIABLE

_FOLDER = Path(__file__).parents[1]
_SECONDS = 560.0


def main(words: list[str] | None = None) -> int:
    """Check, and return the exit status."""
    begun = time.monotonic()
    arguments = _parser().parse_args(words)
    if arguments.list:
        for check in CHECKS:
            claims = ", ".join(claim.name for claim in CLAIMS if claim.check == check.name)
            print(f"{check.name:<12} {check.title} ({claims}; {check.seconds:.0f} s at most)")
        return 0
    try:
        checks = chosen(arguments.only)
    except OncofedError as error:
        return _told(error)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for code that looks for a GPU by itself
        # Work that is so small takes longer on several cores, above all where something else runs on them.
        os.environ.setdefault(THREADS_VARIABLE, "1")
    # Importing takes two seconds or more, which --list and a wrong option need not wait for.
    from gpu_checks.results import exit_status, new_file, read_run, summary
    from gpu_checks.runner import Runner
    from gpu_checks.support import import_as_jobs_do
    from harness.suites import commit_of

    commit = commit_of(_FOLDER)
    file = new_file(arguments.out, arguments.device, commit)
    with tempfile.TemporaryDirectory(prefix="oncofed-gpu-") as temporary:
        runner = Runner(file, Path(temporary), arguments.device, begun + arguments.seconds)
        # Checks share compiled kernels with each other, but not with earlier runs.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(temporary) / "inductor")
        import_as_jobs_do()
        try:
            runner.begin(commit)
            runner.run(checks)
        except OncofedError as error:
            return _told(error)
        except KeyboardInterrupt:
            print("stopped; nothing that was started is left running", file=sys.stderr)
            return 130
        finally:
            if file.is_file():
                print(summary(read_run(file)), f"\nLines: {file}", sep="\n", flush=True)
    return exit_status(read_run(file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make gpu",
        description="Check on a GPU what oncofed's documents say of GPUs: confirmed, refuted, or a figure.",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: walk all checks, tiny, on the CPU, which confirms nothing",
    )
    parser.add_argument("--only", default="", metavar="NAME,...", help="these checks alone")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="limit in seconds (default %(default)g)")
    parser.add_argument("--out", type=Path, default=_FOLDER / "results" / "gpu", help="folder for the lines")
    parser.add_argument("--list", action="store_true", help="list the checks and their claims")
    return parser


def _told(error: OncofedError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
