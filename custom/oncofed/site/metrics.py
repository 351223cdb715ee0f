"""A machine's state as Prometheus metrics.

They are read from the kit's own files and this machine's GPUs, so a scrape disturbs no job. They hold numbers of bytes,
jobs and rounds, and names of jobs and sites; nothing about patients.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from oncofed.alliance.facts import KitFacts
from oncofed.audit import ADMITTED, ANCHORED, HELD_BACK, LEFT, REFUSED, AuditLog
from oncofed.client.status_file import ENDED, read_report
from oncofed.errors import FederationError, OncofedError
from oncofed.flare.folders import STATE_FOLDER
from oncofed.gpus import read_gpus
from oncofed.loopback import require_loopback
from oncofed.privacy.ledger import LEDGER_FILE
from oncofed.rounds.events import EVENTS_FILE, EventReader, Incident, RoundEnded, Started, Unknown
from oncofed.site.budget import read_budget
from oncofed.site.policies import current_policy
from oncofed.site.service import is_connected, machine_facts, runs_job, service_state

_GIB = 2**30
# Raised by JSON of another form than expected.
_ODD = (ValueError, KeyError, TypeError, AttributeError)
# What a server tells of a job that runs.
_OF_ROUNDS = {
    "round": "Number of the last complete round",
    "rounds": "Planned number of rounds",
    "round_seconds": "Wall time of the last complete round",
    "slowest_site_seconds": "Training and validation of its slowest site",
    "incidents": "Sites lost, late or refused, and the like, so far",
}


def metrics_text(folder: Path) -> str:
    """Return the metrics of a kit's machine in Prometheus' text format.

    Raises:
        AllianceError: the folder is not a machine's kit.
    """
    return generate_latest(_registry(folder)).decode()


@contextmanager
def metrics_server(folder: Path, port: int) -> Iterator[str]:
    """Serve a kit's metrics on this machine's loopback; yield their address.

    Args:
        folder: of the kit.
        port: to listen on.

    Raises:
        AllianceError: the folder is not a machine's kit.
        FederationError: the port is taken, or cannot be used.
        TransferError: this machine has no loopback address.
    """
    registry, address = _registry(folder), require_loopback()[0]
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror or error}"
        raise FederationError(f"port {port} {why}. Name another one with --port") from None
    try:
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Machine(folder, machine_facts(folder)))
    return registry


class _Machine(Collector):
    """Collects what all kinds of machines have, and what theirs has."""

    def __init__(self, folder: Path, facts: KitFacts) -> None:
        self._folder, self._facts = folder, facts
        self._audit = _AuditCounts(folder)
        of_kind: dict[str, Callable[[], Iterator[Metric]]] = {}
        if facts.kind == "server":
            of_kind["server"] = _ServerJobs(folder).collect
        elif facts.kind == "site":
            of_kind |= {"job": self._job, "gpus": _gpus, "budget": _Budget(folder).collect}
        self._parts = {"service": self._service, "audit": self._audit.collect, **of_kind}
        self._lock = threading.Lock()  # the counts are kept between scrapes, of which two may come at once

    def describe(self) -> list[Metric]:
        """Return nothing: names follow from the kind of machine."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; of a part that cannot be read, that it cannot."""
        with self._lock:
            found = {name: _read(part) for name, part in self._parts.items()}
        for metrics in found.values():
            yield from metrics or ()
        failed = {name: metrics is None for name, metrics in found.items()}
        yield _labelled("oncofed_unreadable", "Whether a part of the metrics cannot be read", ["part"], _keyed(failed))

    def _service(self) -> Iterator[Metric]:
        facts, state = self._facts, service_state(self._folder)
        known = {"alliance": facts.alliance, "participant": facts.participant, "kind": facts.kind}
        yield InfoMetricFamily("oncofed", "The kit", known | {"oncofed": facts.oncofed, "nvflare": facts.nvflare})
        yield GaugeMetricFamily("oncofed_running", "Whether its service runs", state.running)
        yield GaugeMetricFamily("oncofed_started_timestamp_seconds", "FLARE's last start", state.since)
        yield GaugeMetricFamily("oncofed_restarts", "Restarts since the service was started", state.restarts)
        if facts.kind != "server":
            connected = is_connected(self._folder)
            yield GaugeMetricFamily("oncofed_connected", "Whether it is connected to the server", connected)
        ends = facts.certificate(self._folder).not_valid_after_utc.timestamp()
        yield GaugeMetricFamily("oncofed_certificate_expiry_timestamp_seconds", "End of the certificate", ends)
        disk = shutil.disk_usage(self._folder)
        yield GaugeMetricFamily("oncofed_disk_free_bytes", "Free where the kit lies", disk.free)
        yield GaugeMetricFamily("oncofed_disk_size_bytes", "Size of the disk where the kit lies", disk.total)

    def _job(self) -> Iterator[Metric]:
        now, runs = read_report(self._folder), runs_job(self._folder)
        yield GaugeMetricFamily("oncofed_job_running", "Whether a job runs here", runs)
        if not runs or not now or now.get("phase") == ENDED:
            return
        yield _labelled("oncofed_job_phase", "What the job does", ["phase"], {(str(now.get("phase", "")),): 1})
        yield GaugeMetricFamily("oncofed_job_updated_timestamp_seconds", "Last news of the job", now["at"])
        for name, about in (("round", "Number of the round, from 1"), ("step", "Optimizer steps in all rounds so far")):
            if now.get(name) is not None:
                yield GaugeMetricFamily(f"oncofed_job_{name}", about, now[name])


