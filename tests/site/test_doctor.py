"""``oncofed site doctor`` finds faults, and gives advice."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import Outcome
from oncofed.alliance.authority import fingerprint
from oncofed.alliance.facts import read_facts
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.audit import AuditLog
from oncofed.job.spec import JobSpec
from oncofed.site import doctor
from oncofed.site.check import Check
from oncofed.site.doctor import examine


def _found(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@contextmanager
def _server(kits: dict[str, Path], certificates: Path | None = None, clock: float = 0.0) -> Iterator[None]:
    """Answer as the server does.

    Mutual TLS, then a refusal with the server's time.
    """
    startup = (certificates or kits["localhost"]) / "startup"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    context.load_verify_locations(startup / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", read_facts(kits["localhost"]).port))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1000)
                    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=clock), usegmt=True)
                    secured.sendall(f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\n\r\n".encode())
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_ready_site_passes_all_checks(kits: dict[str, Path], site: Path) -> None:
    settings = kits["east"] / "site.yaml"
    settings.write_text(settings.read_text().replace("datasets: {}", f"datasets: {{balls: {site}}}"))
    with _server(kits):
        checks = examine(kits["east"])
    assert {check.name for check in checks if check.state == "fail"} == set()
    found = _found(checks)
    assert "signed by the alliance" in found["kit"].found
    assert "proves to be of this alliance, TLSv1.3" in found["server"].found
    assert found["clock"].state == found["datasets"].state == found["certificate"].state == "ok"
    certificate = read_facts(kits["east"]).certificate(kits["east"])
    assert found["certificate"].found.endswith(f"; its fingerprint is {fingerprint(certificate)}")
    assert all(check.advice for check in checks if check.state != "ok")


def test_datasets_are_checked_for_jobs_and_identifiers(kits: dict[str, Path], site: Path, spec: JobSpec) -> None:
    plans = {"balls": spec.plan(), "other": spec.changed({"data": {"dataset": "livers"}}).plan()}
    (kits["east"] / "site.yaml").write_text(f"datasets: {{balls: {site}}}\n")
    found = _found(examine(kits["east"], jobs=plans))
    assert (found["job balls"].state, "balls fits: " in found["job balls"].found) == ("ok", True)
    assert found["job other"].found == "site.yaml names no dataset livers"
    assert found["patients in balls"].state == "ok"

    (site / "imagesTr" / "case_0.nii.gz").rename(site / "imagesTr" / "Doe^Jane.nii.gz")
    manifest = site / "dataset.json"
    manifest.write_text(manifest.read_text().replace("imagesTr/case_0", "imagesTr/Doe^Jane"))
    found = _found(examine(kits["east"], jobs={"balls": spec.changed({"data": {"minimum_cases": 99}}).plan()}))
    assert (found["job balls"].state, "at least 99" in found["job balls"].found) == ("fail", True)
    phi = found["patients in balls"]
    assert (phi.state, "1 findings" in phi.found, "name in path" in phi.found) == ("warn", True, True)
    assert "Doe" not in phi.found


def _evil(folder: Path) -> Path:
    """Return another alliance's kits for the same names."""
    return provision(AllianceSpec(name="evil", sites=("east",)), folder / "evil")


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a changed script": (
        lambda kit: (kit / "startup" / "sub_start.sh").write_text("evil"),
        "kit",
        "sub_start.sh was changed",
    ),
    "a file too many": (lambda kit: (kit / "startup" / "more.sh").touch(), "kit", "more.sh does not belong"),
    "no signature": (lambda kit: (kit / "SHA256SUMS.sig").unlink(), "kit", "cannot be read"),
    "no kit": (lambda kit: (kit / "kit.json").unlink(), "kit", "holds no kit"),
    "an older kit": (lambda kit: (kit / "kit.json").write_text('{"schema": 0}'), "kit", "another version of oncofed"),
    "an open key": (lambda kit: (kit / "startup" / "client.key").chmod(0o644), "private key", "startup/client.key"),
    "other versions": (
        lambda kit: (kit / "constraints.txt").write_text("monai==0.1\nnumpy==1.0\n"),
        "packages",
        "monai 1.6.1, expected 0.1",
    ),
    "a typo in the settings": (
        lambda kit: (kit / "site.yaml").write_text("schema: 1\ngpu: [0]\n"),
        "site.yaml",
        ":2: unknown setting gpu",
    ),
    "data that is not there": (
        lambda kit: (kit / "site.yaml").write_text("datasets: {balls: /nowhere}\n"),
        "datasets",
        "balls: no dataset.json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_kit_is_found(kits: dict[str, Path], fault: str) -> None:
    plant, name, words = FAULTS[fault]
    plant(kits["east"])
    check = _found(examine(kits["east"]))[name]
    assert check.state == "fail"
    assert words in check.found
    assert check.advice


def test_an_expired_certificate_is_found(kits: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_facts(kits["east"])
    for days, state, words in ((345, "warn", "days)"), (400, "fail", "expired on"), (-400, "fail", "holds from")):
        then = datetime.now(timezone.utc) + timedelta(days=days)
        monkeypatch.setattr(doctor, "datetime", SimpleNamespace(now=lambda zone, then=then: then))
        (check,) = doctor._certificate(kits["east"], facts)
        assert (check.state, words in check.found) == (state, True), check


def test_the_certificate_of_an_older_release_is_told(kits: dict[str, Path]) -> None:
    """As a person's, it does not say that it is a site's."""
    shutil.copy(kits["eng@x.org"] / "startup/client.crt", kits["east"] / "startup/client.crt")
    for name, state in (("east", "warn"), ("west", "ok"), ("eng@x.org", "ok"), ("localhost", "ok")):
        (check,) = doctor._certificate(kits[name], read_facts(kits[name]))
        assert (check.state, "secure aggregation" in check.found) == (state, state == "warn"), name


def test_the_route_and_clock_are_checked(kits: dict[str, Path], tmp_path: Path) -> None:
    checks = _found(examine(kits["east"]))
    assert (checks["server"].state, "refused" in checks["server"].found) == ("fail", True)
    assert "firewall" in checks["server"].advice
    with _server(kits, clock=-600):
        checks = _found(examine(kits["east"]))
    assert checks["clock"].state == "fail"
    # To the second, and the request takes a while on a busy machine.
    assert re.match(r"(599|6\d\d) s ahead of the server's", checks["clock"].found)
    with _server(kits, _evil(tmp_path) / "localhost"):
        checks = _found(examine(kits["east"]))
    assert (checks["server"].state, "not of this alliance" in checks["server"].found) == ("fail", True)


def test_a_site_of_another_alliance_is_refused(kits: dict[str, Path], tmp_path: Path) -> None:
    other = _evil(tmp_path) / "east" / "startup"
    for name in ("client.crt", "client.key"):
        shutil.copy(other / name, kits["east"] / "startup" / name)
    with _server(kits):
        checks = _found(examine(kits["east"]))
    assert "not of this alliance" in checks["certificate"].found
    assert checks["kit"].state == checks["server"].state == "fail"


def test_an_unknown_host_is_found() -> None:
    checks = _found(examine(None, ("no-such-host.invalid", 8002)))
    assert checks["name"].state == "fail"
    assert "DNS" in checks["name"].advice
    assert "kit" not in checks


def test_a_taken_port_is_found(kits: dict[str, Path]) -> None:
    with socket.create_server(("", read_facts(kits["localhost"]).port)):
        assert _found(examine(kits["localhost"]))["port"].state == "fail"
    assert _found(examine(kits["localhost"]))["port"].state == "ok"


def test_a_changed_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    (installed / "monai").mkdir(parents=True)
    (installed / "monai" / "nets.py").write_text("import os")
    (installed / "monai-1.6.1.dist-info").mkdir()
    (installed / "monai-1.6.1.dist-info" / "METADATA").write_text("Name: monai\nVersion: 1.6.1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"import os").digest()).rstrip(b"=").decode()
    record = installed / "monai-1.6.1.dist-info" / "RECORD"
    record.write_text(f"monai/nets.py,sha256={digest},9\nmonai/py.typed,,\n")
    monkeypatch.syspath_prepend(str(installed))
    assert doctor._changed_since_installed("monai") is None
    (installed / "monai" / "nets.py").write_text("import os, socket")
    (check,) = [check for check in doctor._packages(None) if check.name == "installed files"]
    assert (check.state, "monai/nets.py of monai" in check.found) == ("fail", True)
    assert "pip install --force-reinstall monai" in check.advice


def test_the_command_prints_and_exits(kits: dict[str, Path], run: Callable[..., Outcome]) -> None:
    done = run("site", "doctor", "--folder", kits["east"], "--json")
    assert done.status == 1  # nobody answers at the server's port
    checks = json.loads(done.output)
    assert {check["state"] for check in checks} <= {"ok", "warn", "fail"}
    shown = run("site", "doctor", "--folder", kits["east"])
    assert shown.status == 1
    assert "fail server" in shown.text
    assert run("site", "doctor", "--server", "nonsense").status == 2


def test_without_a_kit_only_the_machine_is_checked(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("site", "doctor", "--json")
    found = {check["name"]: check for check in json.loads(outcome.output)}
    assert {"python", "installed files", "gpu", "disk", "kit"} <= set(found)
    assert found["kit"]["state"] == "warn"
    assert "--server" in found["kit"]["advice"]


def test_a_missing_filter_or_changed_audit_log_is_found(kits: dict[str, Path]) -> None:
    found = _found(examine(kits["east"]))
    assert (found["policy"].state, found["audit log"].state) == ("ok", "ok")
    log = AuditLog(kits["east"])
    log.write("policy changed", version=2)
    log.path.write_text(log.path.read_text().replace('"version": 2', '"version": 1'))
    privacy = kits["east"] / "local" / "privacy.json"
    privacy.write_text(json.dumps({**json.loads(privacy.read_text()), "components": []}))
    found = _found(examine(kits["east"]))
    assert found["policy"].found == "nothing looks at what leaves this site"
    assert "line 1: it was changed" in found["audit log"].found
    (kits["east"] / "local" / "policy.json").write_text("{")
    assert "nothing runs there" in _found(examine(kits["east"]))["policy"].found
    assert "policy" not in _found(examine(kits["localhost"]))
