"""Many sites behind relays, each a real process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from oncofed.alliance.kits import provision
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.spec import AllianceSpec, RelaySpec
from oncofed.job.backends import FederatedJob
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.rounds.events import EVENTS_FILE, EventReader, Finished, RoundEnded
from synthetic import make_site


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_four_sites_behind_two_relays_train_together(spec: JobSpec, tmp_path: Path) -> None:
    sites = [f"site-{number}" for number in range(1, 5)]
    datasets = {site: {"balls": make_site(tmp_path / site, 5, seed)} for seed, site in enumerate(sites)}
    relays = {
        "relay-west": RelaySpec(port=free_port(), sites=tuple(sites[:2])),
        "relay-east": RelaySpec(port=free_port(), sites=tuple(sites[2:])),
    }
    alliance_spec = AllianceSpec(sites=tuple(sites), port=free_port(), relays=relays)
    # So large that sites which reach the server themselves would open direct connections for it.
    spec = spec.changed({"model": {"network": "unet", "channels": [32, 64, 128], "residual_units": 2}})
    with LocalAlliance(alliance_spec, tmp_path / "a", datasets, tmp_path / "logs", tmp_path / "tmp") as alliance:
        alliance.wait_registered()
        job = FederatedJob(alliance, export_job(spec, tmp_path / "job"), len(sites))
        events = list(EventReader(job.fetch() / EVENTS_FILE).read())
        server = (tmp_path / "logs" / "server.txt").read_text()
    rounds = [event for event in events if isinstance(event, RoundEnded)]
    assert [(event.participation or {})["in_time"] for event in rounds] == [sites, sites]
    assert isinstance(events[-1], Finished)
    assert sorted(events[-1].test) == sites
    # No site opened a direct connection to the server, or tried to.
    assert not any("MB directly" in (tmp_path / "logs" / f"{site}.txt").read_text() for site in sites)
    assert not any(f"SSL {site}]" in server for site in sites)
    assert all(f"SSL {relay}]" in server for relay in relays)


def test_relays_authenticate_mutually_and_carry_their_sites(tmp_path: Path) -> None:
    relay = RelaySpec(host="relay.example.org", port=8003, sites=("west",))
    kits = provision(AllianceSpec(sites=("east", "west"), port=8002, relays={"relay": relay}), tmp_path / "kits")
    to_server = json.loads((kits / "relay" / "startup" / "fed_relay.json").read_text())["connect_to"]
    to_sites = json.loads((kits / "relay" / "local" / "comm_config.json").read_text())["internal"]["resources"]
    assert to_server["connection_security"] == to_sites["connection_security"] == "mtls"
    found = json.loads(next((kits / "west").rglob("relay__resources.json")).read_text())
    assert found["relay_config"]["address"] == "relay.example.org:8003"
    assert found["relay_config"]["connection_security"] == "mtls"
    assert not list((kits / "east").rglob("relay__resources.json"))


def test_a_site_has_one_route_to_the_server() -> None:
    both = {name: RelaySpec(port=port, sites=("west",)) for name, port in (("a", 8003), ("b", 8004))}
    with pytest.raises(ValidationError, match="west: a site reaches the server by one way"):
        AllianceSpec(sites=("west",), relays=both)
    with pytest.raises(ValidationError, match=r"relays\.a\.sites: found nowhere, which is no site"):
        AllianceSpec(sites=("west",), relays={"a": RelaySpec(port=8003, sites=("nowhere",))})