class _AuditCounts:
    """Counts an audit log's lines; each is read once."""

    def __init__(self, folder: Path) -> None:
        self._log = AuditLog(folder)
        self._offset, self._latest = 0, 0.0
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._anchored: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        self._read()
        yield CounterMetricFamily("oncofed_left_bytes", "Bytes of messages that left", self._counts["bytes"])
        yield CounterMetricFamily("oncofed_left_messages", "Messages that left", self._counts[LEFT])
        yield CounterMetricFamily("oncofed_held_back_messages", "Messages held back", self._counts[HELD_BACK])
        yield CounterMetricFamily("oncofed_jobs_admitted", "Jobs that the policy let run", self._counts[ADMITTED])
        refused = CounterMetricFamily("oncofed_jobs_refused", "Jobs refused, by the policy's rule", labels=["rule"])
        for rule, number in sorted(self._refused.items()):
            refused.add_metric([rule], number)
        yield refused
        about = "Time of the audit log's last line"
        yield GaugeMetricFamily("oncofed_audit_last_line_timestamp_seconds", about, self._latest)
        about = "When a site's last audit line was recorded here"
        yield _labelled("oncofed_audit_anchor_timestamp_seconds", about, ["site"], _keyed(self._anchored))

    def _read(self) -> None:
        if not self._log.path.is_file():
            return
        with self._log.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with contextlib.suppress(*_ODD):
                    self._count(json.loads(line))

    def _count(self, entry: dict[str, Any]) -> None:
        self._latest = datetime.fromisoformat(str(entry["time"]).replace("Z", "+00:00")).timestamp()
        self._counts[entry["what"]] += 1
        if entry["what"] == LEFT:
            self._counts["bytes"] += int(entry.get("bytes", 0))
        elif entry["what"] == REFUSED:
            self._refused[str(entry.get("rule", ""))] += 1
        elif entry["what"] == ANCHORED:
            self._anchored[str(entry["who"])] = self._latest


