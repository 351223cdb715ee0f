"""The process in which a pack's code runs, from its first act: it gives up files before anything starts threads.

``python -m oncofed.client.sandboxed_process`` takes its orders through its standard input, a socket. What it imports
here starts no thread: numpy, torch and a GPU's driver do, and are imported and begun once Landlock binds them too.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import oncofed
from oncofed.processes import end_with_parent, name_process
from oncofed.sandbox import restrict_files

DONE, FAILED = "done", "failed"
_LENGTHS = 16  # bytes before each message: those of its JSON and of its tensors
_LARGEST_FACTS = 1 << 22
_LARGEST_PACK = 1 << 24
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices", "/sys/fs/cgroup")
# What libraries read as they are imported, and is no secret.
_LIBRARIES = ("/etc/mime.types", "/etc/os-release", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/fonts")
# What a GPU's driver reads of the system as it begins: its own settings, and which devices and modules there are.
_DRIVER = ("/etc/nvidia", "/sys/bus/pci", "/sys/module", "/proc/devices", "/proc/modules")
_PROC = ("cpuinfo", "meminfo", "stat", "version", "sys/vm", "sys/kernel", "filesystems", "mounts")
_NVIDIA = "nvidia*"


def main() -> None:
    """Be the confined process."""
    end_with_parent()
    name_process("oncofed code")
    orders = socket.socket(fileno=os.dup(0))
    facts, content = receive(orders, _LARGEST_PACK)
    try:
        restrict_files(*_what_it_may_touch(facts["place"]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the job's process is told
        send(orders, failure(error), b"")
        return
    from oncofed.client.sandboxed import be_confined  # noqa: PLC0415 - it starts threads

    be_confined(orders, facts, content)


def _what_it_may_touch(place: Mapping[str, str | None]) -> tuple[list[Path], list[Path]]:
    """Return what may be read, and what may be changed too.

    Args:
        place: a ``turns.SiteContext`` as it travels.
    """
    data, state = Path(place["data"] or ""), Path(place["state"] or "")
    roots = (sys.prefix, sys.base_prefix, *sys.path, str(Path(oncofed.__file__).parent))
    python = {root for root in roots if len(Path(root).parts) > 1}
    process = Path("/proc") / str(os.getpid())
    libraries = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    read = [*map(Path, (*python, *libraries, *_SYSTEM, *_LIBRARIES, *_DRIVER)), process]
    read += [*(Path("/proc") / name for name in _PROC), *Path("/proc/driver").glob(_NVIDIA)]
    read += [Path("/dev/urandom"), Path("/dev/random"), Path("/dev/zero"), data]
    # A dataset whose images lie elsewhere holds links to them, each put there by the site itself.
    read += [path.resolve() for path in data.rglob("*") if path.is_symlink()]
    read += [Path(brought) for name in ("initial", "against") if (brought := place[name])]
    # A driver gives its threads names, through files there. All of them are of this very process, whose code may do to
    # itself what it wants; it gains no way to others.
    threads = process / "task"
    return read, [state, threads, Path("/dev/null"), *Path("/dev").glob(_NVIDIA)]


def send(to: socket.socket, facts: Mapping[str, Any], blob: bytes) -> None:
    """Send a message: what JSON can say, and tensors."""
    text = json.dumps(facts).encode()
    to.sendall(len(text).to_bytes(8, "big") + len(blob).to_bytes(8, "big") + text)
    if blob:
        to.sendall(blob)


def receive(of: socket.socket, largest: int) -> tuple[dict[str, Any], bytes]:
    """Take a message apart.

    Args:
        of: who sends it.
        largest: bytes that its tensors may have.

    Raises:
        ValueError: it is larger, or not one.
        EOFError: whoever sends has ended.
    """
    lengths = _read(of, _LENGTHS)
    text, blob = int.from_bytes(lengths[:8], "big"), int.from_bytes(lengths[8:], "big")
    if text > _LARGEST_FACTS or blob > largest:
        raise ValueError(f"a message of {text} and {blob} bytes")
    facts = json.loads(_read(of, text))
    if not isinstance(facts, dict):
        raise ValueError("a message that is no object")
    return facts, _read(of, blob)


def _read(of: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = of.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return bytes(content)


def failure(error: Exception) -> dict[str, str]:
    """Write an error to the log, and return what the process of the job is told of it."""
    logging.getLogger(__name__).error("the confined process failed", exc_info=error)
    return {"told": FAILED, "type": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    main()
