"""What a large model costs on its way to four sites and back, beside the same bytes through one connection with TLS.

The federation is real: server and sites from startup kits on loopback, mutual TLS, oncofed's own rounds; only the
sites' training is left out, so that a round is nothing but the exchange, the average and keeping the state. The floor
copies a round's bytes, there and back, through one loopback connection. Memory is the server's job process: its peak
while the rounds run, less what it has with a model of one megabyte, in units of the model.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from fault_lab import DisturbedAlliance, Lab, allow_class
from figures import hand_over, options
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.spec import AllianceSpec
from oncofed.job.backends import FederatedJob
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec, read_job
from round_overhead import measure_loopback

_CLASS = "echo.Echo"
# Feature maps of each level for one megabyte of weights.
_WIDTH = 18.9
_LONGEST_SECONDS = 1500.0


def _allow_echo(alliance: LocalAlliance) -> None:
    """Have the sites allow the class that trains nothing."""
    for site in alliance.spec.sites:
        allow_class(alliance.kit(site), _CLASS)


def job_of(megabytes: int, rounds: int, update: str) -> JobSpec:
    """Return a job whose network has about so many megabytes of weights."""
    width = max(4, round(_WIDTH * megabytes**0.5))
    return read_job("brain_tissue_segmentation").changed(
        {
            "model": {"network": "unet", "channels": [width] * 5, "residual_units": 3},
            "rounds": {"number": rounds},
            "exchange": {"update": update},
        }
    )


def measure(spec: JobSpec, sites: int, folder: Path) -> dict[str, Any]:
    """Run one federation and return its rounds in seconds and the server's memory in MB."""
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    job = export_job(spec, folder / "job" / spec.name)
    client = job / "app" / "config" / "config_fed_client.json"
    config = json.loads(client.read_text(encoding="utf-8"))
    config["executors"][0]["executor"]["path"] = _CLASS
    client.write_text(json.dumps(config), encoding="utf-8")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets = {name: {spec.data.dataset: folder / "data"} for name in names}
    alliance_spec = AllianceSpec(sites=names, port=free_port())
    arguments = (alliance_spec, folder / "kits", datasets, folder / "logs", folder / "tmp")
    with DisturbedAlliance(*arguments, environments={}, prepared=_allow_echo) as alliance:
        alliance.wait_registered()
        lab = Lab(alliance, FederatedJob(alliance, job, sites), {}, folder, spec)
        lab.wait(lambda state: state.started is not None, "the job starts")
        peak = _Peak(lab.process("server job"))
        state = lab.wait(lambda state: state.finished is not None, "the run ends", _LONGEST_SECONDS)
        resident = peak.stop()
        certificates = next((folder / "kits").rglob("server.crt")).parent
        size = _bytes_of(spec)
        floor = measure_loopback(size * sites, certificates)
    return {"rounds_s": state.rounds_s, "server_mb": resident, "bytes": size, "floor_s": floor}


class _Peak:
    """Watches the memory of a process."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._most, self._over = process, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._most / 1e6

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                memory = self._process.memory_info()
            except psutil.Error:
                return
            # Pages of files that are only mapped can be dropped at any time.
            self._most = max(self._most, memory.rss - memory.shared)
            time.sleep(0.02)


def _bytes_of(spec: JobSpec) -> int:
    return sum(value.nbytes for value in spec.plan().build_network().state_dict().values())


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the model (default 500)")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update", choices=["native", "bfloat16", "int8"], default="native")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncofed-bench-") as temporary:
        folder = Path(temporary)
        small = measure(job_of(1, arguments.rounds, arguments.update), arguments.sites, folder / "small")
        large = measure(job_of(arguments.megabytes, arguments.rounds, arguments.update), arguments.sites, folder / "l")
    record = {
        "benchmark": "exchange",
        "sites": arguments.sites,
        "update": arguments.update,
        "model_mb": large["bytes"] / 1e6,
        "round_s": statistics.median(large["rounds_s"]),
        "rounds_s": large["rounds_s"],
        "floor_s": large["floor_s"],
        "ratio_to_floor": statistics.median(large["rounds_s"]) / large["floor_s"],
        "server_mb": large["server_mb"],
        "server_mb_with_a_small_model": small["server_mb"],
        "server_models": (large["server_mb"] - small["server_mb"]) / (large["bytes"] / 1e6),
    }
    hand_over(record, arguments, _table(record))


def _table(record: dict[str, Any]) -> str:
    how = f"{record['model_mb']:.0f} MB to {record['sites']} sites and back ({record['update']})"
    server = f"{record['server_mb']:.0f} MB at most, {record['server_models']:.2f} models"
    return (
        f"{how}: {record['round_s']:.1f} s a round,\n"
        f"{record['ratio_to_floor']:.1f} times the same bytes over one TLS connection ({record['floor_s']:.1f} s)\n"
        f"server's job process: {server} beyond the {record['server_mb_with_a_small_model']:.0f} MB of a small one"
    )


if __name__ == "__main__":
    main()
