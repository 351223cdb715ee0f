"""A machine reaches itself over 127.0.0.1, ::1, both, or neither."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from multiprocessing import connection

import pytest
from nvflare.fuel.f3.drivers import tcp_driver
from nvflare.private.fed.app.simulator import simulator_runner

from oncofed import loopback
from oncofed.errors import TransferError
from oncofed.flare.patches import own_loopback
from oncofed.flare.transfer.shared_port import Jobs, SharedPort
from oncofed.loopback import connect, free_port, is_loopback, loopback_addresses, require_loopback

_REPORTS = "grackle#406, flower#2760, flower#2962, NVFlare#416"


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """A machine with some of the loopback addresses alone."""

    def having(*addresses: str) -> None:
        monkeypatch.setattr(loopback, "_reaches_itself", lambda address: address in addresses)

    return having


_needs_ipv6 = pytest.mark.skipif("::1" not in loopback_addresses(), reason="this machine has no ::1")


@pytest.mark.parametrize(
    ("host", "itself"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_names_and_addresses_of_this_machine(host: str, itself: bool) -> None:
    assert is_loopback(host) is itself


@pytest.mark.wild(_REPORTS, "a free port that is taken at the machine's other loopback address")
def test_a_free_port_is_free_at_every_address() -> None:
    port = free_port()
    for address in loopback_addresses():
        assert not loopback.why_not_bound(address, port)


@_needs_ipv6
@pytest.mark.wild(_REPORTS, "localhost that is ::1 alone")
def test_the_servers_port_is_open_at_both_addresses_of_localhost() -> None:
    with SharedPort("127.0.0.1", 0, Jobs()) as shared:
        assert {host for host, _ in shared.addresses} == set(loopback_addresses())
        (port,) = {port for _, port in shared.addresses}
        for address in loopback_addresses():
            connect(address, port, 5.0).close()


@pytest.mark.wild(_REPORTS, "a server that is open to other machines by mistake")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_servers_port_of_this_machine_is_open_to_no_other(host: str) -> None:
    with SharedPort(host, 0, Jobs()) as shared:
        assert all(is_loopback(address) for address, _ in shared.addresses)


@pytest.mark.wild(_REPORTS, "localhost whose address nobody listens at")
def test_a_connection_to_this_machine_tries_its_other_addresses(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        real = socket.getaddrinfo

        def elsewhere(host, *arguments, **more):
            return real("127.0.0.99" if host == "localhost" else host, *arguments, **more)

        monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
        connect("localhost", port, 5.0).close()
        with pytest.raises(OSError, match="refused"):
            connect("127.0.0.99", loopback.free_port(), 5.0)


@pytest.mark.wild(_REPORTS, "a machine that cannot reach itself")
def test_a_machine_without_either_address_is_told_what_to_do(only, run, two_sites, job, tmp_path) -> None:
    only()
    with pytest.raises(TransferError, match=r"neither 127\.0\.0\.1 nor ::1 .* ip link set lo up"):
        require_loopback()
    sites = [word for name, folder in two_sites.items() for word in ("--site", f"{name}={folder}")]
    for backend in ("federation", "simulate"):
        told = run("job", "run", job, *sites, "--backend", backend, "--out", tmp_path / backend)
        assert told.status == 1
        assert "cannot reach itself" in told.text
        assert "folder" not in told.text.split("error:")[1]


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the patch of FLARE and Python after the test."""
    for where, name in ((socket, "getaddrinfo"), (tcp_driver, "socket"), (connection, "Listener")):
        monkeypatch.setattr(where, name, getattr(where, name))
    for name in ("address_family", "server_bind"):
        monkeypatch.setattr(tcp_driver.TcpStreamServer, name, getattr(tcp_driver.TcpStreamServer, name))
    monkeypatch.setattr(simulator_runner, "Client", simulator_runner.Client)
    monkeypatch.setattr(own_loopback._Own, "address", own_loopback._Own.address)


def test_on_a_usual_machine_nothing_is_changed(only, patched, monkeypatch) -> None:
    only("127.0.0.1", "::1")
    for named in ({"127.0.0.1"}, {"::1"}, {"127.0.0.1", "::1"}):
        monkeypatch.setattr(own_loopback, "_named", lambda named=named: named)
        assert not own_loopback.use_own_loopback()
    only()
    assert not own_loopback.use_own_loopback()
    assert tcp_driver.socket is socket


@pytest.mark.wild(_REPORTS, "no 127.0.0.1 at all, or a localhost that leads nowhere")
@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        pytest.param(("::1",), {"127.0.0.1"}, marks=_needs_ipv6),
        pytest.param(("::1",), {"::1"}, marks=_needs_ipv6),
        (("127.0.0.1",), {"::1"}),
        (("127.0.0.1",), set()),
    ],
)
def test_flare_uses_the_available_address(only, patched, monkeypatch, addresses, named) -> None:
    monkeypatch.setattr(own_loopback, "_named", lambda: named)
    only(*addresses)
    own_loopback.simulate_over_own_loopback()
    assert {info[4][0] for info in socket.getaddrinfo("localhost", 80)} == set(addresses)
    server = tcp_driver.TcpStreamServer.__new__(tcp_driver.TcpStreamServer)
    tcp_driver.ThreadingTCPServer.__init__(server, ("127.0.0.1", 0), tcp_driver.ConnectionHandler, False)
    server.server_bind()
    server.server_activate()
    try:
        assert server.server_address[0] == addresses[0]
        with tcp_driver.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(("localhost", server.server_address[1]))
    finally:
        server.server_close()
    with (
        connection.Listener(("localhost", 0)) as listener,
        simulator_runner.Client(("localhost", listener.address[1])) as client,
        listener.accept() as accepted,
    ):
        client.send("weights")
        assert accepted.recv() == "weights"


def _may_unshare() -> bool:
    tools = shutil.which("unshare") and shutil.which("ip")
    return bool(tools) and not subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode


@pytest.mark.wild(_REPORTS, "a network of its own without 127.0.0.1, or without any address")
@pytest.mark.skipif(not _may_unshare(), reason="this machine gives no network of its own")
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("ip link set lo up; ip addr del 127.0.0.1/8 dev lo", "::1"),
        ("ip link set lo up", "127.0.0.1 ::1"),
        ("true", ""),
    ],
)
def test_available_addresses_are_found_by_binding(network: str, expected: str) -> None:
    look = f"{sys.executable} -c 'from oncofed.loopback import *; print(*loopback_addresses())'"
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", f"{network}; {look}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
