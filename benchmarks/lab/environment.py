"""Virtual environments for programs that oncofed does not need."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path


def with_package(folder: Path, package: str) -> Path:
    """Make an environment with a package, unless it is there; return the folder of its programs.

    Args:
        folder: of the environment.
        package: as pip takes it, with its version.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed here.
    """
    programs = folder / "bin"
    if not programs.is_dir():
        venv.create(folder, with_pip=True)
        command = [str(programs / "python"), "-m", "pip", "install", "--quiet", package]
        subprocess.run(command, check=True, capture_output=True)
    return programs
