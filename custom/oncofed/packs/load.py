"""Import of packs from memory.

A pack's package gets a name that holds its digest.

Only two do this: the engineer who wrote it, on their machine, and a site's sandboxed process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from oncofed.errors import SpecError
from oncofed.packs.pack import Pack
from oncofed.plugins import registering

_PREFIX = "oncofed_code_"
_LOADED: dict[str, Pack] = {}
# The package under which a MONAI bundle's configuration imports the folder of that name.
_SCRIPTS = "scripts"


class _Finder(MetaPathFinder, InspectLoader):
    """Finds the modules of loaded packs, and none else."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        found = _file_of(name)
        if found is None:
            return None
        return ModuleSpec(name, self, origin=f"{name.partition('.')[0]}/{found[1]}", is_package=self.is_package(name))

    def is_package(self, fullname: str) -> bool:
        found = _file_of(fullname)
        return found is not None and found[1].endswith("__init__.py")

    def get_source(self, fullname: str) -> str:
        found = _file_of(fullname)
        if found is None:
            raise ImportError(fullname)
        return found[0].text(found[1])


def _file_of(module: str) -> tuple[Pack, str] | None:
    root, _, rest = module.partition(".")
    pack = _LOADED.get(_BUNDLES.package if root == _SCRIPTS else root)
    path = (module if root == _SCRIPTS else rest).replace(".", "/")
    if pack is None:
        return None
    for candidate in (f"{path}/__init__.py" if path else "__init__.py", f"{path}.py"):
        if candidate in pack.files:
            return pack, candidate
    return None


def use_scripts(package: str) -> Pack:
    """Import a bundle's scripts as ``scripts``, and return its pack.

    From now on, in place of another bundle's.

    Args:
        package: as which the pack was loaded.
    """
    _BUNDLES.use(package)
    return _LOADED[package]


class _Scripts:
    """The bundle whose scripts are imported as ``scripts``.

    It keeps the modules of other bundles that were used before.
    """

    def __init__(self) -> None:
        self.package = ""
        self._aside: dict[str, dict[str, ModuleType]] = {}

    def use(self, package: str) -> None:
        """Replace another bundle's modules by this one's."""
        if package == self.package:
            return
        names = [name for name in sys.modules if name.partition(".")[0] == _SCRIPTS]
        self._aside[self.package] = {name: sys.modules.pop(name) for name in names}
        sys.modules.update(self._aside.pop(package, {}))
        self.package = package


_BUNDLES = _Scripts()


def load_pack(pack: Pack) -> None:
    """Import a pack once, registering its plug-ins by digest.

    Raises:
        SpecError: it cannot be imported.
    """
    root = _PREFIX + pack.digest[:16]
    if root in _LOADED:
        _LOADED[root] = pack  # the same code, perhaps with a signature that it did not have before
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _LOADED[root] = pack
    try:
        with registering(pack.digest):
            importlib.import_module(root)
    except BaseException as error:
        del _LOADED[root]
        for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
            del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise SpecError(f"the pack {pack.name} cannot be imported: {type(error).__name__}: {error}") from error


def loaded_packs() -> tuple[Pack, ...]:
    """Return the loaded packs, for another process."""
    return tuple(_LOADED.values())


def load_packs(packs: Sequence[Pack]) -> None:
    """Load several."""
    for pack in packs:
        load_pack(pack)
