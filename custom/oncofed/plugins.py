"""Registries of a job's plug-ins.

Algorithms, networks, tasks, transforms and losses. An installed package registers its own through an entry point, or in
a module that ``ONCOFED_NETWORKS`` names; a pack's are known under the digest of the pack alone. Looking up a name
imports what is installed, and never a pack.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Literal, TypeVar

from pydantic_core import PydanticCustomError

from oncofed.errors import SpecError

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# Modules that a site installed with oncofed, separated by commas: importing one registers what it brings.
MODULES_VARIABLE = "ONCOFED_NETWORKS"

# Digest of the pack whose code is being imported.
_PACK: ContextVar[str] = ContextVar("pack", default="")
_LOADED: set[str] = set()
_REGISTRIES: list[Registry[Any]] = []


def current_pack() -> str:
    """Return the digest of the pack being imported.

    An empty string outside such an import.
    """
    return _PACK.get()


@contextlib.contextmanager
def registering(pack: str) -> Iterator[None]:
    """Register everything in the block under a pack.

    Args:
        pack: its digest.
    """
    # Installed packages that the pack imports are not part of it.
    for registry in _REGISTRIES:
        registry.load()
    with _owned_by(pack):
        yield
    _LOADED.add(pack)


@contextlib.contextmanager
def _owned_by(pack: str) -> Iterator[None]:
    token = _PACK.set(pack)
    try:
        yield
    finally:
        _PACK.reset(token)


def is_loaded(pack: str) -> bool:
    """Return whether this process has imported a pack.

    Args:
        pack: its digest.
    """
    return pack in _LOADED


class Registry(Generic[T]):
    """Plug-ins of one kind, by name.

    Args:
        kind: in messages, such as "network".
        group: of the entry points through which installed packages register theirs; None: there are none.
        package: whose modules register the built-in ones; None: they are registered where they are imported.
        packs: whether packs may register them.

    Example:
        >>> losses = Registry[str]("loss")
        >>> losses.register("dice")("a function")
        'a function'
        >>> losses.find("dice"), losses.names()
        ('a function', ['dice'])
    """

    def __init__(self, kind: str, group: str | None = None, package: str | None = None, packs: bool = True) -> None:
        self._kind, self._group, self._package, self._packs = kind, group, package, packs
        self._known: dict[tuple[str, str], T] = {}
        # Threads wait for the one that loads, which may look something up meanwhile. Registering takes no lock, since a
        # thread that imports holds Python's own.
        self._lock = threading.RLock()
        self._is_loaded = self._is_loading = False
        _REGISTRIES.append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument.

        Raises:
            SpecError: a pack registers what packs may not, or the name belongs to another class or function.
        """

        def keep(plugin: T) -> T:
            if current_pack() and not self._packs:
                raise SpecError(f"a pack cannot bring {self._kind} {name!r}: install it as a package on the server too")
            owner = self._known.get((current_pack(), name))
            if owner is not None and _origin(owner) != _origin(plugin):
                raise SpecError(f"{self._kind} {name!r} is {_origin(owner)}: give {_origin(plugin)} another name")
            self._known[current_pack(), name] = plugin
            return plugin

        return keep

    def get(self, name: str, pack: str = "") -> T | None:
        """Return a plug-in by name, or None; see ``find``."""
        if not pack and ("", name) not in self._known:
            self.load()
        return self._known.get((pack, name))

    def find(self, name: str, pack: str = "") -> T:
        """Return a plug-in.

        Args:
            name: of the plug-in.
            pack: digest of the pack that registers it; empty: none.

        Raises:
            SpecError: none has that name; lists those that are known.
        """
        found = self.get(name, pack)
        if found is not None:
            return found
        if pack:
            known = ", ".join(self.names(pack)) or "none"
            raise SpecError(f"the pack {pack[:12]}… has no {self._kind} {name!r}; it has {known}")
        raise SpecError(f"unknown {self._kind} {name!r}; known: {', '.join(sorted(self.names())) or 'none'}")

    def names(self, pack: str = "") -> list[str]:
        """Return the known names in order of registration."""
        if not pack:
            self.load()
        return [name for of, name in list(self._known) if of == pack]

    def load(self) -> None:
        """Import all modules that register plug-ins.

        The built-in ones, those of installed packages' entry points, and those named in the environment. It happens
        once, but for the environment's modules; after a failure it is tried again.

        Raises:
            SpecError: a module cannot be imported.
        """
        with self._lock:
            if self._is_loading:
                return
            self._is_loading = True
            try:
                with _owned_by(""):
                    if not self._is_loaded:
                        self._import_all()
                    # A fork gets its environment after the shared modules were loaded.
                    for module in filter(None, map(str.strip, os.environ.get(MODULES_VARIABLE, "").split(","))):
                        _import(module)
                self._is_loaded = True
            finally:
                self._is_loading = False

    def _import_all(self) -> None:
        if self._package:
            path = importlib.import_module(self._package).__path__
            for found in pkgutil.iter_modules(path, f"{self._package}."):
                importlib.import_module(found.name)
        for entry in entry_points(group=self._group) if self._group else ():
            self._import(entry)

    def _import(self, entry: EntryPoint) -> None:
        try:
            entry.load()
        except Exception as error:
            raise SpecError(
                f"the package of the {self._kind} {entry.name!r} ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}. Repair or uninstall it"
            ) from error


