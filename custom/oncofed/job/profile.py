"""Federated profiles: running one, planning a job from it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from oncofed.atomic import write_whole
from oncofed.data.planning import PlanFile, make_plan
from oncofed.errors import FederationError
from oncofed.job import backends
from oncofed.job.flare import export_job
from oncofed.job.spec import ProfileJobSpec
from oncofed.report.result import Backend
from oncofed.rounds.events import PROFILE_EVENTS, EventReader, Failed, ProfileFinished

PLAN_FILE = "plan.json"
_POLL_SECONDS = 0.2


@dataclass
class ProfileRun:
    """A federated profile on this machine.

    Attributes:
        spec: the job.
        sites: site name -> folder of its dataset.
        backend: "federation" or "simulate".
        folder: of the run, new.
        console: where progress is shown.
        port: of the server; None takes a free one.
        keep: keep startup kits and FLARE's files.
        gpu_gib: memory of the smallest GPU of the sites in GiB, for the plan.
        residual: plan a network with a residual encoder.
    """

    spec: ProfileJobSpec
    sites: dict[str, Path]
    backend: Backend
    folder: Path
    console: Console
    port: int | None = None
    keep: bool = False
    gpu_gib: float = 8.0
    residual: bool = False

    def execute(self) -> PlanFile:
        """Run the profile, and return the plan that ``plan.json`` holds.

        Raises:
            FederationError: the run failed.
        """
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        backends.require_machine(self.folder)
        (self.folder / "job.yaml").write_text(self.spec.to_yaml(), encoding="utf-8")
        work = self.folder / "federation"
        try:
            finished = self._run(work)
        finally:
            if not self.keep:
                shutil.rmtree(work, ignore_errors=True)
        plan = self.spec.profile
        try:
            made = make_plan(
                finished.statistics,
                finished.patients,
                plan.modality,
                plan.dimensions,
                self.gpu_gib,
                classes=len(plan.classes) + 1 if plan.classes else 2,
                residual=self.residual,
            )
        except ValueError as error:
            raise FederationError(str(error)) from None
        write_whole(self.folder / PLAN_FILE, made.model_dump_json(indent=2, by_alias=True) + "\n")
        return made

    def _run(self, work: Path) -> ProfileFinished:
        job = export_job(self.spec, work / self.spec.name)
        logs = self.folder / "logs"
        datasets = {site: {self.spec.profile.dataset: folder} for site, folder in self.sites.items()}
        needed = self.spec.min_sites or len(datasets)
        self.console.print(f"starting {len(datasets)} sites, which count their own cases …")
        with backends.started(self.backend, job, datasets, needed, work, logs, self.port) as running:
            return self._wait(running, logs)

    def _wait(self, running: backends.Running, logs: Path) -> ProfileFinished:
        reader = EventReader(running.events, PROFILE_EVENTS)
        while True:
            status = running.ended()
            for event in reader.read():
                if isinstance(event, ProfileFinished):
                    return event
                if isinstance(event, Failed):
                    raise FederationError(f"{event.reason}. Logs: {logs}")
            if status is not None:
                raise FederationError(f"the profile ended early ({status}). Logs: {logs}")
            running.require_going()
            time.sleep(_POLL_SECONDS)
