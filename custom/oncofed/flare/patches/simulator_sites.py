"""Start the simulator's sites differently, and all at once.

FLARE 2.9.0 starts a program for each site with ``subprocess.Popen``: replaces ``subprocess`` in its simulator. Two of
its faults show when many sites start at the same time: replaces ``SimulatorClientRunner`` and ``get_open_ports``, see
``SiteStarter`` and ``OpenPorts``.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.private.fed.app.simulator import simulator_runner


class SiteStarter(simulator_runner.SimulatorClientRunner):
    """Keeps each thread's site apart from the others.

    FLARE's threads write their site's name into one shared dictionary, then send it: of two concurrent threads, one
    sends the other's name.
    """

    def __init__(self, *args: Any) -> None:
        self._of_thread = threading.local()
        super().__init__(*args)

    @property
    def build_ctx(self) -> dict[str, Any]:
        """What this thread's site is sent."""
        mine: dict[str, Any] = self._of_thread.__dict__.setdefault("build_ctx", dict(self._common))
        return mine

    @build_ctx.setter
    def build_ctx(self, common: dict[str, Any]) -> None:
        self._common = common


class OpenPorts:
    """Finds open ports, each only once.

    A site's process starts to listen some time after FLARE has found its port. Another site would get the same port
    meanwhile, and both would wait for ever.
    """

    def __init__(self) -> None:
        self._given: set[int] = set()
        self._lock = threading.Lock()

    def take(self, count: int) -> list[int]:
        """Return ``count`` ports."""
        with self._lock:
            new: list[int] = []
            while len(new) < count:
                new += set(get_open_ports(count - len(new))) - self._given
                self._given.update(new)
            return new


def start_sites_with(start: Callable[..., Any]) -> None:
    """Have the simulator start its sites' processes with a function.

    Args:
        start: takes what the simulator passes to ``subprocess.Popen``, and returns an object with the same methods.
    """
    simulator_runner.subprocess = SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired)
    simulator_runner.SimulatorClientRunner = SiteStarter
    simulator_runner.get_open_ports = OpenPorts().take
