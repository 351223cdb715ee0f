"""Import what trains in less time and memory."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# MONAI imports these if they are installed: libraries for plots, tables, arrays of chunks and one network over text,
# which nothing that trains uses and which take a third of the time, and a DICOM reader that no job uses, whose nvJPEG
# initialises CUDA on import: no fork could use a GPU.
_NOT_NEEDED = ("matplotlib", "pandas", "sklearn", "transformers", "zarr", "nvidia.nvimgcodec")


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


def import_monai_leanly() -> None:
    """Have whoever imports MONAI first import it leanly.

    For a command, which imports it only when it needs it: what is imported besides it, as for a report, is not lean.
    """
    if "monai" not in sys.modules:
        sys.meta_path.insert(0, _MonaiFinder())


class _MonaiFinder(MetaPathFinder):
    """Finds MONAI once, where others find it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return MONAI's specification, whose loader imports leanly."""
        del path, target
        if fullname != "monai":
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(fullname)
        if found and found.loader:
            usual = found.loader.exec_module

            def load(module: ModuleType) -> None:
                with lean_imports():
                    usual(module)

            found.loader.exec_module = load  # type: ignore[method-assign]
        return found
