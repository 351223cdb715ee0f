"""Where trials of a search run: on this machine, or in an alliance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from oncofed.alliance.session import EngineerSession
from oncofed.errors import FederationError
from oncofed.job import backends, remote
from oncofed.job.curves import Curves
from oncofed.job.flare import export_job
from oncofed.job.progress import RunProgress
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec
from oncofed.job.watch import RunView, follow
from oncofed.report.result import Backend, Result
from oncofed.rounds.events import EVENTS_FILE, MODELS_FOLDER, EventReader

CURVES_FOLDER = "tensorboard"
IsWorthIt = Callable[[RunProgress], bool]
Begin = Callable[[str], None]


class Trials(Protocol):
    """Runs trials, and tests the model of the best one."""

    @property
    def model(self) -> Path | None:
        """Weights that each trial starts from; None: the seed's."""

    def sites_by_name(self) -> dict[str, str] | None:
        """Return the folders of sites on this machine; None: they are an alliance's."""

    def run(
        self, spec: JobSpec, folder: Path, begun: str | None, begin: Callable[[str], None], watch: IsWorthIt
    ) -> bool:
        """Run a trial without a look at test cases.

        Its models are in ``folder/models`` then.

        Args:
            spec: the job with the trial's settings.
            folder: of the trial.
            begun: what ``begin`` was given by an ended process; None: the trial is new.
            begin: keeps by which name a trial that has begun is found again.
            watch: asked after each round; False ends the trial.

        Returns:
            Whether it came to its end.

        Raises:
            FederationError: it failed.
        """

    def test(self, spec: JobSpec, model: Path, folder: Path) -> Result:
        """Score a model on every site's test cases; its report is in ``folder``."""


@dataclass(frozen=True)
class LocalTrials:
    """Trials on this machine.

    Attributes:
        sites: site name -> folder of its data.
        backend: FLARE's simulator, or its real server and sites.
        console: for progress.
        model: weights that each trial starts from; None: the seed's.
    """

    sites: dict[str, Path]
    backend: Backend
    console: Console
    model: Path | None = None

    def sites_by_name(self) -> dict[str, str] | None:
        """Return the sites' folders."""
        return {name: str(folder.resolve()) for name, folder in sorted(self.sites.items())}

    def run(
        self, spec: JobSpec, folder: Path, begun: str | None, begin: Callable[[str], None], watch: IsWorthIt
    ) -> bool:
        """Run a trial; one that an ended process left begins anew."""
        work, logs, curves = folder / "federation", folder / "logs", folder.parent / CURVES_FOLDER / folder.name
        for left in (folder, curves):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(parents=True)
        datasets = {site: {spec.data.dataset: data} for site, data in self.sites.items()}
        try:
            job = export_job(spec, work / spec.name, model=self.model, test=False)
            with (
                backends.started(self.backend, job, datasets, len(datasets), work, logs) as running,
                RunView(self.console, Curves(curves)) as view,
            ):
                complete = follow(running, view, logs, watch)
                if complete:
                    shutil.copytree(running.fetch() / MODELS_FOLDER, folder / MODELS_FOLDER)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(logs, ignore_errors=True)  # of a trial that failed they stay
        return complete

    def test(self, spec: JobSpec, model: Path, folder: Path) -> Result:
        """Score a model on every site's test cases."""
        shutil.rmtree(folder, ignore_errors=True)
        return Run(
            spec=spec,
            sites=self.sites,
            backend=self.backend,
            folder=folder,
            console=self.console,
            baselines=False,
            model=model,
            evaluate_only=True,
        ).execute()


@dataclass(frozen=True)
class AllianceTrials:
    """Trials at the sites of an alliance.

    A trial that runs there goes on without this process, which finds it again.

    Attributes:
        engineer: the session.
        console: for progress.
        model: weights that each trial starts from; None: the seed's.
    """

    engineer: EngineerSession
    console: Console
    model: Path | None = None

    def sites_by_name(self) -> dict[str, str] | None:
        """Return None: the alliance knows its sites."""
        return None

    def run(
        self, spec: JobSpec, folder: Path, begun: str | None, begin: Callable[[str], None], watch: IsWorthIt
    ) -> bool:
        """Submit a trial, or find it again, and follow it to its end."""
        folder.mkdir(parents=True, exist_ok=True)
        job_id = begun or self._submit(spec, self.model, test=False)
        begin(job_id)
        worth = True

        def keep_on(state: RunProgress) -> bool:
            nonlocal worth
            worth = worth and watch(state)
            return worth

        ended = remote.watch(
            self.engineer, job_id, self.console, folder.parent / CURVES_FOLDER / folder.name, is_worth_it=keep_on
        )
        if not worth:
            return False
        state = RunProgress()
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            record = self.engineer.download(job_id, Path(temporary))
            for event in EventReader(record / EVENTS_FILE).read():
                state.apply(event)
            if state.finished is None:
                raise FederationError(state.failed or f"job {job_id} ended early ({ended})")
            shutil.rmtree(folder / MODELS_FOLDER, ignore_errors=True)
            shutil.copytree(record / MODELS_FOLDER, folder / MODELS_FOLDER)
        watch(state)  # rounds that went by between two looks
        return True

    def test(self, spec: JobSpec, model: Path, folder: Path) -> Result:
        """Have the sites score a model on their test cases."""
        shutil.rmtree(folder, ignore_errors=True)
        job_id = self._submit(spec, model, test=True)
        remote.watch(self.engineer, job_id, self.console, folder.with_name(CURVES_FOLDER) / folder.name)
        return remote.fetch(self.engineer, job_id, folder)

    def _submit(self, spec: JobSpec, model: Path | None, *, test: bool) -> str:
        with tempfile.TemporaryDirectory() as temporary:
            job = export_job(spec, Path(temporary) / spec.name, model=model, evaluate_only=test, test=test)
            return self.engineer.submit(job)
