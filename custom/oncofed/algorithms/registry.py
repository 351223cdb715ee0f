"""The known algorithms, built-in and from installed packages.

Built-in ones have a module each in this package. Another package registers its algorithms by an entry point of the
group ``oncofed.algorithms`` that names a module with a class under ``register_algorithm``. Server and sites need the
package; a pack cannot bring one, since the server runs no packs.
"""

from __future__ import annotations

from typing import Any

from oncofed.algorithms.base import Algorithm
from oncofed.plugins import Registry

ALGORITHMS: Registry[type[Algorithm[Any]]] = Registry(
    "strategy", package="oncofed.algorithms", group="oncofed.algorithms", packs=False
)

register_algorithm = ALGORITHMS.register


def algorithm_class(name: str) -> type[Algorithm[Any]]:
    """Return an algorithm's class.

    Raises:
        SpecError: no algorithm has that name.
    """
    return ALGORITHMS.find(name)


def algorithm_names() -> list[str]:
    """Return the names of all algorithms, sorted."""
    return sorted(ALGORITHMS.names())
