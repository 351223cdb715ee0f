"""Import what trains in less time and memory."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

# MONAI imports these if they are installed: libraries for plots and tables, which nothing that trains draws and which
# take a fifth of the time, one of language models, which takes another, for a network that reads text, and a DICOM
# reader that no job uses, whose nvJPEG initialises CUDA on import: no fork could use a GPU.
_NOT_NEEDED = ("matplotlib", "pandas", "sklearn", "transformers", "nvidia.nvimgcodec")


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import without libraries for plots, and without collecting garbage.

    What is imported in the block is never looked through for garbage.
    """
    absent = [name for name in _NOT_NEEDED if name not in sys.modules]
    # None means that there is no such module (language reference, 5.3.1).
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    # The garbage collector would take a fifth of the time, and find nothing among imported modules.
    gc.disable()
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        gc.freeze()
        gc.enable()
