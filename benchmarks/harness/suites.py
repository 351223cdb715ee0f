"""Finds suites, and runs each in a separate process."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from oncofed.errors import FederationError, SpecError
from oncofed.gpus import read_gpus
from oncofed.machine import fingerprint
from oncofed.processes import process_environment, short_path, stop_processes

from .results import BenchmarkRun, Figure, SuiteResult

# Called with what is being measured.
Progress = Callable[[str], None]

_FOLDER = Path(__file__).parents[1]
# The harness is installed nowhere, and search paths in the environment would reach all that a suite starts.
_SUITE_PROCESS = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from harness import suite_process; suite_process.main()"
)
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 30.0
# Other use of the machine from which figures are unreliable.
_BUSY_CPU_PERCENT, _BUSY_GPU_PERCENT, _BUSY_GPU_GIB = 25.0, 5, 2.0


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        name: of its script, without suffix.
        path: of its script.
        title: first sentence of the script's docstring.
    """

    name: str
    path: Path
    title: str


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        quick: little work.
        repeats: samples of each program; None: the default of the kind of run.
        device: "cuda" or "cpu"; None: CUDA if present.
        first_use: also measure first calls.
        profile_to: folder for traces; None: no traces.
    """

    quick: bool = False
    repeats: int | None = None
    device: str | None = None
    first_use: bool = False
    profile_to: Path | None = None


def suites_folder() -> Path:
    """Return the folder of suites.

    ``benchmarks/`` of the working folder if it has suites, else this code's.
    """
    here = Path.cwd() / "benchmarks"
    return here if (here / "train_step.py").is_file() else _FOLDER


def list_suites(folder: Path) -> list[Suite]:
    """Return a folder's suites: scripts with ``run``."""
    found = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            text = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
            found.append(Suite(path.stem, path, text.rstrip(".")))
    return found


def choose(names: list[str], folder: Path) -> list[Suite]:
    """Return suites by name, or all for "all".

    Raises:
        SpecError: one is unknown.
    """
    known = {suite.name: suite for suite in list_suites(folder)}
    if names == ["all"]:
        return list(known.values())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SpecError(f"no suite {unknown[0]!r}; expected all, or some of: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def new_run(quick: bool, folder: Path) -> BenchmarkRun:
    """Return an empty run."""
    now = datetime.now(timezone.utc)
    commit = commit_of(folder)
    return BenchmarkRun(
        schema=1,
        id=("quick-" if quick else "") + f"{now:%Y%m%dT%H%M%SZ}" + (f"-{commit[:8]}" if commit else ""),
        started=now.isoformat(timespec="seconds"),
        commit=commit,
        quick=quick,
        environment=fingerprint(),
    )


def run_suite(suite: Suite, run: BenchmarkRun, options: Options, results: Path, progress: Progress) -> SuiteResult:
    """Run one suite in a separate process.

    Each figure is written at once. The figures of a suite that fails, is killed or interrupted are kept.

    Args:
        suite: to run.
        run: gets the suite's result.
        options: of the run.
        results: folder for the run's file.
        progress: called with what is being measured.
    """
    result = SuiteResult(name=suite.name, disturbed_by=disturbances())
    run.suites.append(result)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oncofed-bench-") as temporary, short_path(Path(temporary)) as folder:
        log, messages = folder / "log.txt", folder / "messages.jsonl"
        messages.touch()
        try:
            with messages.open(encoding="utf-8") as lines:
                try:
                    with _started(suite, run, options, folder, log) as process:
                        while process.poll() is None:
                            if _take(lines, result, run, progress):
                                result.seconds = time.monotonic() - begun
                                run.write(results)
                            time.sleep(_LOOK_SECONDS)
                finally:  # its last messages, however it ended
                    _take(lines, result, run, progress)
        except BaseException:
            result.status = "interrupted"
            raise
        else:
            result.status = "complete" if process.returncode == 0 else "failed"
            if process.returncode:
                kept = results / f"{run.id}-{suite.name}.log"
                results.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, kept)
                result.error = f"{_last_words(log, process.returncode)}. All that it printed: {kept}"
        finally:
            result.seconds = time.monotonic() - begun
            run.write(results)
    return result


def disturbances() -> list[str]:
    """Return other work on this machine.

    It disturbs figures. Call this before using the GPU.
    """
    found = []
    percent = psutil.cpu_percent(interval=0.5)
    if percent > _BUSY_CPU_PERCENT:
        found.append(f"other programs use {percent:.0f} % of the processor")
    try:
        gpus = read_gpus()
    except FederationError as error:
        return [*found, str(error)]
    for gpu in gpus:
        used = gpu.total_gib - gpu.free_gib
        if (gpu.busy_percent or 0) > _BUSY_GPU_PERCENT:
            found.append(f"GPU {gpu.number} is busy to {gpu.busy_percent} % with something else")
        elif used > _BUSY_GPU_GIB:
            found.append(f"something else holds {used:.1f} GiB of GPU {gpu.number}")
    return found


@contextlib.contextmanager
def _started(
    suite: Suite, run: BenchmarkRun, options: Options, folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    environment = process_environment(folder, 1)
    request = {
        "suite": str(suite.path),
        "folder": str(folder),
        "quick": options.quick,
        "repeats": options.repeats,
        "device": options.device,
        "first_use": options.first_use,
        "profile_to": str(options.profile_to.absolute()) if options.profile_to else None,
        "limits": run.limits,
    }
    command = [sys.executable, "-c", _SUITE_PROCESS, str(_FOLDER), json.dumps(request)]
    with log.open("wb") as output:
        # A separate session: a terminal's Ctrl-C reaches this process alone, which ends the suite in order.
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
        stop_processes(folder)


def _take(lines: Any, result: SuiteResult, run: BenchmarkRun, doing: Callable[[str], None]) -> bool:
    """Take the suite's messages; return whether to write."""
    kept = False
    while True:
        position = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(position)  # it is still being written
            return kept
        message = json.loads(line)
        if "figure" in message:
            result.figures.append(Figure.model_validate(message["figure"]))
            kept = True
        elif "limit" in message:
            run.limits[message["limit"]] = message["value"]
            kept = True
        else:
            doing(message["doing"])


def _last_words(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return ": ".join([how, *lines[-1:]])


def commit_of(folder: Path) -> str:
    """Return the code's commit; empty without git.

    "+" marks changed files.
    """
    stamp = folder.parent / "COMMIT"  # of a bundle
    if stamp.is_file():
        return stamp.read_text(encoding="utf-8").strip()

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../custom")
        return git("rev-parse", "HEAD")[:12] + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
