"""Whom a site takes for a peer in secure aggregation."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from nvflare.apis.fl_constant import FLContextKey
from nvflare.lighter.utils import generate_keys, serialize_pri_key

from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec, RelaySpec
from oncofed.errors import PolicyError
from oncofed.flare.secure_aggregation import identity_of, verify_for_server
from oncofed.flare.security.admission import admit_job
from oncofed.privacy.secure_aggregation import Participant, ProtocolError, Rules
from oncofed.signing import is_signed_by, signature_by


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kits of an alliance with a relay; ``renewed`` is a second one of west's, whose private key is its own."""
    relay = RelaySpec(port=8003, sites=("west",))
    spec = AllianceSpec(name="tiny", sites=("east", "west"), relays={"relay": relay})
    authority = Authority.new(spec.name)
    folder = provision(spec, tmp_path_factory.mktemp("identities"), authority)
    for kit in folder.iterdir():
        add_contents(kit, spec, kit.name, authority)
    made = {kit.name: kit for kit in folder.iterdir()}
    key, public = generate_keys()
    again = provision(spec, tmp_path_factory.mktemp("again"), authority, ["west"], {"west": public}) / "west"
    (again / "startup/client.key").write_bytes(serialize_pri_key(key))
    return {**made, "renewed": again}


def _context(kit: Path) -> Any:
    workspace = SimpleNamespace(
        get_root_dir=lambda: str(kit),
        get_startup_kit_dir=lambda: str(kit / "startup"),
        get_site_config_dir=lambda: str(kit / "local"),
    )
    props: dict[str, Any] = {FLContextKey.WORKSPACE_OBJECT: workspace}

    def set_prop(name: str, value: Any, **kinds: bool) -> None:
        assert kinds == {"private": True, "sticky": True}
        props[name] = value

    return SimpleNamespace(get_identity_name=lambda: kit.name, get_prop=props.get, set_prop=set_prop)


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


@pytest.mark.parametrize("kit", ["west", "renewed"])
def test_a_site_knows_its_peers_by_the_root_of_its_kit(kits: dict[str, Path], kit: str) -> None:
    verify = identity_of(_context(kits["east"])).verify
    advertisement = _advertise("west", kits[kit] / "startup/client.key", kits[kit] / "startup/client.crt")
    known = verify(advertisement)
    assert known.is_signed(advertisement.signed_part(), advertisement.signature)
    assert len(known.fingerprint.split(":")) == 32


def test_a_site_whose_kit_is_renewed_signs_on_with_the_key_of_its_certificate(
    kits: dict[str, Path], tmp_path: Path
) -> None:
    kit = shutil.copytree(kits["west"], tmp_path / "west")
    identity = identity_of(_context(kit))
    (kit / "startup/client.key").write_bytes((kits["renewed"] / "startup/client.key").read_bytes())
    certificate = x509.load_pem_x509_certificate(identity.certificates)
    assert is_signed_by(certificate, b"data", identity.sign(b"data"))


@pytest.mark.attack(
    "a server, a relay or a person that joins a sum as one more site",
    by="the sites: their certificates are not of a site",
    logged="the site's own log",
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("localhost", "server"),
        ("relay", "client"),
        ("relay", "server"),
        ("engineer@oncofed.org", "client"),
        ("admin@oncofed.org", "client"),
    ],
)
@pytest.mark.parametrize("by", ["a site", "the server"])
def test_only_sites_are_peers(kits: dict[str, Path], name: str, kind: str, by: str) -> None:
    site = by == "a site"
    verify = identity_of(_context(kits["east"])).verify if site else verify_for_server(_context(kits["localhost"]))
    with pytest.raises(ProtocolError, match="not as a site"):
        verify(_advertise(name, kits[name] / f"startup/{kind}.key", kits[name] / f"startup/{kind}.crt"))


def test_the_kit_of_an_older_release_is_refused_before_training(kits: dict[str, Path], tmp_path: Path) -> None:
    """Older releases certified sites as FLARE certifies relays."""
    old = Path(shutil.copytree(kits["east"], tmp_path / "east"))
    shutil.copy(kits["relay"] / "startup/client.crt", old / "startup/client.crt")
    with pytest.raises(PolicyError, match="oncofed alliance renew, then oncofed site renew"):
        identity_of(_context(old))


@pytest.mark.attack("a site that its missing policy makes a simulation", by="the site's kit", logged="site's refusal")
def test_a_kit_without_a_policy_is_no_simulation(kits: dict[str, Path], tmp_path: Path) -> None:
    kit = Path(shutil.copytree(kits["east"], tmp_path / "east"))
    (kit / "local/policy.json").unlink()
    with pytest.raises(PolicyError, match="no policy"):
        admit_job(_context(kit), "balls")
    identity = identity_of(_context(kit))
    assert identity.certificates == (kit / "startup/client.crt").read_bytes()
    relay = kits["relay"] / "startup"
    with pytest.raises(ProtocolError):
        identity.verify(_advertise("relay", relay / "client.key", relay / "client.crt"))


def test_a_simulation_has_no_kit_and_no_policy(kits: dict[str, Path], tmp_path: Path) -> None:
    for name in ("startup", "local"):
        (tmp_path / name).mkdir()
    assert admit_job(_context(tmp_path), "balls") is None
    identity = identity_of(_context(tmp_path))
    assert identity.verify is verify_for_server(_context(tmp_path))
    relay = kits["relay"] / "startup"
    assert identity.verify(_advertise("relay", relay / "client.key", relay / "client.crt")).fingerprint == ""
