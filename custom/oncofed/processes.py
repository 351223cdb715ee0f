"""A run's processes: their environment and their end."""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

# Processes with the same file here take turns on this machine's GPU, and on its cores if the other variable limits how
# many compute at once.
TURN_VARIABLE, AT_ONCE_VARIABLE = "ONCOFED_TURN", "ONCOFED_AT_ONCE"
# Number of processes, each with a site's data, that share this machine and its GPU.
SHARED_VARIABLE = "ONCOFED_SHARED_BY"
# Name of a job's process in the system's process list.
JOB_PROCESS = "oncofed job"
# PYTHONIOENCODING of the processes that are started here.
LOG_ENCODING = "utf-8:backslashreplace"
_STOP_SECONDS = 5.0
_MARK = "ONCOFED_STARTED_WITH"  # identifies, in a process's environment, its run
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h
# Above this number of processes per compute slot they take turns on the cores.
_MOST_PER_SLOT = 4
# OpenMP's number of threads of a process; PyTorch reads it once, at import.
THREADS_VARIABLE = "OMP_NUM_THREADS"
# A UNIX socket's path has at most 107 bytes (unix(7)), of which multiprocessing needs 33 below the temporary folder.
_LONGEST_TEMPORARY = 107 - 33
_LINK_PREFIX = "oncofed-"
# What a command's processes import, once for all of them.
_PRELOADED = ["oncofed.training.preloaded"]


def share_of_threads(processes: int) -> str:
    """Return each process's number of threads.

    The environment's setting takes precedence.
    """
    return os.environ.get(THREADS_VARIABLE, str(max(1, (os.cpu_count() or 1) // processes)))


def compute_slots(processes: int) -> int:
    """Return how many of the processes compute at once.

    As many as the cores allow, and one more while others write. A few processes all compute at once: taking turns, the
    last one would leave cores idle.
    """
    threads = int(share_of_threads(processes).split(",")[0])
    at_once = max(1, (os.cpu_count() or 1) // threads) + 1
    return at_once if processes > _MOST_PER_SLOT * at_once else processes


def sharing_processes() -> int:
    """Return how many processes share this machine, including this one."""
    return int(os.environ.get(SHARED_VARIABLE, "1"))


def process_environment(temporary: Path, processes: int, mark: Path | None = None) -> dict[str, str]:
    """Return the environment of one of several processes.

    It uses this Python, keeps temporary files in ``temporary``, has its share of the cores, and takes turns on the GPU.
    A single process takes no turns: each of its jobs is assigned a GPU.

    Args:
        temporary: folder for its temporary files.
        processes: number that share this machine.
        mark: for ``stop_processes``; None: the temporary folder.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    share = {}
    # A single process has all cores anyway, and its children are to divide them.
    if processes > 1:
        share[THREADS_VARIABLE] = share_of_threads(processes)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TMPDIR": str(temporary.absolute()),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(temporary.absolute())),
        **share,
        "PYTHONWARNINGS": "ignore",
        # Its output goes to a file that is read as UTF-8, whatever this terminal's encoding.
        "PYTHONIOENCODING": LOG_ENCODING,
        _MARK: str((mark or temporary).absolute()),
        TURN_VARIABLE: str(temporary.absolute() / "turn") if processes > 1 else "",
        SHARED_VARIABLE: str(processes),
    }


def takes_sockets(folder: Path) -> bool:
    """Return whether multiprocessing can have sockets in a folder."""
    return len(os.fsencode(folder.absolute())) <= _LONGEST_TEMPORARY


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[Path]:
    """Yield a path of ``folder`` short enough for sockets.

    The folder itself, or a temporary link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if takes_sockets(folder):
        yield folder
        return
    # TMPDIR may be as deep as the folder.
    with tempfile.TemporaryDirectory(prefix=_LINK_PREFIX, dir=_shallow()) as system:
        link = Path(system) / "tmp"
        link.symlink_to(folder.absolute())
        yield link


def _shallow() -> str:
    """Return a temporary folder with a short path.

    The system's, unless its path is too long for sockets.
    """
    longest = _LONGEST_TEMPORARY - len(f"/{_LINK_PREFIX}12345678/tmp")
    folders = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - a new folder is created in it
    return next((f for f in folders if len(os.fsencode(f)) <= longest and os.access(f, os.W_OK)), folders[0])


def user_name() -> str:
    """Return this process's user name.

    A container's user may have only a number.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def end_with_parent() -> None:
    """End this process when its parent ends, even by SIGKILL.

    Linux only, else no effect.

    For a child, in ``preexec_fn`` or as its first statement.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ready_context(forks: bool = True) -> BaseContext:
    """Return how to start processes that read images or train.

    Forks of one process that has imported what they need start in no time, and share that memory. Where it can have no
    socket, each process imports it.

    Args:
        forks: False where they use a GPU: a library that touches it on import would keep the forks from it.
    """
    forks = forks and takes_sockets(Path(tempfile.gettempdir()))
    context: BaseContext = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(_PRELOADED)
    return context


def end_with_starter() -> None:
    """End this process with the one that started it by ``multiprocessing``, even by SIGKILL.

    A fork's parent is the process that forks, which stays as long as there are forks.
    """
    end_with_parent()
    if starter := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(starter,), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def name_process(name: str) -> None:
    """Set this process's name in ``top`` and ``ps -e``.

    At most 15 characters; Linux only, else no effect.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return the signals that this process does not ignore.

    A parent may have set some to be ignored.

    ``nohup`` sets SIGHUP to be ignored, and a script's ``&`` SIGINT. SIGTERM is always handled: it is meant for this
    process.
    """
    return [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) is not signal.SIG_IGN]


def enable_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt.

    Even if this process inherited that it is ignored.

    For children that their parent stops by SIGINT: ``make bench &`` ignores it, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Start processes that do not receive Ctrl-C.

    Their parent ends them.

    A terminal sends it to all processes. Those started in the block inherit that the signal is blocked; for this
    process it is delivered after the block.
    """
    # The tracker unblocks signals when it starts, so start it first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_processes(mark: Path) -> None:
    """End all processes with this mark, and their children.

    ``process_environment`` sets the mark, which identifies them even if their parents are dead. SIGTERM first, then
    SIGKILL.
    """
    for step in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        members = _started_with(mark)
        if not members:
            return
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(step)
        psutil.wait_procs(members, timeout=_STOP_SECONDS)


def mark_of(environment: Mapping[str, str]) -> str | None:
    """Return an environment's mark, which ``process_environment`` sets."""
    return environment.get(_MARK)


def show_mark() -> None:
    """Let ``stop_processes`` find this fork by its mark.

    The system shows the environment that a program was started with, for its forks, too. Call it once ``os.environ`` is
    this fork's own: nothing uses the former one any more, whose place the mark takes. Linux only, else no effect.
    """
    shown = f"{_MARK}={os.environ.get(_MARK, '')}".encode()
    with contextlib.suppress(OSError):
        # proc(5): env_start and env_end are the fields 50 and 51; the third one follows the name in brackets.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        if len(shown) < end - start:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, shown, len(shown))


def _started_with(mark: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == str(mark.absolute()):
                found.append(process)
    return found
