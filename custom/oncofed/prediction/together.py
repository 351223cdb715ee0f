"""Several files that belong together: all of them are there, or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def together(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, whose contents move to ``folder`` once the block is done; else they are removed.

    What was there under the same names is replaced.

    Raises:
        OSError: there is no room, or it is not allowed; ``folder`` is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        for path in sorted(unfinished.iterdir()):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
