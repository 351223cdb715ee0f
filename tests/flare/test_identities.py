"""Whom a site takes for a peer in secure aggregation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey

from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.flare.secure_aggregation import identity_of
from oncofed.privacy.secure_aggregation import Participant, ProtocolError, Rules
from oncofed.signing import signature_by


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    spec = AllianceSpec(name="tiny", sites=("east", "west"))
    authority = Authority.new(spec.name)
    folder = provision(spec, tmp_path_factory.mktemp("identities"), authority)
    for kit in folder.iterdir():
        add_contents(kit, spec, kit.name, authority)
    return {kit.name: kit for kit in folder.iterdir()}


def _context(kit: Path) -> Any:
    workspace = SimpleNamespace(
        get_root_dir=lambda: str(kit),
        get_startup_kit_dir=lambda: str(kit / "startup"),
        get_site_config_dir=lambda: str(kit / "local"),
    )
    props = {FLContextKey.WORKSPACE_OBJECT: workspace}
    return SimpleNamespace(get_identity_name=lambda: kit.name, get_prop=lambda name: props[name])


def _advertise(name: str, key: Path, certificate: Path) -> Any:
    participant = Participant(
        "job",
        "plan",
        name,
        lambda data: signature_by(key, data),
        lambda advertisement: pytest.fail("nobody is verified here"),
        Rules(),
        certificates=certificate.read_bytes(),
    )
    return participant.advertise()


def test_a_site_knows_its_peers_by_the_root_of_its_kit(kits: dict[str, Path]) -> None:
    verify = identity_of(_context(kits["east"]), simulated=False).verify
    advertisement = _advertise("west", kits["west"] / "startup/client.key", kits["west"] / "startup/client.crt")
    known = verify(advertisement)
    assert known.is_signed(advertisement.signed_part(), advertisement.signature)
    assert len(known.fingerprint.split(":")) == 32


@pytest.mark.attack(
    "a server, or a person, that joins a sum as one more site",
    by="the sites: their certificates are not of a site",
    logged="the site's own log",
)
@pytest.mark.parametrize("who", ["server", "person"])
def test_neither_the_server_nor_a_person_is_a_peer(kits: dict[str, Path], who: str) -> None:
    verify = identity_of(_context(kits["east"]), simulated=False).verify
    name = next(n for n in kits if ("@" in n if who == "person" else (kits[n] / "startup/server.crt").is_file()))
    kind = "client" if who == "person" else "server"
    with pytest.raises(ProtocolError, match="not as a site"):
        verify(_advertise(name, kits[name] / f"startup/{kind}.key", kits[name] / f"startup/{kind}.crt"))
