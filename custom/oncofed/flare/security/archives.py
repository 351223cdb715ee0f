"""The archive that a job comes in, looked at by the server before anything of it is unpacked."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import PurePosixPath

from oncofed.flare.folders import JOB_PACK
from oncofed.flare.patches.job_validation import check_archives

_MOST_FILES = 1000
_LARGEST_BYTES = 16 << 30
# What is text and numbers shrinks to a tenth; weights hardly at all.
_LARGEST_RATIO, _ALWAYS_FINE_BYTES = 100, 64 << 20
_LARGEST_PACK_BYTES = 16 << 20
# The archive that this thread takes: FLARE looks at it, then asks whether the job may come, without naming it.
_TAKEN: ContextVar[str | None] = ContextVar("taken", default=None)


def archive_problem(path: str) -> str | None:
    """Return why an archive is not unpacked; None where it is as a job's should be.

    FLARE looks at names and links itself where it unpacks; at sizes nowhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        return f"no archive ({type(error).__name__})"
    if len(members) > _MOST_FILES:
        return f"it holds {len(members)} files, expected at most {_MOST_FILES}"
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            return "a file of it would lie outside of the job's folder"
        if stat.S_ISLNK(member.external_attr >> 16):
            return "it holds a link"
    size, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if size > _LARGEST_BYTES or (size > _ALWAYS_FINE_BYTES and size > _LARGEST_RATIO * max(packed, 1)):
        return f"it would unpack to {size / 1e6:.0f} MB from {packed / 1e6:.2f} MB"
    return None


def pack_of_taken() -> bytes | None:
    """Return the pack that the job brings which is being taken in this thread; None where it brings none that is whole.

    It comes from whoever submits: its size alone was looked at.
    """
    path = _TAKEN.get()
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            packs = [member for member in archive.infolist() if PurePosixPath(member.filename).name == JOB_PACK]
            if len(packs) != 1 or packs[0].file_size > _LARGEST_PACK_BYTES:
                return None
            return archive.read(packs[0])
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error):  # its content is not what its list says
        return None


def look_at_archives(refused: Callable[[str], None]) -> None:
    """Have the server refuse jobs whose archive is not as it should be.

    Args:
        refused: is told why.
    """

    def problem_of(path: str) -> str | None:
        problem = archive_problem(path)
        if problem:
            refused(problem)
        return problem

    check_archives(problem_of, _TAKEN.set)