def _origin(plugin: object) -> str:
    """Return where a plug-in, or an object's type, is defined."""
    kind = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    return f"{kind.__module__}.{kind.__qualname__}"


def read_section(registry: Registry[Any], key: str, value: Any) -> Any:
    """Read a job's section as its plug-in's settings.

    Args:
        registry: of classes with ``Settings``.
        key: the setting that names the plug-in, such as "type".
        value: as the file has it.

    Raises:
        ValueError: it names none.
        PydanticCustomError: none has that name, of type ``unknown_plugin``.
        SpecError: an installed package cannot be imported.
    """
    name = value.get(key) if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"expected settings with a {key}; known: {', '.join(sorted(registry.names()))}")
    plugin = registry.get(name)
    if plugin is None:
        found = {"name": repr(name), "known": ", ".join(sorted(registry.names()))}
        raise PydanticCustomError("unknown_plugin", "found {name}, which is not known; known: {known}", found)
    settings = getattr(plugin, "Settings", None)
    if settings is None:
        raise SpecError(f"{_origin(plugin)} has no attribute Settings, a class of settings with {key}: {name!r}")
    return settings.model_validate(value)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise SpecError(f"{MODULES_VARIABLE} names the module {module}, which cannot be imported: {error}") from None


# --- networks

# A network's output: values for each voxel, for an image as a whole, for a bag of features, for a row of a table, or
# boxes.
Kind = Literal["dense", "image", "bag", "table", "boxes"]
# The same for people.
KINDS: dict[Kind, str] = {
    "dense": "values for each voxel",
    "image": "values for an image as a whole",
    "bag": "values for a slide as a whole",
    "table": "values for a row of the table",
    "boxes": "boxes around objects",
}


@dataclass(frozen=True)
class Network:
    """A network that a job may name.

    Attributes:
        name: that a job writes.
        kind: of its output.
        config: from a ``models.NetworkRequest`` to what it is built from, as a MONAI bundle writes it: ``_target_`` and
            arguments.
        channels: the network's own, where a job may choose them.
        norm: the network's own.
        divisor: of the input's sides; 0: follows from the channels.
        dimensions: that its input can have.
        adds_loss: of its own to the task's, as ``models.mil.own_loss`` has it.
    """

    name: str
    kind: Kind
    config: Callable[[Any], dict[str, Any]]
    channels: tuple[int, ...] = ()
    norm: Literal["instance", "group", "batch"] = "group"
    divisor: int = 0
    dimensions: tuple[int, ...] = (2, 3)
    adds_loss: bool = False


NETWORKS = Registry[Network]("network", "oncofed.networks")


def register_network(
    name: str,
    kind: Kind = "dense",
    divisor: int = 1,
    dimensions: Sequence[int] = (2, 3),
) -> Callable[[Function], Function]:
    """Make a function a network that jobs may name.

    The function is called with ``in_channels``, ``out_channels``, ``spatial_dims`` and the job's ``model.arguments``.

    Args:
        name: that a job writes.
        kind: of its output; see ``models.build_network``.
        divisor: each axis of the input must be a multiple of it.
        dimensions: axes that its input can have.
    """

    def keep(function: Function) -> Function:
        target = f"{function.__module__}.{function.__qualname__}"

        def config(request: Any) -> dict[str, Any]:
            channels = {"in_channels": request.in_channels, "out_channels": request.out_channels}
            return {"_target_": target, **channels, "spatial_dims": request.dimensions}

        NETWORKS.register(name)(Network(name, kind, config, divisor=divisor, dimensions=tuple(dimensions)))
        return function

    return keep


# --- tasks, transforms of training batches, losses

# From the job's sections task (a PackedTaskSpec) and data to a Task.
TASKS = Registry[Callable[..., Any]]("task", "oncofed.tasks")
# From a batch to a batch, on the device, after oncofed's own augmentation.
TRANSFORMS = Registry[Callable[..., Any]]("transform", "oncofed.transforms")
# From a network's output in float32, and the batch, to the mean loss, a scalar.
LOSSES = Registry[Callable[..., Any]]("loss", "oncofed.losses")


def register_task(name: str) -> Callable[[Function], Function]:
    """Register a class as a task.

    A job names it in ``task: {type: pack, name: …}``. It is made with the job's sections ``task`` (a
    ``PackedTaskSpec``) and ``data``. A site lets its figures leave as it does those of oncofed's own tasks: shares from
    0 to 1, by the names of the job's classes.
    """
    return _decorator(TASKS, name)


def register_transform(name: str) -> Callable[[Function], Function]:
    """Register a function that changes training batches.

    A job names it in ``training.transforms``.
    """
    return _decorator(TRANSFORMS, name)


def register_loss(name: str) -> Callable[[Function], Function]:
    """Register a function as a loss.

    A job names it in ``training.loss``; it replaces the task's.
    """
    return _decorator(LOSSES, name)


def _decorator(registry: Registry[Callable[..., Any]], name: str) -> Callable[[Function], Function]:
    def keep(plugin: Function) -> Function:
        registry.register(name)(plugin)
        return plugin

    return keep
