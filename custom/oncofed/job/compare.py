"""Compares strategies over the same sites and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from oncofed.errors import FederationError
from oncofed.job.checks import check_sites, check_strategy
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec
from oncofed.report.compare import write_plot
from oncofed.report.result import Backend, Result, read_result

COMPARISON_FILE = "comparison.json"


class Row(BaseModel):
    """Figures of one strategy.

    Attributes:
        strategy: its name.
        mean: over sites and seeds, of the metric on test patients.
        by_seed: mean over sites, by seed.
        sites: mean over seeds, by site.
        worst: of the sites.
        spread: standard deviation over the sites.
        rounds_s: median seconds of a round.
        best_round: by seed.
        curve: mean validation score by round, of the first seed.
        failed: why it has no figures.
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
    """Runs a job with several strategies.

    Attributes:
        specs: the job with each strategy.
        sites: site name -> folder.
        seeds: each strategy runs once with each.
        backend: of the runs.
        folder: holds one folder a run; complete runs in it are not repeated.
        console: where progress is shown.
        baselines: also train each site alone and all data pooled, once.
    """

    specs: Sequence[JobSpec]
    sites: dict[str, Path]
    seeds: Sequence[int]
    backend: Backend
    folder: Path
    console: Console
    baselines: bool = True

    def execute(self) -> Comparison:
        """Run what is missing; write ``comparison.json`` and ``comparison.svg``.

        Raises:
            SpecError: a strategy does not fit the job.
            FederationError: no run was completed.
        """
        for spec in self.specs:
            check_strategy(spec, spec.plan().build_network())
            check_sites(spec, len(self.sites))
        first = self.specs[0]
        task = first.plan().build_task()
        comparison = Comparison(
            job=first.name,
            metric=task.metric,
            metric_name=task.metric_name,
            backend=self.backend,
            rounds=first.rounds.number,
            seeds=list(self.seeds),
        )
        for spec in self.specs:
            results, failed = self._all_seeds(spec)
            comparison.rows.append(_row(spec.strategy.name, results, failed))
            for result in results.values():
                comparison.environment = result.environment
                if result.mean.alone is not None:
                    comparison.alone, comparison.pooled = result.mean.alone, result.mean.pooled
            self._write(comparison)
        if all(row.mean is None for row in comparison.rows):
            raise FederationError(f"no strategy was completed. Logs: {self.folder}")
        write_plot(comparison.model_dump(), self.folder / "comparison.svg")
        return comparison

    def _all_seeds(self, spec: JobSpec) -> tuple[dict[int, Result], str | None]:
        """Return results by seed, and why a later run failed."""
        results: dict[int, Result] = {}
        try:
            for seed in self.seeds:
                results[seed] = self._run(spec, seed)
        except FederationError as error:
            return results, str(error)
        return results, None

    def _run(self, spec: JobSpec, seed: int) -> Result:
        folder = self.folder / f"{spec.strategy.name}-seed-{seed}"
        if (folder / "result.json").is_file():
            result = read_result(folder)
            if result.status == "completed":
                self.console.print(f"{folder.name}: completed before")
                return result
            folder = next(f for n in range(2, 1000) if not (f := folder.with_name(f"{folder.name}-{n}")).exists())
        baselines = self.baselines and spec is self.specs[0] and seed == self.seeds[0]
        self.console.rule(f"{spec.strategy.name}, seed {seed}")
        seeded = JobSpec.model_validate({**spec.model_dump(by_alias=True), "seed": seed})
        return Run(
            spec=seeded,
            sites=self.sites,
            backend=self.backend,
            folder=folder,
            console=self.console,
            baselines=baselines,
        ).execute()

    def _write(self, comparison: Comparison) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")


def with_strategies(spec: JobSpec, names: Sequence[str]) -> Iterator[JobSpec]:
    """Yield the job with each strategy.

    The job's own strategy keeps its settings.

    Raises:
        SpecError: a strategy is not known, or does not fit the job's rounds.
    """
    for name in names:
        changes: dict[str, dict[str, Any]] = {"strategy": {"name": name}}
        yield spec.changed(changes)


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
