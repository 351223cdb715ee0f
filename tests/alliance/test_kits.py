from __future__ import annotations

import json
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from oncofed.alliance.kits import APPROVED_CLASSES, OUTBOUND_FILTER, provision
from oncofed.alliance.spec import AllianceSpec


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provision(AllianceSpec(sites=("east", "west"), port=8123), tmp_path_factory.mktemp("alliance"))


def test_everybody_gets_a_kit(kits: Path) -> None:
    names = {kit.name for kit in kits.iterdir()}
    assert names == {"localhost", "east", "west", "admin@oncofed.org", "engineer@oncofed.org"}
    for name in ("localhost", "east"):
        assert (kits / name / "startup" / "start.sh").is_file()


@pytest.mark.parametrize("participant", ["localhost", "east", "west"])
def test_no_role_may_bring_code(kits: Path, participant: str) -> None:
    authorization = json.loads((kits / participant / "local" / "authorization.json").read_text())
    for role, rights in authorization["permissions"].items():
        assert isinstance(rights, dict)
        assert rights.get("byoc", "none") == "none", role
    assert authorization["permissions"]["lead"]["submit_job"] == "any"
    assert authorization["permissions"]["project_admin"]["shell_commands"] == "any"


@pytest.mark.parametrize("participant", ["localhost", "east"])
def test_kits_approve_classes_and_keep_logs_local(kits: Path, participant: str) -> None:
    resources = json.loads((kits / participant / "local" / "resources.json").read_text())
    assert resources["class_allow_list"] == [*APPROVED_CLASSES, OUTBOUND_FILTER]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False
    assert not [c for c in resources["components"] if "log" in c["path"].lower()]


@pytest.mark.parametrize("participant", ["localhost", "east"])
def test_a_main_process_builds_its_components_without_torch(kits: Path, participant: str) -> None:
    # It waits for jobs next to other processes that wait: 0.4 GB and seconds of a processor, each.
    resources = json.loads((kits / participant / "local" / "resources.json").read_text())
    modules = sorted(
        {c["path"].rpartition(".")[0] for c in resources["components"] if c["path"].startswith("oncofed.")}
    )
    assert modules
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_connections_are_mutually_authenticated(kits: Path) -> None:
    server = json.loads((kits / "localhost" / "startup" / "fed_server.json").read_text())["servers"][0]
    assert server["connection_security"] == "mtls"
    assert server["service"]["target"] == "localhost:8123"


def test_only_the_owner_can_read_a_key(kits: Path) -> None:
    secrets = list(kits.rglob("*.key"))
    assert len(secrets) == 5
    assert not any("PRIVATE KEY" in path.read_text() for path in kits.parent.rglob("*.json"))
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(kits.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "certificate", ["localhost/startup/server.crt", "east/startup/client.crt", "east/startup/rootCA.pem"]
)
def test_certificates_are_valid_for_slow_clocks(kits: Path, certificate: str) -> None:
    found = x509.load_pem_x509_certificate((kits / certificate).read_bytes())
    now = datetime.now(timezone.utc)
    assert found.not_valid_before_utc < now - timedelta(hours=23)
    assert found.not_valid_after_utc > now + timedelta(days=350)
