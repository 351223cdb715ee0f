"""Virtual environments for programs that oncofed does not need."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path


def with_package(folder: Path, package: str, shared: bool = False) -> Path:
    """Make an environment with a package, unless it is there; return the folder of its programs.

    Args:
        folder: of the environment.
        package: as pip takes it, with its version.
        shared: it also sees this environment's packages, such as torch, and installs none of these again.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed here.
    """
    programs = folder / "bin"
    if not programs.is_dir():
        venv.create(folder, with_pip=True)
        if shared:
            (own,) = folder.glob("lib/python*/site-packages")
            (own / "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        command = [str(programs / "python"), "-m", "pip", "install", "--quiet", package]
        subprocess.run(command, check=True, capture_output=True)
    return programs
