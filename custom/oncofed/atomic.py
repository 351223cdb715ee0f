"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Replace a file in one step.

    A reader finds the old contents or the new, also after a power cut.

    Args:
        path: of the file.
        content: all of it; text in UTF-8.
        mode: its permissions; None: those of the file that was there, else those of any new file.
    """
    with _beside(path, content.encode() if isinstance(content, str) else content) as complete:
        usual = path.stat().st_mode & 0o777 if path.exists() else 0o644 & ~_umask()
        complete.chmod(usual if mode is None else mode)
        complete.replace(path)


def create_whole(path: Path, content: bytes) -> None:
    """Create a file in one step, unless it exists.

    Of processes that create it at the same moment, one succeeds, and all find its contents. Its owner alone can read
    it.

    Args:
        path: of the file.
        content: all of it.
    """
    with _beside(path, content) as complete:
        try:
            os.link(complete, path)  # unlike a rename, it overwrites nothing
        except FileExistsError:
            return
        except OSError:
            # Some drives, such as exFAT, have no links: there, the last of such processes succeeds.
            if not path.exists():
                complete.replace(path)


@contextlib.contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a complete temporary file next to a path.

    It is removed if it still exists after the block.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def flush_to_disk(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
