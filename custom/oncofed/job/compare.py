"""Compares strategies, or ways to use a table, over the same sites and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from safetensors.torch import load_file

from oncofed.data.cases import pool_cases, usable_cases
from oncofed.errors import FederationError, SpecError
from oncofed.job.checks import check_sites, check_strategy
from oncofed.job.repeated import completed, run_once
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec
from oncofed.report.compare import write_plot
from oncofed.report.result import Backend, Result
from oncofed.tasks.comparison import compare
from oncofed.training import Trainer
from oncofed.training.plan import TABLE

COMPARISON_FILE = "comparison.json"


class Paired(BaseModel):
    """A variant less the first one on the same patients.

    Attributes:
        patients: on whom it rests.
        difference: in the metric.
        interval: 95 %, paired bootstrap; None: too few patients.
    """

    patients: int
    difference: float | None
    interval: tuple[float, float] | None


class Row(BaseModel):
    """Figures of one variant.

    Attributes:
        strategy: name of the variant: of a strategy, or of a fusion.
        mean: over sites and seeds, of the metric on test patients.
        by_seed: mean over sites, by seed.
        sites: mean over seeds, by site.
        worst: of the sites.
        spread: standard deviation over the sites.
        rounds_s: median seconds of a round.
        best_round: by seed.
        curve: mean validation score by round, of the first seed.
        failed: why it has no figures.
        paired: this variant less the first, on the same test patients of the first seed; None: not compared.
    """

    strategy: str
    mean: float | None = None
    by_seed: dict[str, float] = {}
    sites: dict[str, float] = {}
    worst: float | None = None
    spread: float | None = None
    rounds_s: float | None = None
    best_round: dict[str, int] = {}
    curve: dict[str, float] = {}
    failed: str | None = None
    paired: Paired | None = None


class Comparison(BaseModel):
    """Content of ``comparison.json``."""

    job: str
    metric: str
    metric_name: str
    backend: str
    rounds: int
    seeds: list[int]
    alone: float | None = None
    pooled: float | None = None
    rows: list[Row] = []
    environment: dict[str, str] = {}


@dataclass
class Compare:
    """Runs variants of a job.

    Attributes:
        specs: variant -> the job so changed.
        sites: site name -> folder.
        seeds: each variant runs once with each.
        backend: of the runs.
        folder: holds one folder a run; complete runs in it are not repeated.
        console: where progress is shown.
        baselines: also train each site alone and all data pooled, once.
        paired: also compare each variant's model with the first one's on the same patients.
    """

    specs: Mapping[str, JobSpec]
    sites: dict[str, Path]
    seeds: Sequence[int]
    backend: Backend
    folder: Path
    console: Console
    baselines: bool = True
    paired: bool = False

    def execute(self) -> Comparison:
        """Run what is missing; write ``comparison.json`` and ``comparison.svg``.

        Raises:
            SpecError: a variant does not fit the job.
            FederationError: no run was completed.
        """
        for spec in self.specs.values():
            check_strategy(spec, spec.plan().build_network())
            check_sites(spec, len(self.sites))
        first = next(iter(self.specs.values()))
        task = first.plan().build_task()
        comparison = Comparison(
            job=first.name,
            metric=task.metric,
            metric_name=task.metric_name,
            backend=self.backend,
            rounds=first.rounds.number,
            seeds=list(self.seeds),
        )
        for name, spec in self.specs.items():
            results, failed = self._all_seeds(name, spec)
            comparison.rows.append(_row(name, results, failed))
            for result in results.values():
                comparison.environment = result.environment
                if result.mean.alone is not None:
                    comparison.alone, comparison.pooled = result.mean.alone, result.mean.pooled
            self._write(comparison)
        if self.paired:
            self._pair(comparison)
            self._write(comparison)
        if all(row.mean is None for row in comparison.rows):
            raise FederationError(f"no variant was completed. Logs: {self.folder}")
        write_plot(comparison.model_dump(), self.folder / "comparison.svg")
        return comparison

    def _pair(self, comparison: Comparison) -> None:
        """Compare each variant's model with the first one's, by the first seed's runs."""
        outcomes: dict[str, list[tuple[str, Any]]] = {}
        for row in comparison.rows:
            folder = completed(self.folder / f"{row.strategy}-seed-{self.seeds[0]}")
            if folder is not None:
                spec = self.specs[row.strategy].with_seed(self.seeds[0])
                outcomes[row.strategy] = outcomes_of_test(spec, self.sites, folder / "model" / "model.safetensors")
        first = outcomes.get(comparison.rows[0].strategy)
        for row in comparison.rows[1:]:
            other = outcomes.get(row.strategy)
            if first is None or other is None:
                continue
            task = self.specs[row.strategy].plan().build_task()
            patients = [patient for patient, _ in other]
            found = compare(task, patients, [one for _, one in other], [one for _, one in first])
            row.paired = Paired(patients=found.patients, difference=found.difference, interval=found.interval)

    def _all_seeds(self, name: str, spec: JobSpec) -> tuple[dict[int, Result], str | None]:
        """Return results by seed, and why a later run failed."""
        results: dict[int, Result] = {}
        try:
            for seed in self.seeds:
                results[seed] = self._run(name, spec, seed)
        except FederationError as error:
            return results, str(error)
        return results, None

    def _run(self, name: str, spec: JobSpec, seed: int) -> Result:
        run = Run(
            spec=spec.with_seed(seed),
            sites=self.sites,
            backend=self.backend,
            folder=self.folder / f"{name}-seed-{seed}",
            console=self.console,
            baselines=self.baselines and name == next(iter(self.specs)) and seed == self.seeds[0],
        )
        return run_once(run)

    def _write(self, comparison: Comparison) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")