class _Budget:
    """What patients have spent; computed anew when the ledger grows or the policy changes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._of = folder, (0, "")
        self._known: list[tuple[str, str, float]] = []

    def collect(self) -> Iterator[Metric]:
        path = self._folder / LEDGER_FILE
        size = path.stat().st_size if path.is_file() else 0
        now = (size, current_policy(self._folder).digest if size else "")
        if not size:
            self._known = []
        elif now != self._of:
            found = read_budget(self._folder)
            spent = max((group.epsilon for group in found.groups), default=0.0)
            most = found.limits.a_patient
            self._known = [("oncofed_budget_charges", "Jobs that patients were charged for", len(found.charges))]
            self._known += [("oncofed_budget_largest_epsilon", "Epsilon of the patients who spent most", spent)]
            if most is not None:
                self._known += [("oncofed_budget_limit_epsilon", "Largest epsilon of a patient, ever", most)]
        self._of = now
        for name, about, value in self._known:
            yield GaugeMetricFamily(name, about, value)


class _ServerJobs:
    """A server's queue, and the rounds of jobs that run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, _Rounds] = {}

    def collect(self) -> Iterator[Metric]:
        jobs = dict(self._jobs())
        status = Counter(str(job.get("status", "unknown")) for job in jobs.values())
        about = "Jobs at the server, by FLARE's status"
        yield _labelled("oncofed_server_jobs", about, ["status"], _keyed(status))
        runs = {number: str(job.get("name", "")) for number, job in jobs.items() if job.get("status") == "RUNNING"}
        self._running = {number: self._running.get(number) or self._rounds(number) for number in runs}
        for rounds in self._running.values():
            rounds.read()
        for name, about in _OF_ROUNDS.items():
            found: dict[tuple[str, ...], float] = {
                (number, runs[number]): vars(rounds)[name] for number, rounds in self._running.items()
            }
            yield _labelled(f"oncofed_server_job_{name}", about, ["job", "name"], found)

    def _rounds(self, number: str) -> _Rounds:
        return _Rounds(self._folder / STATE_FOLDER / number / EVENTS_FILE)

    def _jobs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and description of each job that FLARE keeps."""
        for path in sorted((self._folder / "storage" / "jobs").glob("*/meta")):
            with contextlib.suppress(OSError, ValueError):  # just removed, or being written
                found = json.loads(path.read_bytes())
                if isinstance(found, dict):
                    yield path.parent.name, found


class _Rounds:
    """The rounds of a job, by its record."""

    def __init__(self, record: Path) -> None:
        self._reader = EventReader(record)
        self.round = self.rounds = self.incidents = 0
        self.round_seconds = self.slowest_site_seconds = 0.0

    def read(self) -> None:
        for event in self._reader.read():
            if isinstance(event, Started):
                self.rounds = event.rounds
            elif isinstance(event, RoundEnded):
                self.round = event.round
                self.round_seconds, self.slowest_site_seconds = event.seconds, event.slowest_site_s
            self.incidents += isinstance(event, Incident) and not isinstance(event, Unknown)


def _gpus() -> Iterator[Metric]:
    labels, gpus = ["gpu", "model"], read_gpus({})
    names: list[tuple[str, ...]] = [(str(gpu.device), gpu.name) for gpu in gpus]
    busy = {name: gpu.busy_percent / 100 for name, gpu in zip(names, gpus, strict=True) if gpu.busy_percent is not None}
    yield _labelled("oncofed_gpu_utilization_ratio", "Recent utilisation, 0 to 1", labels, busy)
    total = {name: gpu.total_gib * _GIB for name, gpu in zip(names, gpus, strict=True)}
    yield _labelled("oncofed_gpu_memory_total_bytes", "Memory", labels, total)
    used = {name: (gpu.total_gib - gpu.free_gib) * _GIB for name, gpu in zip(names, gpus, strict=True)}
    yield _labelled("oncofed_gpu_memory_used_bytes", "Memory in use", labels, used)


def _read(part: Callable[[], Iterator[Metric]]) -> list[Metric] | None:
    """Return a part's metrics; None: it cannot be read."""
    with contextlib.suppress(OncofedError, OSError, *_ODD):
        return list(part())
    return None


def _labelled(name: str, about: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a gauge with a value for each combination of labels."""
    gauge = GaugeMetricFamily(name, about, labels=labels)
    for names, value in values.items():
        gauge.add_metric(list(names), value)
    return gauge


def _keyed(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in sorted(values.items())}
