"""Tries a wheel outside the checkout: ``make dist``.

It is installed without what it depends on, which this environment has, into a folder of its own; with ``--clean`` into
an environment of its own with all that it depends on, which takes minutes. Nothing of the checkout is on the path but
the tests, copied.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# Units that need no file of the checkout but the tests' own.
_UNITS = (
    "algorithms", "messages", "rounds/test_sites.py", "rounds/test_similarity.py", "cli/test_new.py",
    "test_public_names.py", "test_plugins.py",
)  # fmt: skip


def main() -> int:
    """Install, and run what a new user runs; return an exit status."""
    parser = argparse.ArgumentParser(description="Try a wheel of oncofed outside the checkout.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--clean", action="store_true", help="install all that it depends on too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncofed-outside-") as folder:
        return _try(given.wheel.resolve(), Path(folder), given.clean)


def _try(wheel: Path, folder: Path, clean: bool) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ONCOFED_NETWORKS")}
    environment |= {"HOME": str(folder), "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    python, target = sys.executable, folder / "installed"
    if clean:
        subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
        python = str(target / "bin" / "python")
        versions = ["--constraint", str(_ROOT / "provisioning" / "constraints.txt")]
        _install(python, [f"{wheel}[demo]", "pytest", "hypothesis", "pytest-timeout", *versions])
    else:
        _install(python, [str(wheel), "--no-deps", "--target", str(target)])
        environment["PYTHONPATH"] = str(target)
    shutil.copytree(_ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    markers = "\n    slow\n    thorough\n    federation\n    gpu\n    attack\n    wild"
    (folder / "pytest.ini").write_text(
        f"[pytest]\npythonpath = tests\naddopts = --import-mode=importlib\nmarkers ={markers}\n"
    )
    oncofed = [python, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "oncofed.cli.main"]
    where = [python, "-c", "import oncofed; print(oncofed.__file__)"]
    units = [
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not federation",
        *(str(folder / "tests" / unit) for unit in _UNITS),
    ]  # fmt: skip
    steps = {
        "it is the wheel that runs": where,
        "its jobs": [*oncofed, "job", "list"],
        "a new job": [*oncofed, "new", "job", "mine"],
        "the job is checked": [*oncofed, "job", "check", "mine"],
        "a demo of one round": [*oncofed, "demo", "--rounds", "1"],
        "units": units,
    }
    for what, command in steps.items():
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        print(f"{what}: {'done' if done.returncode == 0 else 'FAILED'}, {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode or (command is where and not done.stdout.startswith(str(target))):
            print(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}", file=sys.stderr)
            return 1
    print(done.stdout.strip().splitlines()[-1])
    return 0


def _install(python: str, arguments: list[str]) -> None:
    line = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(line, check=True)


if __name__ == "__main__":
    sys.exit(main())
