"""Start of the sandboxed process.

It gives up files before anything starts threads.

``python -m oncofed.client.sandboxed_process`` takes its commands from standard input, a socket. No module imported here
starts a thread. numpy, torch and a GPU's driver do; they are imported and started once Landlock binds their threads
too.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import oncofed
from oncofed.client.sandbox_channel import failure, receive, send
from oncofed.lean_imports import lean_imports
from oncofed.processes import end_with_parent, name_process
from oncofed.sandbox import restrict_files

_LARGEST_PACK = 1 << 24
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices", "/sys/fs/cgroup")
# Read by libraries when they are imported; none is secret.
_LIBRARIES = ("/etc/mime.types", "/etc/os-release", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/fonts")
# Read by a GPU's driver when it starts: its settings, and the system's devices and modules.
_DRIVER = ("/etc/nvidia", "/sys/bus/pci", "/sys/module", "/proc/devices", "/proc/modules")
_PROC = ("cpuinfo", "meminfo", "stat", "version", "sys/vm", "sys/kernel", "filesystems", "mounts")
_NVIDIA = "nvidia*"


def main() -> None:
    """Run the sandboxed process."""
    end_with_parent()
    name_process("oncofed code")
    commands = socket.socket(fileno=os.dup(0))
    facts, content = receive(commands, _LARGEST_PACK)
    context = facts["context"]
    files = (context["initial"], context["against"], facts["weights"])
    models = [Path(file) for file in files if file]
    try:
        restrict_files(*accessible_paths(Path(context["data"]), Path(context["state"]), models))
    except Exception as error:  # noqa: BLE001 - the job's process must learn of any error
        send(commands, failure(error), b"")
        return
    with lean_imports():
        from oncofed.client.sandbox_worker import work  # noqa: PLC0415 - it starts threads

    work(commands, facts, content)


def accessible_paths(data: Path, state: Path, models: Sequence[Path] = ()) -> tuple[list[Path], list[Path]]:
    """Return the readable paths, and the writable ones.

    Args:
        data: folder of the dataset.
        state: folder of the job's state.
        models: files of weights that the job brings along, or that its encoder has here.
    """
    roots = (sys.prefix, sys.base_prefix, *sys.path, str(Path(oncofed.__file__).parent))
    python = {root for root in roots if len(Path(root).parts) > 1}
    process = Path("/proc") / str(os.getpid())
    libraries = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    read = [*map(Path, (*python, *libraries, *_SYSTEM, *_LIBRARIES, *_DRIVER)), process]
    read += [*(Path("/proc") / name for name in _PROC), *Path("/proc/driver").glob(_NVIDIA)]
    read += [Path("/dev/urandom"), Path("/dev/random"), Path("/dev/zero"), data]
    # A dataset whose images lie elsewhere holds links to them, each created by the site itself.
    read += [path.resolve() for path in data.rglob("*") if path.is_symlink()]
    read += models
    # A driver names its threads through files there. All belong to this very process, whose code may do with itself
    # what it likes; it gains no access to others.
    threads = process / "task"
    return read, [state, threads, Path("/dev/null"), *Path("/dev").glob(_NVIDIA)]


if __name__ == "__main__":
    main()
