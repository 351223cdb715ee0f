"""Runs a job here: federation, baselines and report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from safetensors.torch import load_file

from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.kept_job import copy_beside_model
from oncofed.artifacts.provenance import PROVENANCE_FILE
from oncofed.client.folder import CANDIDATES_FILE, DOUBTS_FILE, OWN_MODEL
from oncofed.data.case import Case
from oncofed.data.cases import pool_cases
from oncofed.data.sample import sample_cases
from oncofed.devices import require_named_gpu
from oncofed.errors import OncofedError
from oncofed.job import backends
from oncofed.job.backends import Running
from oncofed.job.card import write_cards
from oncofed.job.curves import Curves, Tracker
from oncofed.job.flare import export_job
from oncofed.job.outcome import POOLED, Scores, begin_result, note_incidents, note_preparation, note_rounds, note_scores
from oncofed.job.site_data import CheckedSites, checked_sites
from oncofed.job.spec import JobSpec
from oncofed.job.watch import RunView, follow, progress_bar
from oncofed.report.html import write_report
from oncofed.report.result import Backend, Result
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER
from oncofed.tasks.deletion import deletion, slides_to_delete_from, why_left_out
from oncofed.tasks.pictures import Picture
from oncofed.training import Plan, Trainer
from oncofed.training.baselines import Baseline, BaselinePool

# Memory of one site with small images: a separate process, or a fork of the simulator.
_GIB_OF_A_SITE: dict[Backend, float] = {"federation": 0.55, "simulate": 0.16}
# Of what each site keeps for itself, which a hospital's kit would hold.
SITES_FOLDER = "sites"
_STARTING: dict[Backend, str] = {
    "federation": "starting a server and {sites} sites from their startup kits …",
    "simulate": "starting FLARE's simulator with {sites} sites …",
}


@dataclass
class Run:
    """A run of a job on this machine.

    Attributes:
        spec: the job.
        sites: site name -> folder of its data in Decathlon layout.
        backend: FLARE's real server and sites, or its simulator.
        folder: of the run, new.
        console: where progress is shown.
        port: of the server; None takes a free one.
        keep: keep startup kits and FLARE's files.
        baselines: also train each site alone, and all data in one place.
        data_note: sentence about the data, for the report.
        model: initial weights as safetensors; None: drawn from the seed.
        evaluate_only: score that model at every site, and train nothing.
        against: weights of another model to compare with on the same patients.
        trackers: that get the run's curves, settings and files.
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
    model: Path | None = None
    evaluate_only: bool = False
    against: Path | None = None
    trackers: Sequence[Tracker] = ()
    _data: CheckedSites = field(default_factory=CheckedSites)

    def execute(self) -> Result:
        """Run everything, and return what ``result.json`` holds.

        Raises:
            DataError: the sites' data cannot be used; no folder is made.
            OncofedError: the run failed; ``result.json`` then says so.
        """
        started = time.monotonic()
        # Otherwise sites, baselines and pictures would fail one after the other.
        require_named_gpu()
        # Before the folder is made: a run that never began leaves none.
        self._data = checked_sites(self.spec, self.sites, self.console, trains=not self.evaluate_only)
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        backends.require_machine(self.folder)
        (self.folder / "job.yaml").write_text(self.spec.to_yaml(), encoding="utf-8")
        result = begin_result(self.spec, self.backend, self.data_note)
        if self.evaluate_only:
            result.rounds = 0
        try:
            self._run(result)
            result.status = "completed"
        except OncofedError as error:
            result.error = str(error)
            raise
        except KeyboardInterrupt:
            result.status, result.error = "stopped", "stopped by the user"
            raise
        finally:
            result.timing.total_s = time.monotonic() - started
            result.write(self.folder)
            if not self.keep:
                shutil.rmtree(self._work, ignore_errors=True)
        write_cards(self.spec, result, self.folder)
        write_report(result, self._pictures(), self.folder)
        return result

    @property
    def _work(self) -> Path:
        return self.folder / "federation"

    @property
    def _compares(self) -> bool:
        return self.baselines and not self.evaluate_only

    def _run(self, result: Result) -> None:
        folder = self._work / self.spec.name
        job = export_job(self.spec, folder, False, self.model, self.evaluate_only, self.against)
        model = self.folder / "model"
        (model / "baselines").mkdir(parents=True, exist_ok=True)
        submitted, started = time.time(), time.monotonic()
        view = RunView(self.console, Curves(self.folder / "tensorboard", self.trackers))
        for tracker in self.trackers:
            tracker.describe(self.spec.model_dump(mode="json", by_alias=True))
        with BaselinePool(self.spec.plan(), model / "baselines") as pool:
            self.console.print(_STARTING[self.backend].format(sites=len(self.sites)))
            self._warn_of_memory()
            with self._started(job) as running:
                with view:
                    try:
                        follow(running, view, self._logs)
                    finally:
                        note_incidents(result, view.state)
                        if running.events.is_file():
                            shutil.copy(running.events, self.folder / EVENTS_FILE)
                ended = time.monotonic()
                # The job's processes take seconds to end: baselines train meanwhile.
                if self._compares:
                    self.console.print("now each site alone, and all data in one place, for comparison …")
                    pool.start(self._baselines())
                best = running.fetch() / MODELS_FOLDER / BEST_MODEL
                shutil.copy(best, model / "model.safetensors")
                shutil.copy(best.with_name(PROVENANCE_FILE), self.folder / PROVENANCE_FILE)
                copy_beside_model(best.parent, model)
                self._keep_of_sites(running)
            state = view.state
            result.timing.startup_s = (state.started or submitted) - submitted + (state.ready_s or 0)
            result.timing.federation_s = ended - started
            note_rounds(result, state, self.spec)
            note_preparation(result, state, self.spec)
            scores = self._collect(pool)
        result.timing.baselines_s = time.monotonic() - ended
        note_scores(result, state, scores, self._data.set_aside, self.spec.plan().build_task().parts)
        self._test_attention(result)
        self._note_patients(result)
        values = self.spec.model_dump(mode="json", by_alias=True)
        bundle = self.spec.plan().write_bundle(model, self.spec.title, load_file(model / "model.safetensors"), values)
        complete_bundle(bundle, [model, self.folder])

    def _keep_of_sites(self, running: Running) -> None:
        """Copy what sites keep for themselves, where they compared models or looked for doubtful labels."""
        kept = []
        for site in self.sites:
            state, folder = running.state_of(site), self.folder / SITES_FOLDER / site
            found = [name for name in (CANDIDATES_FILE, DOUBTS_FILE) if (state / name).is_file()]
            for name in found:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(state / name, folder / name)
            if CANDIDATES_FILE in found and (state / OWN_MODEL).is_dir():
                shutil.copytree(state / OWN_MODEL, folder / OWN_MODEL, dirs_exist_ok=True)
            kept += [site] if found else []
        if kept:
            places = ", ".join(str(self.folder / SITES_FOLDER / site) for site in kept)
            self.console.print(f"what sites keep for themselves: {places}", markup=False, soft_wrap=True)

    def _note_patients(self, result: Result) -> None:
        for site, cases in self._data.cases.items():
            if site in result.sites:
                lists = {"train": cases.train, "validation": cases.validation, "test": cases.test}
                result.sites[site].patients = {name: len({case.patient for case in own}) for name, own in lists.items()}

    def _warn_of_memory(self) -> None:
        needed, free = len(self.sites) * _GIB_OF_A_SITE[self.backend], psutil.virtual_memory().available / 2**30
        if needed > free:
            self.console.print(
                f"warning: {len(self.sites)} sites need about {needed:.0f} GiB of memory, here {free:.0f} are free"
            )

    @property
    def _logs(self) -> Path:
        return self.folder / "logs"

    def _started(self, job: Path) -> AbstractContextManager[Running]:
        datasets = {site: {self.spec.data.dataset: folder} for site, folder in self.sites.items()}
        needed = self.spec.rounds.quorum or len(datasets)
        return backends.started(self.backend, job, datasets, needed, self._work, self._logs, self.port)

    def _baselines(self) -> list[Baseline]:
        tests: dict[str, tuple[Case, ...]] = {site: cases.test for site, cases in self._data.cases.items()}
        # Pooled first: it takes the longest.
        trained = {POOLED: (pool_cases(self._data.cases), tests)}
        trained |= {site: (cases, {site: cases.test}) for site, cases in self._data.cases.items()}
        plans: dict[str, Plan | None] = dict.fromkeys(trained)
        for name, plan in self.spec.plan().references().items():
            trained[name], plans[name] = trained[POOLED], plan
        most, last = self.spec.evaluation.most_cases, self.spec.evaluation.select == "last"
        return [
            Baseline(name, cases, scored_on, sample_cases(cases.validation, most, self.spec.seed), plans[name], last)
            for name, (cases, scored_on) in trained.items()
        ]

    def _collect(self, pool: BaselinePool) -> Scores:
        if not self._compares:
            return {}
        with progress_bar(self.console) as bar:
            task = bar.add_task("alone and pooled, steps", total=pool.total_steps)
            return pool.collect(lambda done: bar.update(task, completed=done))

    def _trained(self) -> Trainer:
        """Return the federated model, in evaluation mode."""
        first = next(iter(self._data.cases))
        trainer = Trainer(self.spec.plan(), self._data.cases[first], first)
        trainer.load_weights(load_file(self.folder / "model" / "model.safetensors"))
        trainer.network.eval()
        return trainer

    def _test_attention(self, result: Result) -> None:
        """Note what dropping tiles does to the answers, where each site had too few patients to tell by itself."""
        if self.spec.plan().model.kind != "bag" or result.attention is not None:
            return
        trainer, seed = self._trained(), self.spec.seed
        tests = slides_to_delete_from(pool_cases(self._data.cases).test)
        result.attention = deletion(trainer.task, trainer.network, tests, trainer.device, seed)
        if result.attention is None:
            result.attention_left_out = why_left_out(tests)

    def _pictures(self) -> dict[str, Picture]:
        """Return the model's output on one test case per site."""
        trainer = self._trained()
        shown = {site: cases.test[0] for site, cases in self._data.cases.items()}
        return {site: trainer.task.picture(trainer.network, case, trainer.device) for site, case in shown.items()}
