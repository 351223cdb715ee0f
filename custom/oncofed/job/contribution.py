"""What each site brings to the others: the same federation with it and without it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from scipy import stats

from oncofed.errors import SpecError
from oncofed.job.checks import check_sites, check_strategy
from oncofed.job.repeated import run_once
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec
from oncofed.report.result import Backend, Result

CONTRIBUTION_FILE = "contribution.json"
_LEVEL = 0.95
_EVERYBODY = "everybody"


class SiteContribution(BaseModel):
    """What a site brings to the others.

    Attributes:
        site: its name.
        train_cases: of the first seed.
        by_seed: mean score of the other sites with it, less their mean without it, by seed.
        mean: over seeds; None: no seed has it.
        interval: 95 %, Student's t over seeds; None: of one seed there is none.
        by_site: the same for each other site, mean over seeds.
    """

    site: str
    train_cases: int = 0
    by_seed: dict[str, float] = {}
    mean: float | None = None
    interval: tuple[float, float] | None = None
    by_site: dict[str, float] = {}


class Contributions(BaseModel):
    """Content of ``contribution.json``; the site that brings least comes first."""

    job: str
    metric: str
    metric_name: str
    backend: str
    rounds: int
    seeds: list[int]
    sites: list[SiteContribution] = []
    environment: dict[str, str] = {}


@dataclass
class LeaveOneOut:
    """Runs a job with all sites, and again without each of them.

    Attributes:
        spec: the job.
        sites: site name -> folder; three at least.
        seeds: each federation runs once with each.
        backend: of the runs.
        folder: holds one folder a run; complete runs in it are not repeated.
        console: where progress is shown.
    """

    spec: JobSpec
    sites: dict[str, Path]
    seeds: Sequence[int]
    backend: Backend
    folder: Path
    console: Console

    def execute(self) -> Contributions:
        """Run what is missing; write ``contribution.json`` after each seed.

        Raises:
            SpecError: there are too few sites, or no site's scores would be known.
            FederationError: a run failed.
        """
        self._check()
        task = self.spec.plan().build_task()
        found = Contributions(
            job=self.spec.name,
            metric=task.metric,
            metric_name=task.metric_name,
            backend=self.backend,
            rounds=self.spec.rounds.number,
            seeds=[],
        )
        together: dict[int, Result] = {}
        without: dict[str, dict[int, Result]] = {site: {} for site in self.sites}
        for seed in self.seeds:
            together[seed] = self._run(_EVERYBODY, self.sites, seed)
            for site in self.sites:
                others = {name: folder for name, folder in self.sites.items() if name != site}
                without[site][seed] = self._run(f"without-{site}", others, seed)
            rows = [contribution(site, together, runs) for site, runs in without.items()]
            found.sites = sorted(rows, key=lambda row: (math.inf if row.mean is None else row.mean, row.site))
            found.seeds, found.environment = list(together), together[seed].environment
            self._write(found)
        return found

    def _check(self) -> None:
        if len(self.sites) < 3:
            raise SpecError(
                f"found {len(self.sites)} sites, expected 3 at least: without one of them two must be left to train "
                "together"
            )
        if self.spec.federation().sums_scores:
            raise SpecError(
                "privacy.secure_aggregation.scores: found summed, under which no site's score is known: expected each, "
                "for sites on this machine"
            )
        check_strategy(self.spec, self.spec.plan().build_network())
        check_sites(self.spec, len(self.sites) - 1)

    def _run(self, name: str, sites: dict[str, Path], seed: int) -> Result:
        run = Run(
            spec=self.spec.with_seed(seed),
            sites=sites,
            backend=self.backend,
            folder=self.folder / f"{name}-seed-{seed}",
            console=self.console,
            baselines=False,
        )
        return run_once(run)

    def _write(self, found: Contributions) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CONTRIBUTION_FILE).write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")


def contribution(site: str, together: Mapping[int, Result], without: Mapping[int, Result]) -> SiteContribution:
    """Return what a site brings to the others' test scores.

    Args:
        site: that is left out.
        together: results with all sites, by seed.
        without: results without it, by seed.
    """
    by_site: dict[str, list[float]] = {}
    by_seed: dict[str, float] = {}
    for seed, other in without.items():
        brought = {}
        for name, scores in other.sites.items():
            known = together[seed].sites.get(name)
            if known is not None and known.federated is not None and scores.federated is not None:
                brought[name] = known.federated - scores.federated
                by_site.setdefault(name, []).append(brought[name])
        if brought:
            by_seed[str(seed)] = statistics.fmean(brought.values())
    values = list(by_seed.values())
    first = next(iter(together.values()))
    return SiteContribution(
        site=site,
        train_cases=first.sites[site].train_cases if site in first.sites else 0,
        by_seed=by_seed,
        mean=statistics.fmean(values) if values else None,
        interval=_interval(values),
        by_site={name: statistics.fmean(found) for name, found in sorted(by_site.items())},
    )


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach
