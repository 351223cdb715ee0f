"""Make an archive for measuring without network.

The machine needs torch and CUDA. The archive holds oncofed, the packages that such a machine lacks, the suites, and
a program ``bench`` that runs them with the machine's torch. Suites generate their data there; nothing is installed, and
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[2]
_NAME = "oncofed-bench"
# Not packed: the machine's torch, and NumPy, which comes with it.
_THERE = frozenset({"torch", "numpy"})
# For commands and formats that no suite in the bundle uses, or for federations, which are measured without a GPU.
_LEFT_OUT = frozenset(
    {"dicom-anonymizer", "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "tensorboard", "pyrage"}
    | {"ruamel-yaml", "docker", "sqlalchemy", "matplotlib"}
)
_MORE = ("imagecodecs", "nvidia-ml-py", "openslide-bin", "openslide-python", "tifffile")
_CODECS = frozenset({"_shared", "_shared_cython", "_imcd", "_jpeg8"})
_SUITES = ("aggregation", "inference", "ingest", "input_pipeline", "slide_features", "train_step", "validation")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_MOST_BYTES = 60 * 10**6

_BENCH = """\
#!/usr/bin/env bash
# Measures on this machine, with its own torch: ./bench run train_step. Checks what is said of GPUs: ./bench gpu
# Another Python: PYTHON=/path/to/python3 ./bench
set -euo pipefail
cd "$(dirname "$0")"
export PYTHONPATH="$PWD/site${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || {
    echo "$python has no torch. Name one that has: PYTHON=/path/to/python3 $0 …" >&2
    exit 2
}
if [ "${1:-}" = gpu ]; then
    shift
    export PYTHONPATH="$PYTHONPATH:$PWD/benchmarks:$PWD/benchmarks/lab:$PWD/tests"
    exec "$python" -u -m gpu_checks "$@"
fi
exec "$python" -m oncofed.cli.main bench "$@"
"""


def main() -> None:
    """Make the archive, and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the archive, .tar.xz")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, help=f"version of Python on that machine (default {here})")
    parser.add_argument("--machine", default="x86_64", help="its architecture (default x86_64)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncofed-bundle-") as temporary:
        folder = Path(temporary) / _NAME
        _fill_site(folder / "site", arguments.python, arguments.machine)
        _copy_suites(folder)
        print(f"packing {arguments.out} …", file=sys.stderr)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(arguments.out, "w:xz", preset=6) as archive:
            archive.add(folder, _NAME)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1e6:.1f} MB, for Python {arguments.python} on {arguments.machine}")
    print(f"There: tar xJf {arguments.out.name} && {_NAME}/bench run train_step")
    if size > _MOST_BYTES:
        sys.exit(f"expected at most {_MOST_BYTES / 1e6:.0f} MB: leave out what the suites do not need")


def _fill_site(site: Path, python: str, machine: str) -> None:
    """Install packages into a folder."""
    wanted = sorted(_needed("oncofed", *_MORE))
    print(f"collecting {len(wanted)} packages …", file=sys.stderr)
    target = ["--target", str(site), "--no-deps", "--quiet", "--disable-pip-version-check", "--no-compile"]
    binary = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in _PLATFORMS:
        binary += ["--platform", f"{platform}_{machine}"]
    # As source only, but without anything to compile.
    pure = [name for name in wanted if name.startswith("pyhocon==")]
    _pip("install", *target, *binary, *(name for name in wanted if name not in pure))
    _pip("install", *target, *pure, str(_ROOT))
    for name in ("tests", "test", "__pycache__"):
        for unused in sorted(site.rglob(name), reverse=True):
            shutil.rmtree(unused, ignore_errors=True)
    _keep_jpeg_alone(site)


def _keep_jpeg_alone(site: Path) -> None:
    """Remove imagecodecs' codecs except JPEG, with their libraries: 70 MB."""
    codecs = site / "imagecodecs"
    for library in codecs.glob("*.so"):
        if library.name.partition(".")[0] not in _CODECS:
            library.unlink()
    needed = subprocess.run(["ldd", *codecs.glob("*.so")], capture_output=True, text=True, check=True).stdout
    for library in (site / "imagecodecs.libs").iterdir():
        if library.name not in needed:
            library.unlink()


def _pip(*arguments: str) -> None:
    if not [part for part in arguments if "==" in part or part == str(_ROOT)]:
        return
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def _needed(*names: str, extras: Sequence[str] = (), seen: set[str] | None = None) -> Iterator[str]:
    """Yield NAME==VERSION of installed packages and their requirements, without oncofed."""
    seen = set() if seen is None else seen
    for name in names:
        plain = name.lower().replace("_", "-").replace(".", "-")
        if plain in seen | _THERE | _LEFT_OUT:
            continue
        seen.add(plain)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # for another system than this
        if plain != "oncofed":
            yield f"{plain}=={found.version}"
        for text in found.requires or ():
            needed = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
                yield from _needed(needed.name, extras=tuple(needed.extras), seen=seen)


def _copy_suites(folder: Path) -> None:
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir(parents=True)
    for suite in _SUITES:
        shutil.copy(_ROOT / "benchmarks" / f"{suite}.py", benchmarks)
    for shared in ("harness", "lab", "gpu_checks"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_ROOT / "benchmarks" / shared, benchmarks / shared, ignore=without)
    (folder / "tests").mkdir()
    for generator in ("dicoms.py", "synthetic.py"):
        shutil.copy(_ROOT / "tests" / generator, folder / "tests")
    commit = subprocess.run(["git", "-C", str(_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    (folder / "COMMIT").write_text(commit.stdout.strip()[:12] or "unknown", encoding="utf-8")
    program = folder / "bench"
    program.write_text(_BENCH, encoding="utf-8")
    program.chmod(0o755)


if __name__ == "__main__":
    main()
