"""Processes that a run starts: their environment, and that none outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

# Processes whose environment names the same file here take turns at this machine's GPU, and at its cores where another
# variable says how many compute at once.
TURN_VARIABLE, AT_ONCE_VARIABLE = "ONCOFED_TURN", "ONCOFED_AT_ONCE"
# How many processes, each with a site's data, share this machine and its GPU.
SHARED_VARIABLE = "ONCOFED_SHARED_BY"
# What the system's list of processes calls one that runs a job.
JOB_PROCESS = "oncofed job"
# Of what the processes print that are started here, for PYTHONIOENCODING.
LOG_ENCODING = "utf-8:backslashreplace"
_STOP_SECONDS = 5.0
_MARK = "ONCOFED_STARTED_WITH"  # names, in a process's environment, the run that it belongs to
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h
# Processes take turns at the cores where each place sees more than so many of them.
_MANY_TURNS = 4
# How many threads a process computes with, as OpenMP has it; PyTorch looks once, as it is imported.
THREADS_VARIABLE = "OMP_NUM_THREADS"
# A UNIX socket's path has at most 107 bytes (unix(7)); multiprocessing appends 33 to that of the temporary folder.
_LONGEST_TEMPORARY = 107 - 33
_LINK_PREFIX = "oncofed-"


def share_of_threads(processes: int) -> str:
    """Return how many threads each of so many processes is to compute with, unless whoever started this one said so."""
    return os.environ.get(THREADS_VARIABLE, str(max(1, (os.cpu_count() or 1) // processes)))


def places(processes: int) -> int:
    """Return how many of so many processes are to compute at once.

    As the cores allow, and one while others write. Few processes all do: the last in turn would leave cores idle.
    """
    threads = int(share_of_threads(processes).split(",")[0])
    at_once = max(1, (os.cpu_count() or 1) // threads) + 1
    return at_once if processes > _MANY_TURNS * at_once else processes


def sharing_processes() -> int:
    """Return how many processes share this machine, this one among them, as whoever started them said."""
    return int(os.environ.get(SHARED_VARIABLE, "1"))


def process_environment(temporary: Path, processes: int, mark: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that shares this machine with ``processes`` others.

    Its ``python3`` is this one, its temporary files stay in ``temporary``, its share of the cores is its own, and it
    takes turns at the GPU with the others. Alone it takes none: its jobs are lent a GPU each.

    Args:
        temporary: folder for its temporary files.
        processes: that share this machine.
        mark: by which ``stop_processes`` knows it; None: the temporary folder.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    share = {}
    # One that is alone has all cores as it is, and those that it starts in turn are to have their share of them.
    if processes > 1:
        share[THREADS_VARIABLE] = share_of_threads(processes)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TMPDIR": str(temporary.absolute()),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(temporary.absolute())),
        **share,
        "PYTHONWARNINGS": "ignore",
        # What it prints goes to a file, which is read as UTF-8 whatever this terminal's encoding is.
        "PYTHONIOENCODING": LOG_ENCODING,
        _MARK: str((mark or temporary).absolute()),
        TURN_VARIABLE: str(temporary.absolute() / "turn") if processes > 1 else "",
        SHARED_VARIABLE: str(processes),
    }


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[Path]:
    """Yield a name of ``folder`` that is short enough for sockets in it: its own, or a link that goes when left."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(os.fsencode(folder.absolute())) <= _LONGEST_TEMPORARY:
        yield folder
        return
    # TMPDIR may be as deep as the folder itself.
    with tempfile.TemporaryDirectory(prefix=_LINK_PREFIX, dir=_shallow()) as system:
        link = Path(system) / "tmp"
        link.symlink_to(folder.absolute())
        yield link


def _shallow() -> str:
    """Return the system's temporary folder, or another one where its name is too long for sockets."""
    longest = _LONGEST_TEMPORARY - len(f"/{_LINK_PREFIX}12345678/tmp")
    folders = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - a folder of its own is made in it
    return next((f for f in folders if len(os.fsencode(f)) <= longest and os.access(f, os.W_OK)), folders[0])


def user_name() -> str:
    """Return the name of this process's user on this machine; a container's may have none but a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def end_with_parent() -> None:
    """Have this process end when the one that started it ends, even by SIGKILL. Linux only; elsewhere it does nothing.

    For use in a child before it runs its program (``preexec_fn``) or as its first act.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def name_process(name: str) -> None:
    """Have the system's list of processes (``top``, ``ps -e``) show this one as ``name``, at most 15 characters.

    Linux only; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return which of some signals are to be handled: not those that whoever started this process had it ignore.

    ``nohup`` has it ignore SIGHUP, and a script's ``&`` SIGINT. SIGTERM is always heeded: it asks this very process.
    """
    return [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) is not signal.SIG_IGN]


def heed_interrupts() -> None:
    """Have SIGINT raise KeyboardInterrupt in this process, also where it was started by one that ignores it.

    For processes of ours that their parent stops so: what is ignored is inherited, and ``make bench &`` ignores it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes that do not heed Ctrl-C, which a terminal sends to all of them: their parent is to end them.

    Such processes inherit that the signal is blocked. Here it waits until the block is left, and is not lost.
    """
    # It lifts every block when it starts, so it starts before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_processes(mark: Path) -> None:
    """End every process whose ``process_environment`` has this mark, and all that those started.

    They are known by their environment, not by their parents, who may be dead. Politely first, then by force.
    """
    for step in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        members = _started_with(mark)
        if not members:
            return
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(step)
        psutil.wait_procs(members, timeout=_STOP_SECONDS)


def _started_with(mark: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == str(mark.absolute()):
                found.append(process)
    return found
