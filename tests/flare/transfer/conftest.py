"""Direct connections between a server and some sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from direct_ends import CutLink, Exchange, open_exchange
from oncofed.alliance.authority import Authority
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.flare.transfer import client


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of an alliance of a server and two sites."""
    spec = AllianceSpec(sites=("north", "south"))
    return provision(spec, tmp_path_factory.mktemp("kits"), Authority.new(spec.name))


@pytest.fixture(scope="session")
def other_kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of another alliance, whose members have the same names."""
    spec = AllianceSpec(sites=("north", "south"))
    return provision(spec, tmp_path_factory.mktemp("others"), Authority.new(spec.name))


@pytest.fixture
def exchange(kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exchange]:
    """A server and its port; sites lose patience soon."""
    monkeypatch.setattr(client, "_FIRST_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(client, "_SECONDS_BETWEEN_TRIES", 0.05)
    # Deeper than a socket's address may be long.
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    folder.mkdir(parents=True)
    with open_exchange(kits, folder) as found:
        yield found


@pytest.fixture
def cut_link(exchange: Exchange) -> Iterator[Callable[..., CutLink]]:
    """Make proxies before the server."""
    made: list[CutLink] = []

    def make(*after: int, up: bool = False) -> CutLink:
        made.append(CutLink(exchange.port, list(after), up))
        return made[-1]

    yield make
    for one in made:
        one.close()