def with_strategies(spec: JobSpec, names: Sequence[str]) -> dict[str, JobSpec]:
    """Return the job with each strategy, by its name.

    The job's own strategy keeps its settings.

    Raises:
        SpecError: a strategy is not known, or does not fit the job's rounds.
    """
    return {name: spec.changed({"strategy": {"name": name}}) for name in names}


def with_fusions(spec: JobSpec, names: Sequence[str]) -> dict[str, JobSpec]:
    """Return the job with each way to use its table: ``none``, ``concat``, ``film``, or the ``table`` alone.

    Raises:
        SpecError: the job has no covariates, or a way is not known.
    """
    table = spec.plan().of_table_alone()
    if table is None:
        raise SpecError(
            f"{spec.name} has no image beside a table: name columns in data.covariates, and a network of images"
        )
    alone = JobSpec.model_validate({**spec.model_dump(by_alias=True), "task": table.task, "model": table.model})
    return {name: alone if name == TABLE else spec.changed({"model": {"fusion": name}}) for name in names}


def outcomes_of_test(spec: JobSpec, sites: Mapping[str, Path], model: Path) -> list[tuple[str, Any]]:
    """Return patient and outcome of each site's test cases.

    Args:
        spec: of the model.
        sites: site name -> folder.
        model: its weights.
    """
    plan, found = spec.plan(), list[tuple[str, Any]]()
    trainer = None
    for site, folder in sites.items():
        cases = pool_cases({site: usable_cases(folder, plan.data, plan.supervision(), plan.seed, site).cases})
        trainer = trainer or Trainer(plan, cases, site)
        trainer.load_weights(load_file(model))
        trainer.evaluate(cases.test, keep=found)
    return found


def _row(strategy: str, results: dict[int, Result], failed: str | None) -> Row:
    sites: dict[str, list[float]] = {}
    for result in results.values():
        for site, scores in result.sites.items():
            # Sites with a personal model (Ditto) use that one.
            score = scores.personal if scores.personal is not None else scores.federated
            if score is not None:
                sites.setdefault(site, []).append(score)
    means = {site: statistics.fmean(values) for site, values in sorted(sites.items())}
    if not means:
        return Row(strategy=strategy, failed=failed or "no site scored it")
    first = next(iter(results.values()))
    return Row(
        strategy=strategy,
        mean=statistics.fmean(means.values()),
        by_seed={str(seed): r.mean.federated for seed, r in results.items() if r.mean.federated is not None},
        sites=means,
        worst=min(means.values()),
        spread=statistics.pstdev(means.values()),
        rounds_s=statistics.median(seconds for r in results.values() for seconds in r.timing.rounds_s),
        best_round={str(seed): r.best_round for seed, r in results.items() if r.best_round is not None},
        curve=first.curves.get("validation", {}),
        failed=failed,
    )
