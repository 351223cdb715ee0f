"""Sandbox for untrusted code.

No network, no other processes, little of the disk. Linux only. Landlock (kernel 5.13, ``landlock(7)``) allows only some
folders for reading and some for writing. A system call filter (``seccomp(2)``) refuses sockets, new processes and
access to others. Both are permanent and need no rights.

The filter applies to all threads of the process. Landlock, before version 8 of its ABI (kernel 7.0), applies to the
calling thread and its later children, not to existing threads; and code in a process can make any other thread run
code, be it one of the C library, of numerical libraries or of a GPU's driver. So no other thread may exist when files
are restricted: call ``restrict_files`` first, before importing a library that starts threads, and ``restrict_calls``
once all sockets are open, before loading the untrusted code.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from oncofed.errors import PolicyError

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _VERSION = 1, 1
_OF_ALL_THREADS, _ALL_THREADS_ABI = 1 << 3, 8
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals of others

# linux/prctl.h, linux/seccomp.h, linux/filter.h
_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000


@dataclass(frozen=True)
class _Machine:
    """System call numbers of a processor.

    Above 423 they are the same on all.
    """

    audit: int
    seccomp: int
    clone: int
    forbidden: tuple[int, ...]
    own_process_only: tuple[int, ...]


# Numbers shared by all processors: io_uring, the new mount calls, pidfd_open, pidfd_getfd, mount_setattr, fchmodat2.
_FORBIDDEN_ANYWHERE = (*range(425, 434), 434, 438, 442, 452)
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        317,
        56,
        # socket, fork, vfork, execve, execveat; ptrace, process_vm_*, kcmp, unshare, setns, mounts, keys, bpf, perf,
        # userfaultfd, modules, kexec, signals with a payload
        (
            *(41, 57, 58, 59, 322, 101, 310, 311, 312, 272, 308, 165, 166, 155, 161, 250, 248, 249, 321, 298, 323),
            *(175, 313, 246, 320, 129, 297),
            # chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat, utime*, setxattr*, removexattr*
            *(90, 91, 92, 93, 94, 260, 268, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
        ),
        (62, 200, 234),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        277,
        220,
        (
            *(198, 221, 281, 117, 270, 271, 272, 97, 268, 40, 39, 41, 51, 219, 217, 218, 280, 241, 282),
            *(105, 273, 104, 294, 138, 240),
            *(52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
        ),
        (129, 130, 131),
    ),
}
_CLONE3 = 435
_X32 = 0x40000000


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def what_is_missing() -> str | None:
    """Return why this machine cannot sandbox a process.

    None if it can.
    """
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return f"{platform.system()} on {platform.machine()}, expected Linux on {' or '.join(_MACHINES)}"
    if _landlock_version() < 1:
        return "the kernel has no Landlock, or it is not switched on (expected 5.13 or later, and lsm=landlock,…)"
    action = ctypes.c_uint32(_ERRNO)
    if _syscall(_MACHINES[platform.machine()].seccomp, 2, 0, ctypes.byref(action)) != 0:  # SECCOMP_GET_ACTION_AVAIL
        return "the kernel has no filter of system calls (CONFIG_SECCOMP_FILTER)"
    return None


def restrict_files(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Restrict this process to some files, without TCP.

    Its children are restricted too.

    Args:
        read: readable; missing paths are skipped.
        write: readable and writable.

    Raises:
        PolicyError: the machine cannot do this, or other threads would not be restricted; nothing was changed.
        OSError: the kernel refused a step; the process should end.
    """
    missing = what_is_missing()
    if missing:
        raise PolicyError(f"this machine cannot confine a process: {missing}")
    version = _landlock_version()
    others = len(os.listdir("/proc/self/task")) - 1  # noqa: PTH208 - only their count is needed
    if others and version < _ALL_THREADS_ABI:
        raise PolicyError(
            f"{others} other threads of this process would not be bound by Landlock {version}, expected none, or "
            f"Landlock {_ALL_THREADS_ABI} (Linux 7.0). Give up files before anything starts threads."
        )
    _forgo_new_rights()
    everything = _ALL_OF_ABI[min(version, max(_ALL_OF_ABI))]
    ruleset = _Ruleset(everything, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = ctypes.sizeof(_Ruleset) if version >= 6 else 16 if version >= 4 else 8
    rules = _checked(_syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0), "landlock_create_ruleset")
    try:
        for path in read:
            _allow(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in write:
            _allow(rules, path, everything)
        flags = _OF_ALL_THREADS if version >= _ALL_THREADS_ABI else 0
        _checked(_syscall(_RESTRICT_SELF, rules, flags), "landlock_restrict_self")
    finally:
        os.close(rules)


def restrict_calls() -> None:
    """Deny sockets, new processes and access to others.

    In all threads of this process.

    Call ``restrict_files`` first if files are restricted too.

    Raises:
        OSError: the kernel refused; the process should end.
    """
    machine = _MACHINES[platform.machine()]
    _forgo_new_rights()
    program = b"".join(_filter(machine, os.getpid()))
    # The structure points into ``program``.
    loaded = _Program(len(program) // 8, program)
    _checked(_syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(loaded)), "seccomp")


def _forgo_new_rights() -> None:
    """Set no_new_privs, without which only root may restrict a process."""
    _checked(_libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _allow(rules: int, path: Path, what: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a missing path needs no rule
    try:
        everything = _ALL_OF_ABI[min(_landlock_version(), max(_ALL_OF_ABI))]
        allowed = what & everything if path.is_dir() else what & everything & _OF_FILES
        rule = _PathBeneath(allowed, descriptor)
        _checked(_syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0), "landlock_add_rule")
    finally:
        os.close(descriptor)


def _filter(machine: _Machine, process: int) -> list[bytes]:
    """Return the BPF program. Jumps count skipped instructions."""
    denied, absent = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, machine.audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for number in (*machine.forbidden, *_FORBIDDEN_ANYWHERE):
        steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, denied)]
    # The C library then falls back to clone, whose flags BPF can read: threads are allowed, processes are not.
    steps += [_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, absent)]
    steps += [
        _step(_EQUAL, machine.clone, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _CLONE_THREAD, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, denied),
    ]
    for number in machine.own_process_only:
        steps += [
            _step(_EQUAL, number, 0, 4),
            _step(_LOAD, _FIRST_ARGUMENT),
            _step(_EQUAL, process, 0, 1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, denied),
        ]
    return [*steps, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _landlock_version() -> int:
    return _syscall(_CREATE_RULESET, None, 0, _VERSION)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    call = _libc().syscall
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
