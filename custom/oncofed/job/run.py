"""Running a job on this machine, each folder one site: the federation, what it is compared with, and the report."""

from __future__ import annotations

import contextlib
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from safetensors.torch import load_file

from oncofed.data.cases import Case, Cases, Usable, pool_cases, usable_cases
from oncofed.errors import DataError, FederationError, OncofedError
from oncofed.federation.events import MODELS_FOLDER, EventReader
from oncofed.job import backends
from oncofed.job.backends import Running
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.job.watch import Curves, RunState, RunView, progress_bar
from oncofed.models.bundle import write_bundle
from oncofed.processes import short_path
from oncofed.report.html import write_report
from oncofed.report.result import Bytes, Fairness, Means, Result, SiteResult
from oncofed.tasks.pictures import Picture
from oncofed.training import Evaluation, Trainer
from oncofed.training.baselines import Baseline, BaselinePool

Backend = Literal["federation", "simulate"]
Scores = dict[str, dict[str, Evaluation]]

_POLL_SECONDS = 0.2
_POOLED = "pooled"
_STARTING: dict[Backend, str] = {
    "federation": "starting a server and {sites} sites from their startup kits …",
    "simulate": "starting FLARE's simulator with {sites} sites …",
}


@dataclass
class Run:
    """A run on this machine.

    Attributes:
        spec: the job.
        sites: site name -> folder of its data in Decathlon layout.
        backend: FLARE's real server and sites, or its simulator.
        folder: the run's folder, new.
        console: where progress is shown.
        port: of the server; None takes a free one.
        keep: keep startup kits and FLARE's own files.
        baselines: also train each site alone, and all data in one place.
        data_note: what the report says of the data.
    """

    spec: JobSpec
    sites: dict[str, Path]
    backend: Backend
    folder: Path
    console: Console
    port: int | None = None
    keep: bool = False
    baselines: bool = True
    data_note: str = ""
    _cases: dict[str, Cases] = field(default_factory=dict)
    _skipped: dict[str, int] = field(default_factory=dict)

    def execute(self) -> Result:
        """Run everything and return the result, which is also written to the run's folder.

        Raises:
            OncofedError: the run failed; ``result.json`` then says so.
        """
        started = time.time()
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.yaml").write_text(self.spec.to_yaml(), encoding="utf-8")
        task = self.spec.plan().build_task()
        result = Result(
            job=self.spec.name,
            title=self.spec.title,
            status="failed",
            backend=self.backend,
            rounds=self.spec.rounds.number,
            strategy=self.spec.strategy.name,
            metric=task.metric,
            metric_name=task.metric_name,
            classes=list(self.spec.task.classes.values()),
            seed=self.spec.seed,
            data_note=self.data_note,
            environment=environment(),
        )
        try:
            self._check_data()
            self._run(result)
            result.status = "completed"
        except OncofedError as error:
            result.error = str(error)
            raise
        except KeyboardInterrupt:
            result.status, result.error = "stopped", "stopped by the user"
            raise
        finally:
            result.timing.total_s = time.time() - started
            result.write(self.folder)
            if not self.keep:
                shutil.rmtree(self._work, ignore_errors=True)
        write_report(result, self._pictures(), self.folder)
        return result

    @property
    def _work(self) -> Path:
        return self.folder / "federation"

    def _check_data(self) -> None:
        refused = []
        for site, folder in self.sites.items():
            try:
                usable = self._usable(site, folder)
            except DataError as error:
                refused.append(str(error))
                continue
            self._cases[site] = usable.cases
            self._skipped[site] = len(usable.set_aside)
            for problem in usable.set_aside:
                self.console.print(f"set aside {site}: {problem}", markup=False, highlight=False)
        if refused:
            raise DataError("\n".join(refused))

    def _usable(self, site: str, folder: Path) -> Usable:
        plan = self.spec.plan()
        with progress_bar(self.console) as bar:
            task = bar.add_task(f"checking images of {site}", total=0)
            return usable_cases(
                folder,
                plan.data,
                plan.task.vocabulary,
                plan.seed,
                site,
                lambda done, total: bar.update(task, completed=done, total=total),
                plan.build_task().label_kind,
            )

    def _run(self, result: Result) -> None:
        job = export_job(self.spec, self._work / self.spec.name)
        model = self.folder / "model"
        (model / "baselines").mkdir(parents=True, exist_ok=True)
        started = time.time()
        view = RunView(self.console, Curves(self.folder / "tensorboard"))
        with (
            short_path(self._work / "tmp") as temporary,
            BaselinePool(self.spec.plan(), model / "baselines") as pool,
        ):
            self.console.print(_STARTING[self.backend].format(sites=len(self.sites)))
            with self._backend(job, temporary) as running:
                with view:
                    try:
                        self._follow(running, view)
                    finally:
                        _note_incidents(result, view.state)
                ended = time.time()
                # The job's processes take seconds to end: train the baselines meanwhile.
                if self.baselines:
                    self.console.print("now each site alone, and all data in one place, for comparison …")
                    pool.start(self._baselines())
                shutil.copy(running.fetch() / MODELS_FOLDER / "best.safetensors", model / "model.safetensors")
            self._note_federation(result, view.state, started, ended)
            scores = self._collect(pool)
        result.timing.baselines_s = time.time() - ended
        self._note_scores(result, view.state, scores)
        plan = self.spec.plan()
        weights = load_file(model / "model.safetensors")
        write_bundle(model, self.spec.title, plan.network_request, plan.data, plan.task.classes, weights)

    def _backend(self, job: Path, temporary: Path) -> AbstractContextManager[Running]:
        datasets = {site: {self.spec.data.dataset: folder} for site, folder in self.sites.items()}
        logs = self.folder / "logs"
        if self.backend == "simulate":
            return backends.simulation(job, datasets, self._work / "simulator", logs, temporary)
        needed = self.spec.rounds.quorum or len(datasets)
        return backends.federation(job, datasets, needed, self._work / "alliance", logs, temporary, self.port)

    def _follow(self, running: Running, view: RunView) -> None:
        reader = EventReader(running.events)
        while view.state.finished is None:
            status = running.ended()
            view.update(reader.read())
            if view.state.failed:
                raise FederationError(view.state.failed)
            if view.state.finished is None:
                if status is not None:
                    raise FederationError(f"the job ended early ({status}). Logs: {self.folder / 'logs'}")
                running.require_going()
                time.sleep(_POLL_SECONDS)

    def _baselines(self) -> list[Baseline]:
        tests: dict[str, tuple[Case, ...]] = {site: cases.test for site, cases in self._cases.items()}
        pooled = Baseline(_POOLED, pool_cases(self._cases), tests)
        # Pooled first: it loads and tests the most.
        return [pooled, *(Baseline(site, cases, {site: cases.test}) for site, cases in self._cases.items())]

    def _collect(self, pool: BaselinePool) -> Scores:
        if not self.baselines:
            return {}
        with progress_bar(self.console) as bar:
            task = bar.add_task("alone and pooled, steps", total=pool.total_steps)
            return pool.collect(lambda done: bar.update(task, completed=done))

    def _note_federation(self, result: Result, state: RunState, started: float, ended: float) -> None:
        timing = result.timing
        timing.startup_s = (state.started or started) - started + (state.ready_s or 0)
        timing.federation_s = ended - started
        timing.rounds_s = state.rounds_s
        timing.train_s_max_per_round = state.slowest_site_s
        over = [a - b for a, b in zip(state.rounds_s, state.slowest_site_s, strict=True)]
        # A site that was asked again sent what it had: its seconds are those of another process.
        timing.overhead_s_per_round = max(sum(over) / len(over), 0.0) if over else None
        tensors = sum(t.nbytes for t in load_file(self.folder / "model" / "model.safetensors").values())
        result.bytes = Bytes(
            to_sites_per_round=tensors * len(self.sites), to_server_per_round=tensors * len(self.sites)
        )
        result.curves = {
            "validation": {str(k): v for k, v in state.validation.items()},
            "validation_by_site": {str(k): v for k, v in state.validation_by_site.items()},
            "loss": {str(k): v for k, v in state.losses.items()},
        }

    def _note_scores(self, result: Result, state: RunState, scores: Scores) -> None:
        assert state.finished is not None
        result.best_round = state.finished["best_round"]
        for site, cases in self._cases.items():
            federated = state.finished["test"].get(site, {"mean": None, "by_class": {}})
            alone = scores.get(site, {}).get(site)
            pooled = scores.get(_POOLED, {}).get(site)
            compared = {name: e for name, e in (("alone", alone), ("pooled", pooled)) if e}
            by_class = {"federated": federated["by_class"], **{name: e.by_class for name, e in compared.items()}}
            more = {"federated": federated.get("more", {}), **{name: e.more for name, e in compared.items()}}
            intervals = {"federated": federated.get("interval"), **{n: e.interval for n, e in compared.items()}}
            result.sites[site] = SiteResult(
                train_cases=len(cases.train),
                validation_cases=len(cases.validation),
                test_cases=len(cases.test),
                skipped_cases=self._skipped.get(site, 0),
                alone=alone.mean if alone else None,
                federated=federated["mean"],
                pooled=pooled.mean if pooled else None,
                personal=(state.finished.get("personal") or {}).get(site, {}).get("mean"),
                by_class=by_class,
                more=more,
                interval={name: interval for name, interval in intervals.items() if interval},
            )
        result.cross_site = state.finished.get("cross_site")
        known = {site: r.federated for site, r in result.sites.items() if r.federated is not None}
        if known:
            worst = min(known, key=lambda site: known[site])
            spread = statistics.pstdev(known.values())
            result.fairness = Fairness(worst_site=worst, worst=known[worst], spread=spread)
        result.mean = Means(
            alone=_mean(site.alone for site in result.sites.values()),
            federated=_mean(site.federated for site in result.sites.values()),
            pooled=_mean(site.pooled for site in result.sites.values()),
        )

    def _pictures(self) -> dict[str, Picture]:
        """Return what the federated model makes of one test case of each site."""
        first = next(iter(self._cases))
        trainer = Trainer(self.spec.plan(), self._cases[first], first)
        trainer.load_weights(load_file(self.folder / "model" / "model.safetensors"))
        trainer.network.eval()
        shown = {site: cases.test[0] for site, cases in self._cases.items()}
        return {site: trainer.task.picture(trainer.network, case, trainer.device) for site, case in shown.items()}


def _note_incidents(result: Result, state: RunState) -> None:
    """Take over who took part and what did not go as usual, also of a run that failed."""
    result.lost_sites = state.lost
    result.participation = {str(number): who for number, who in sorted(state.participation.items())}
    result.incidents = state.incidents


def environment() -> dict[str, str]:
    """Return versions and device of this machine, as a result records them."""
    packages = ("oncofed", "nvflare", "monai", "torch", "numpy")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()
    return {"python": platform.python_version(), "device": device, **{name: version(name) for name in packages}}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
