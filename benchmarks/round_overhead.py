"""Seconds that a round costs beyond the sites' own work: oncofed beside stock FLARE, in one run on one machine.

Both federations are provisioned by FLARE and run as one server and four sites on loopback with mutual TLS; both
exchange the weights of the same network. oncofed's sites train one step a round and score the model, which is
subtracted: the overhead is a round's wall time less the slowest site's training and validation. Stock FLARE runs its
``FedAvgRecipe`` with a script that returns what it was sent, so that its whole round is overhead. The floor is what the
same bytes need through one loopback connection with TLS. A third federation is oncofed in FLARE's simulator;
a fourth is Flower's deployment, installed into an environment of its own where a package index can be reached, and
without TLS.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from nvflare.app_opt.pt.recipes import FedAvgRecipe
from rich.console import Console

from figures import hand_over, options
from flower import VERSION, measure_flower
from oncofed.alliance.local import LocalAlliance, free_port, quiet
from oncofed.alliance.spec import AllianceSpec
from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec, read_job
from oncofed.models.networks import network_config
from oncofed.report.result import Backend

_FINISH_SECONDS = 600.0
# A model of one megabyte.
_CHANNELS = [12, 24, 48, 96]
# Seconds of a round with a server and four sites, and in the simulator.
_TARGET, _TARGET_SIMULATED = 0.15, 0.10
_SCHEDULED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .* - scheduled task train$", re.MULTILINE)

_RETURN_AT_ONCE = """\
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""


class StockAlliance(LocalAlliance):
    """The same alliance under FLARE's own policy, which lets an engineer bring a training script."""

    def _prepare_kits(self) -> None:
        super()._prepare_kits()
        for participant in (self.spec.server, *self.spec.sites):
            local = self.kit(participant) / "local"
            shutil.copy(local / "authorization.json.default", local / "authorization.json")
            ours = json.loads((local / "resources.json").read_text(encoding="utf-8"))
            theirs = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
            ours["class_allow_list"] = theirs["class_allow_list"]
            (local / "resources.json").write_text(json.dumps(ours), encoding="utf-8")


def measure_oncofed(spec: JobSpec, folder: Path, backend: Backend) -> list[float]:
    """Return each round's overhead in seconds."""
    sites = make_hospitals(folder / "data", seed=1)
    timing = Run(spec, sites, backend, folder / "run", Console(quiet=True), baselines=False).execute().timing
    return [whole - busy for whole, busy in zip(timing.rounds_s, timing.train_s_max_per_round, strict=True)]


