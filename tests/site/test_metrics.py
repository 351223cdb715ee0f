"""A machine's metrics, and what a real Prometheus makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import command, press_ctrl_c, started, wait_for
from oncofed.audit import ADMITTED, ANCHORED, HELD_BACK, LEFT, REFUSED, AuditLog
from oncofed.client.status_file import StatusFile
from oncofed.errors import AllianceError, FederationError
from oncofed.flare.folders import STATE_FOLDER
from oncofed.gpus import GPU
from oncofed.loopback import free_port
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import LEDGER_FILE, Charge, Ledger, Limits
from oncofed.privacy.policy import POLICY_FILE, LeavesSpec, Policy, PrivacyLimits
from oncofed.rounds.events import EVENTS_FILE, EventLog, Lost, RoundEnded, Started
from oncofed.site.service import ServiceState

prometheus_client = pytest.importorskip("prometheus_client", reason="Prometheus' client is not installed")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402 - it may be missing

from oncofed.site import metrics  # noqa: E402 - it needs that client
from oncofed.site.metrics import metrics_server, metrics_text  # noqa: E402

MONITORING = Path(__file__).parents[2] / "provisioning" / "deploy" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus: apt-get install prometheus"
)


def _read(text: str) -> dict[str, float]:
    """Return each sample by its name and labels' values."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_sites_state_job_and_audit_log_are_told(kits: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    site, log = kits["east"], AuditLog(kits["east"])
    gpu = GPU(0, "H100", "580", 80.0, 60.0, 25, "GPU-1")
    monkeypatch.setattr(metrics, "read_gpus", lambda environment: [gpu])
    monkeypatch.setattr(metrics, "runs_job", lambda folder: True)
    monkeypatch.setattr(metrics, "service_state", lambda folder: ServiceState(True, 1, 100.0, 2))
    log.write(ADMITTED, "eng@x.org", job="j1")
    log.write(LEFT, "eng@x.org", job="j1", bytes=1000)
    log.write(LEFT, "eng@x.org", job="j1", bytes=500)
    log.write(HELD_BACK, "eng@x.org", job="j1")
    log.write(REFUSED, "eng@x.org", job="j2", rule="networks")
    StatusFile(site, "j1").now(phase="training", round=3, step=40)
    found = _read(metrics_text(site))
    facts = json.loads((site / "kit.json").read_text())
    (info,) = [name.split() for name in found if name.startswith("oncofed_info")]
    assert set(info[1:]) == {"tiny", "east", "site", facts["oncofed"], facts["nvflare"]}
    told = {
        "oncofed_running": 1,
        "oncofed_restarts": 2,
        "oncofed_started_timestamp_seconds": 100,
        "oncofed_connected": 0,
        "oncofed_job_running": 1,
        "oncofed_job_phase training": 1,
        "oncofed_job_round": 3,
        "oncofed_job_step": 40,
        "oncofed_left_bytes_total": 1500,
        "oncofed_left_messages_total": 2,
        "oncofed_held_back_messages_total": 1,
        "oncofed_jobs_admitted_total": 1,
        "oncofed_jobs_refused_total networks": 1,
        "oncofed_gpu_utilization_ratio 0 H100": 0.25,
        "oncofed_gpu_memory_used_bytes 0 H100": 20 * 2**30,
    }
    assert told.items() <= found.items()
    assert {value for name, value in found.items() if name.startswith("oncofed_unreadable")} == {0}
    assert found["oncofed_disk_free_bytes"] > 0
    assert found["oncofed_certificate_expiry_timestamp_seconds"] > 1.7e9


def test_a_servers_queue_rounds_and_anchors_are_told(kits: dict[str, Path]) -> None:
    server = kits["localhost"]
    for number, status in (("a", "RUNNING"), ("b", "SUBMITTED"), ("c", "FINISHED:COMPLETED")):
        folder = server / "storage" / "jobs" / number
        folder.mkdir(parents=True)
        (folder / "meta").write_text(json.dumps({"name": "brain", "status": status}))
    (server / "storage" / "jobs" / "d").mkdir()
    (server / "storage" / "jobs" / "d" / "meta").write_text('{"name": "br')
    folder = server / STATE_FOLDER / "a"
    folder.mkdir(parents=True)
    record = EventLog(folder / EVENTS_FILE)
    record.write(Started(sites=["east", "west"], rounds=7, steps_per_round=4))
    record.write(Lost(site="west", reason="its process ended"))
    record.write(RoundEnded(round=2, seconds=5.0, slowest_site_s=4.5, losses={}))
    AuditLog(server).write(ANCHORED, "east", anchor="1:0")
    found = _read(metrics_text(server))
    told = {
        "oncofed_server_jobs RUNNING": 1,
        "oncofed_server_jobs SUBMITTED": 1,
        "oncofed_server_jobs FINISHED:COMPLETED": 1,
        "oncofed_server_job_round a brain": 2,
        "oncofed_server_job_rounds a brain": 7,
        "oncofed_server_job_round_seconds a brain": 5,
        "oncofed_server_job_slowest_site_seconds a brain": 4.5,
        "oncofed_server_job_incidents a brain": 1,
    }
    assert told.items() <= found.items()
    assert found["oncofed_audit_anchor_timestamp_seconds east"] > 1.7e9
    assert "oncofed_connected" not in found


