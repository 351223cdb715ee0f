"""Stock FLARE as a baseline.

``FedAvgRecipe`` with sites that return their input.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nvflare.app_opt.pt.recipes import FedAvgRecipe

from harness.results import Baseline, BenchmarkError
from oncofed.alliance.kits import PRIVACY_FILE
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.session import quiet
from oncofed.alliance.spec import AllianceSpec
from oncofed.job.spec import JobSpec
from oncofed.models.networks import network_config
from oncofed.processes import process_environment, short_path, stop_processes

_FINISH_SECONDS = 1500.0
_TRIES = 3
_TIME = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})"
_SCHEDULED = re.compile(_TIME + r" .* - scheduled task train$", re.MULTILINE)
# The simulator's console leaves that line out.
_SENT = re.compile(_TIME + r" .* - Sending task train to ", re.MULTILINE)

_RETURN_AT_ONCE = """\
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""


class _StockAlliance(LocalAlliance):
    """The alliance under FLARE's policy, which permits training scripts."""

    def _prepare_kits(self) -> None:
        super()._prepare_kits()
        for participant in (self.spec.server, *self.spec.sites):
            local = self.kit(participant) / "local"
            (local / PRIVACY_FILE).unlink(missing_ok=True)  # our guard, which FLARE's own list of classes does not know
            shutil.copy(local / "authorization.json.default", local / "authorization.json")
            ours = json.loads((local / "resources.json").read_text(encoding="utf-8"))
            theirs = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
            ours["class_allow_list"] = theirs["class_allow_list"]
            (local / "resources.json").write_text(json.dumps(ours), encoding="utf-8")


def stock_baseline(name: str, measure: Callable[[Path], list[float]], folder: Path) -> Baseline:
    """Return what stock FLARE takes, or why it is not known.

    It may succeed the next time: stock sites give up if the server does not take an update within ten seconds.

    Args:
        name: of the baseline.
        measure: from an empty folder to samples.
        folder: for everything that is written.
    """
    missing = ""
    for number in range(_TRIES):
        try:
            return Baseline(name=name, samples=measure(folder / str(number)))
        except BenchmarkError as error:  # noqa: PERF203 - see above
            missing = f"{error}, {number + 1} times"
    return Baseline(name=name, missing=missing)


def measure_stock(spec: JobSpec, sites: tuple[str, ...], rounds: int, folder: Path) -> list[float]:
    """Return round times of a provisioned federation.

    In seconds, with mutual TLS.

    Args:
        spec: the job whose network is exchanged.
        sites: their names.
        rounds: how many.
        folder: for everything that is written.

    Raises:
        BenchmarkError: the job did not complete.
    """
    job = _export(spec, len(sites), rounds, folder)
    alliance_spec = AllianceSpec(sites=sites, port=free_port())
    datasets: dict[str, dict[str, Path]] = {site: {} for site in sites}
    with _StockAlliance(alliance_spec, folder / "kits", datasets, folder / "logs", folder / "tmp") as alliance:
        alliance.wait_registered()
        with quiet():
            job_id = alliance.session().submit_job(str(job.resolve()))
            alliance.session().monitor_job(job_id, timeout=_FINISH_SECONDS, poll_interval=1.0)
            status = alliance.session().get_job_status(job_id)
    if status != "FINISHED:COMPLETED":
        raise BenchmarkError(f"stock FLARE's job ended as {status}")
    return _rounds((folder / "logs" / "server.txt").read_text(encoding="utf-8"), _SCHEDULED)


def simulate_stock(spec: JobSpec, sites: int, rounds: int, folder: Path) -> list[float]:
    """Return round times of FLARE's simulator.

    In seconds; each site is a process.

    Raises:
        BenchmarkError: the simulation did not complete.
    """
    job = _export(spec, sites, rounds, folder)
    log = folder / "simulator.txt"
    with short_path(folder / "tmp") as temporary:
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job)]
        command += ["-w", str(folder / "work"), "-n", str(sites), "-t", str(sites)]
        try:
            with log.open("wb") as output:
                environment = process_environment(temporary, sites)
                done = subprocess.run(
                    command, env=environment, stdout=output, stderr=output, timeout=_FINISH_SECONDS, check=False
                )
        finally:
            stop_processes(temporary)
    found = _rounds(log.read_text(encoding="utf-8", errors="replace"), _SENT)
    if done.returncode or len(found) != rounds:
        raise BenchmarkError(f"FLARE's simulator ended with status {done.returncode} after {len(found)} rounds")
    return found


def _export(spec: JobSpec, sites: int, rounds: int, folder: Path) -> Path:
    network = network_config(spec.plan().network_request)
    model = {"class_path": f"monai.networks.nets.{network.pop('_target_')}", "args": network}
    script = folder / "return_at_once.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(_RETURN_AT_ONCE, encoding="utf-8")
    recipe = FedAvgRecipe(
        name="stock",
        model=model,
        min_clients=sites,
        num_rounds=rounds + 1,  # a round is from one start to the next
        train_script=str(script),
    )
    with quiet():
        recipe.export(str(folder / "job"))
    return folder / "job" / "stock"


def _rounds(log: str, start: re.Pattern[str]) -> list[float]:
    starts = [datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() for found in start.finditer(log)]
    return [later - earlier for earlier, later in itertools.pairwise(starts)]
