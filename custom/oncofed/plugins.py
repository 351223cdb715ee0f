"""Registries of what a job may name: algorithms, networks, tasks, transforms, losses.

An installed package registers its own through an entry point, or where its module is imported; a pack's are known under
the digest of the pack alone.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from oncofed.errors import SpecError

T = TypeVar("T")

# Digest of the pack whose code is being imported.
_PACK: ContextVar[str] = ContextVar("pack", default="")


def current_pack() -> str:
    """Return the digest of the pack that is being imported, or an empty string."""
    return _PACK.get()


@contextlib.contextmanager
def registering(pack: str) -> Iterator[None]:
    """Register everything in the block under a pack.

    Args:
        pack: its digest.
    """
    token = _PACK.set(pack)
    try:
        yield
    finally:
        _PACK.reset(token)


class Registry(Generic[T]):
    """Plug-ins of one kind, by name.

    Args:
        kind: in messages, such as "network".
        package: whose modules register the built-in ones; None: they are registered on import elsewhere.
        group: of the entry points through which installed packages register theirs; None: packages cannot.
        packs: whether packs may register them.

    Example:
        >>> losses = Registry[str]("loss")
        >>> losses.register("dice")("a function")
        'a function'
        >>> losses.find("dice"), losses.names()
        ('a function', ['dice'])
    """

    def __init__(self, kind: str, package: str | None = None, group: str | None = None, packs: bool = True) -> None:
        self._kind, self._package, self._group, self._packs = kind, package, group, packs
        self._known: dict[tuple[str, str], T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument.

        Raises:
            SpecError: a pack registers what packs may not.
        """

        def keep(plugin: T) -> T:
            if current_pack() and not self._packs:
                raise SpecError(f"a pack cannot bring {self._kind} {name!r}: install it as a package on the server too")
            self._known[current_pack(), name] = plugin
            return plugin

        return keep

    def find(self, name: str, pack: str = "") -> T:
        """Return a plug-in.

        Args:
            name: its own.
            pack: digest of the pack that brings it; empty: none does.

        Raises:
            SpecError: none has that name; lists those that are known.
        """
        self._load_installed()
        if (pack, name) not in self._known:
            of = f"the pack {pack[:12]}… has no {self._kind}" if pack else f"unknown {self._kind}"
            raise SpecError(f"{of} {name!r}; known: {', '.join(self.names(pack)) or 'none'}")
        return self._known[pack, name]

    def names(self, pack: str = "") -> list[str]:
        """Return the known names, in the order in which they were registered."""
        self._load_installed()
        return [name for of, name in self._known if of == pack]

    def _load_installed(self) -> None:
        """Import the built-in modules and what installed packages declare, at the first lookup."""
        package, self._package, group, self._group = self._package, None, self._group, None
        if package:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
                importlib.import_module(module.name)
        for entry in entry_points(group=group) if group else ():
            self._load(entry)

    def _load(self, entry: EntryPoint) -> None:
        try:
            entry.load()
        except Exception as error:
            raise SpecError(
                f"the package of the {self._kind} {entry.name!r} ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}. Repair or uninstall it"
            ) from error