@pytest.mark.parametrize("line", ["[]", "null", '{"time": 5, "what": []}', '{"time": "2026-01-01T00:00:00Z"}'])
def test_an_odd_line_of_the_log_is_skipped(kits: dict[str, Path], line: str) -> None:
    log = AuditLog(kits["east"])
    log.write(LEFT, "eng@x.org", job="j1", bytes=10)
    with log.path.open("a") as file:
        file.write(line + "\n")
    found = _read(metrics_text(kits["east"]))
    assert (found["oncofed_unreadable audit"], found["oncofed_left_bytes_total"]) == (0, 10)


@pytest.mark.parametrize("meta", ["null", "[]", '"RUNNING"'])
def test_an_odd_description_of_a_job_is_skipped(kits: dict[str, Path], meta: str) -> None:
    for number, text in (("a", meta), ("b", '{"name": "brain", "status": "SUBMITTED"}')):
        folder = kits["localhost"] / "storage" / "jobs" / number
        folder.mkdir(parents=True)
        (folder / "meta").write_text(text)
    found = _read(metrics_text(kits["localhost"]))
    assert (found["oncofed_unreadable server"], found["oncofed_server_jobs SUBMITTED"]) == (0, 1)


def test_an_odd_report_of_a_job_leaves_the_rest(kits: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "runs_job", lambda folder: True)
    StatusFile(kits["east"], "j1").now(phase="training")
    (kits["east"] / "run" / "job.json").write_text("null")
    found = _read(metrics_text(kits["east"]))
    assert (found["oncofed_unreadable job"], found["oncofed_unreadable service"]) == (1, 0)


def _limit(site: Path, epsilon: float) -> None:
    known = Policy(leaves=LeavesSpec(differential_privacy=PrivacyLimits(largest_epsilon_a_patient=epsilon)))
    (site / "local" / POLICY_FILE).write_text(known.model_dump_json(by_alias=True))


def test_the_budget_follows_the_ledger_and_the_policy(kits: dict[str, Path]) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    site = kits["east"]
    _limit(site, 8.0)
    charge = Charge("first", "salt", "digest", Event(1.2, 0.08, 300), frozenset(map(str, range(24))))
    Ledger(site).charge(charge, Limits(1e-5), "eng@x.org")
    with metrics_server(site, free_port()) as address:

        def found() -> dict[str, float]:
            with urllib.request.urlopen(address, timeout=60) as answer:
                told = _read(answer.read().decode())
            return {name: value for name, value in told.items() if name.startswith("oncofed_budget")}

        assert (found()["oncofed_budget_charges"], found()["oncofed_budget_limit_epsilon"]) == (1, 8)
        _limit(site, 9.0)
        assert found()["oncofed_budget_limit_epsilon"] == 9
        (site / LEDGER_FILE).write_text("")
        assert found() == {}


def test_a_port_that_is_not_taken_but_forbidden_is_told_so(
    kits: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "require_loopback", lambda: ("192.0.2.1",))  # no address of this machine
    with (
        pytest.raises(FederationError, match="cannot be used: Cannot assign requested address"),
        metrics_server(kits["east"], free_port()),
    ):
        pass