def measure_stock(spec: JobSpec, folder: Path) -> list[float]:
    """Return the wall time in seconds of each round of stock FLARE whose sites have nothing to do."""
    network = network_config(spec.plan().network_request)
    model = {"class_path": f"monai.networks.nets.{network.pop('_target_')}", "args": network}
    script = folder / "return_at_once.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(_RETURN_AT_ONCE, encoding="utf-8")
    sites = tuple(hospital.name for hospital in HOSPITALS)
    recipe = FedAvgRecipe(
        name="stock",
        model=model,
        min_clients=len(sites),
        num_rounds=spec.rounds.number + 1,  # a round is from one start to the next
        train_script=str(script),
    )
    with quiet():
        recipe.export(str(folder / "job"))
    alliance_spec = AllianceSpec(sites=sites, port=free_port())
    datasets: dict[str, dict[str, Path]] = {site: {} for site in sites}
    with StockAlliance(alliance_spec, folder / "kits", datasets, folder / "logs", folder / "tmp") as alliance:
        alliance.wait_registered()
        with quiet():
            job_id = alliance.session().submit_job(str((folder / "job" / "stock").resolve()))
            alliance.session().monitor_job(job_id, timeout=_FINISH_SECONDS, poll_interval=1.0)
            status = alliance.session().get_job_status(job_id)
    if status != "FINISHED:COMPLETED":
        sys.exit(f"stock FLARE's job ended as {status}; its log: {folder / 'logs'}")
    log = (folder / "logs" / "server.txt").read_text(encoding="utf-8")
    marks = [_time(found[1]) for found in _SCHEDULED.finditer(log)]
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def measure_loopback(bytes_each_way: int, certificates: Path) -> float:
    """Return the seconds that a round's bytes need, there and back, through one loopback connection with TLS."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.load_verify_locations(certificates / "rootCA.pem")
    payload = bytes(bytes_each_way)

    def take(connection: ssl.SSLSocket) -> None:
        left = bytes_each_way
        while left:
            left -= len(connection.recv(min(left, 1 << 20)))

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with server_side.wrap_socket(raw, server_side=True) as connection:
            take(connection)
            connection.sendall(payload)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with client_side.wrap_socket(
            socket.create_connection(listener.getsockname()), server_hostname="localhost"
        ) as connection:
            started = time.perf_counter()
            connection.sendall(payload)
            take(connection)
            seconds = time.perf_counter() - started
        thread.join()
    return seconds


def _time(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each federation (default 10)")
    arguments = parser.parse_args()
    spec = read_job("brain_tissue_segmentation").changed(
        {
            "model": {"channels": _CHANNELS},
            "training": {"steps_per_round": 1, "warmup_steps": 0},
            "rounds": {"number": arguments.rounds},
        }
    )
    weights = spec.plan().build_network().state_dict()
    size = sum(tensor.nbytes for tensor in weights.values())
    with tempfile.TemporaryDirectory(prefix="oncofed-bench-") as temporary:
        folder = Path(temporary)
        ours = _summary(measure_oncofed(spec, folder / "oncofed", "federation"))
        simulated = _summary(measure_oncofed(spec, folder / "simulated", "simulate"))
        stock = _summary(measure_stock(spec, folder / "stock"))
        flower = _flower(size // 4, arguments.rounds, folder / "flower")
        certificates = next((folder / "stock" / "kits").rglob("server.crt")).parent
        floor = measure_loopback(size * len(HOSPITALS), certificates)
    record: dict[str, Any] = {
        "benchmark": "round_overhead",
        "unit": "s",
        "sites": len(HOSPITALS),
        "megabytes_each_way": size * len(HOSPITALS) / 1e6,
        "oncofed": ours,
        "oncofed_simulated": simulated,
        "target": _TARGET,
        "target_simulated": _TARGET_SIMULATED,
        "stock_flare": stock,
        "flower": flower,
        "flower_version": VERSION,
        "ratio_stock_to_oncofed": stock["median"] / ours["median"],
        "ratio_flower_to_oncofed": flower["median"] / ours["median"] if flower else None,
        "loopback_tls_floor": floor,
    }
    hand_over(record, arguments, _table(record))


def _flower(floats: int, rounds: int, folder: Path) -> dict[str, float] | None:
    try:
        return _summary(measure_flower(floats, len(HOSPITALS), rounds, folder))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Flower was not measured: {error}", file=sys.stderr)
        return None


def _table(record: dict[str, Any]) -> str:
    rows = [f"{'':24}{'median':>9}{'min':>9}{'max':>9}   seconds a round beyond the sites' work"]
    names = {
        "oncofed": "oncofed",
        "oncofed_simulated": "oncofed, simulator",
        "stock_flare": "FLARE, FedAvgRecipe",
        "flower": "Flower, FedAvg",
    }
    for key, name in names.items():
        value = record[key]
        if value is None:
            continue
        rows.append(f"{name:24}{value['median']:9.2f}{value['min']:9.2f}{value['max']:9.2f}")
    rows.append(f"{'same bytes over TLS':24}{record['loopback_tls_floor']:9.3f}")
    rows.append(
        f"stock FLARE takes {record['ratio_stock_to_oncofed']:.1f} times as long; {record['sites']} sites, "
        f"{record['megabytes_each_way']:.1f} MB each way a round"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
