"""Checks of a submitted job's archive on the server.

They run before it is unpacked.
"""

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
# Text and numbers shrink to a tenth; weights hardly at all.
_LARGEST_RATIO, _ALWAYS_FINE_BYTES = 100, 64 << 20
_LARGEST_PACK_BYTES = 16 << 20
# The archive that this thread accepts: FLARE's event for a validated job does not name it.
_ACCEPTED: ContextVar[str | None] = ContextVar("accepted", default=None)


def archive_problem(path: str) -> str | None:
    """Return why an archive is refused, if it is.

    FLARE checks names and links itself when it unpacks, but no sizes.
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


def pack_of_submission() -> bytes | None:
    """Return the pack of the job that this thread accepts.

    It is None where there is no readable one. Only its size was checked.
    """
    path = _ACCEPTED.get()
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            packs = [member for member in archive.infolist() if PurePosixPath(member.filename).name == JOB_PACK]
            if len(packs) != 1 or packs[0].file_size > _LARGEST_PACK_BYTES:
                return None
            return archive.read(packs[0])
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error):  # its content is not what its index says
        return None


def check_submissions(refused: Callable[[str], None]) -> None:
    """Have the server refuse jobs with an invalid archive.

    Args:
        refused: called with the reason.
    """

    def problem_of(path: str) -> str | None:
        problem = archive_problem(path)
        if problem:
            refused(problem)
        return problem

    check_archives(problem_of, _ACCEPTED.set)