def test_what_cannot_be_read_is_told_and_the_rest_is_there(
    kits: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(environment: object) -> list[GPU]:
        raise FederationError("nvidia-smi does not answer")

    monkeypatch.setattr(metrics, "read_gpus", broken)
    (kits["east"] / "audit").mkdir(exist_ok=True)
    (kits["east"] / "audit" / "ledger.jsonl").write_text("no ledger\n")
    found = _read(metrics_text(kits["east"]))
    assert (found["oncofed_unreadable gpus"], found["oncofed_unreadable budget"]) == (1, 1)
    assert (found["oncofed_unreadable service"], found["oncofed_running"]) == (0, 0)
    with pytest.raises(AllianceError, match="is the kit of"):
        metrics_text(kits["eng@x.org"])


def test_each_line_of_the_log_is_counted_once_over_scrapes(kits: dict[str, Path]) -> None:
    log, port = AuditLog(kits["west"]), free_port()
    with metrics_server(kits["west"], port) as address:
        for number in (1, 2, 3):
            log.write(LEFT, "eng@x.org", job="j1", bytes=10)
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert _read(answer.read().decode())["oncofed_left_bytes_total"] == 10 * number
        with pytest.raises(FederationError, match=f"port {port} is taken"), metrics_server(kits["west"], port):
            pass


def test_scrapes_at_the_same_time_count_once(kits: dict[str, Path]) -> None:
    AuditLog(kits["west"]).write(LEFT, "eng@x.org", job="j1", bytes=10)
    found: list[float] = []
    with metrics_server(kits["west"], free_port()) as address:

        def scrape() -> None:
            with urllib.request.urlopen(address, timeout=30) as answer:
                found.append(_read(answer.read().decode())["oncofed_left_bytes_total"])

        threads = [threading.Thread(target=scrape) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [10.0] * 8


def test_the_command_serves_until_ctrl_c(kits: dict[str, Path], tmp_path: Path) -> None:
    port = free_port()
    arguments = ["site", "metrics", "--folder", kits["east"], "--port", str(port)]
    with started(*arguments, log=tmp_path / "log") as process:
        wait_for(lambda: "/metrics" in (tmp_path / "log").read_text(), "it serves")
        press_ctrl_c(process)
        assert process.wait(30) == 130
    once = subprocess.run(command(*arguments[:4]), capture_output=True, text=True, check=True)
    assert _read(once.stdout)["oncofed_running"] == 0


@needs_prometheus
def test_rules_and_their_cases_are_right() -> None:
    for words in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]):
        subprocess.run(["promtool", *words], cwd=MONITORING, check=True, capture_output=True)


def _expressions() -> list[str]:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    return [target["expr"].replace("$instance", ".*") for panel in panels for target in panel["targets"]]


def test_dashboard_and_alerts_ask_for_metrics_that_exist(kits: dict[str, Path]) -> None:
    asked = {name for text in [*_expressions(), (MONITORING / "alerts.yaml").read_text()] for name in _names(text)}
    source = Path(metrics.__file__).read_text()
    known = set(re.findall(r'"(oncofed_\w+)"', source)) | {f"oncofed_server_job_{name}" for name in metrics._OF_ROUNDS}
    known |= {f"{name}_total" for name in known} | {"oncofed_job_round", "oncofed_job_step"}
    assert asked <= known
    told = {re.split(r"[ {]", line)[0] for line in metrics_text(kits["east"]).splitlines() if line[0] != "#"}
    assert told <= known | {"oncofed_info"}


def _names(text: str) -> list[str]:
    return re.findall(r"\boncofed_\w+", text)


@pytest.fixture
def ask(kits: dict[str, Path], tmp_path: Path) -> Any:
    """A function that asks a real Prometheus, which watches a site."""
    port, own = free_port(), free_port()
    text = (MONITORING / "prometheus.yaml").read_text()
    text = text.replace("9464", str(own)).replace("15s", "1s").replace("alerts.yaml", str(MONITORING / "alerts.yaml"))
    (tmp_path / "prometheus.yaml").write_text(text)
    line = ["prometheus", f"--config.file={tmp_path / 'prometheus.yaml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    line += [f"--web.listen-address=127.0.0.1:{port}"]

    def query(expression: str) -> dict[str, Any]:
        words = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{words}", timeout=30) as answer:
            return dict(json.load(answer))

    with metrics_server(kits["east"], own), (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            yield query
        finally:
            process.terminate()
            process.wait(30)


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_watches_a_site(ask: Callable[[str], dict[str, Any]]) -> None:
    def value(expression: str) -> str | None:
        try:
            found = ask(expression)["data"]["result"]
        except OSError:  # it does not answer yet
            return None
        return found[0]["value"][1] if found else None

    wait_for(lambda: value('up{job="oncofed"}') == "1", "Prometheus has asked the site", 60)
    assert value("oncofed_running") == "0"
    assert value("oncofed_disk_free_bytes > 0")
    assert all(ask(expression)["status"] == "success" for expression in _expressions())
    wait_for(lambda: value('ALERTS{alertname="OncofedStopped", alertstate="pending"}') == "1", "the alert waits", 60)
