"""Both ends of direct connections, with real kits' certificates."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nvflare.fuel.f3.drivers.driver_params import DriverParams

from fault_lab import Link
from oncofed.flare.transfer.client import TransferClient
from oncofed.flare.transfer.protocol import tls_context
from oncofed.flare.transfer.server import TransferServer
from oncofed.flare.transfer.shared_port import Jobs, SharedPort

JOB = "5f2b6a4e-2c1d-4a9e-9a53-0d5a3a3f1c10"
ORIGIN = f"server.{JOB}"
LARGEST = 1 << 24


def credentials(kit: Path, kind: str = "client") -> dict[str, str]:
    """Return a kit's certificate and key, as in FLARE's cells."""
    startup = kit / "startup"
    server = kind == "server"
    return {
        DriverParams.CA_CERT.value: str(startup / "rootCA.pem"),
        (DriverParams.SERVER_CERT if server else DriverParams.CLIENT_CERT).value: str(startup / f"{kind}.crt"),
        (DriverParams.SERVER_KEY if server else DriverParams.CLIENT_KEY).value: str(startup / f"{kind}.key"),
    }


@dataclass
class Exchange:
    """A server that takes direct connections for one job.

    Attributes:
        kits: of its alliance.
        port: on loopback.
        jobs: where its main process finds the job.
        server: the job's own end.
        participants: sites that take part.
        others: first bytes of each of FLARE's connections to the same port.
    """

    kits: Path
    port: int
    jobs: Jobs
    server: TransferServer
    participants: set[str]
    others: list[bytes] = field(default_factory=list)

    def client(
        self, name: str = "north", kits: Path | None = None, port: int = 0, server: str = "localhost"
    ) -> TransferClient:
        """Return a member's end."""
        kit = (kits or self.kits) / name
        context = tls_context(credentials(kit), JOB, False)
        return TransferClient(("localhost", port or self.port), context, server=server, job_id=JOB)


@contextlib.contextmanager
def open_exchange(kits: Path, folder: Path) -> Iterator[Exchange]:
    """Run a server and its port until the block ends."""
    jobs, participants = Jobs({JOB: folder}), {"north", "south"}
    shared = SharedPort("127.0.0.1", 0, jobs)
    context = tls_context(credentials(kits / "localhost", "server"), JOB, True)
    server = TransferServer(folder, context, is_participant=participants.__contains__, max_bytes=LARGEST)
    exchange = Exchange(kits, shared.addresses[0][1], jobs, server, participants)
    over = threading.Event()
    thread = threading.Thread(target=_flare, args=(shared, exchange.others, over))
    thread.start()
    try:
        yield exchange
    finally:
        over.set()
        thread.join()
        server.close()
        shared.close()


def _flare(shared: SharedPort, others: list[bytes], over: threading.Event) -> None:
    """Accept connections as asyncio does for FLARE's driver."""
    shared.setblocking(False)
    while not over.is_set():
        if not select.select([shared], [], [], 0.05)[0]:
            continue
        with contextlib.suppress(BlockingIOError):
            connection, _ = shared.accept()
            with connection:
                connection.settimeout(2.0)
                others.append(connection.recv(1 << 14))


class CutLink(Link):
    """A link that cuts its first connections.

    Args:
        port: that it leads to.
        after: bytes in one direction, for each connection that is cut; later ones are left alone.
        up: whether bytes to the server count, or from it.
    """

    def __init__(self, port: int, after: list[int], up: bool) -> None:
        self._after, self._up = list(after), up
        self._left: dict[socket.socket, float] = {}
        super().__init__(port)

    @property
    def connections(self) -> int:
        """Number of connections that carried bytes in that direction."""
        return len(self._left)

    def _ends_after(self, near: socket.socket, count: int, up: bool) -> bool:
        if up != self._up:
            return False
        if near not in self._left:
            self._left[near] = self._after.pop(0) if self._after else math.inf
        self._left[near] -= count
        return self._left[near] <= 0
