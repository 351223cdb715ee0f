"""What long local turns cost between uneven sites, by algorithm and by what becomes of momentum.

Hippocampus volumes (Medical Segmentation Decathlon, task 4) are dealt to four sites as ``oncofed data split --parts 4
--skew`` deals them: sizes that halve, or quarters by the labelled volume in Dirichlet's shares. Each federation takes
the same number of optimizer steps at each site; steps per round divide them into few or many rounds, which is what
travels. One factor at a time is changed from the first cell. Scores are means over the sites' held-out patients, each
of the model that the site uses. Beside each cell stand, with as many steps, a model of all sites' pooled patients and
one of each site alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench import Bench, Settings
from harness.results import Baseline as Beside
from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.cases import Cases, pool_cases, usable_cases
from oncofed.data.partition import deal_in_parts
from oncofed.data.register import RegisterOptions, register
from oncofed.data.skew import parse_skew
from oncofed.job.spec import JobSpec, read_job
from oncofed.rounds.events import Event, Finished
from oncofed.training.baselines import Baseline, train_baseline

# Site -> score of its held-out patients.
Scores = dict[str, float]

SKEWS = ("size:0.5", "dirichlet:0.3")
STEPS_PER_ROUND = (5, 25, 100)
SITES, SEEDS, TOTAL_STEPS = 4, (1, 2, 3), 200
# Name -> strategy, and normalisation of the network; fedbn needs batch normalisation, and stands beside fedavg with it.
ALGORITHMS: dict[str, tuple[str, str]] = {
    "fedavg": ("fedavg", "instance"),
    "fedprox": ("fedprox", "instance"),
    "scaffold": ("scaffold", "instance"),
    "fedavg, batch norm": ("fedavg", "batch"),
    "fedbn": ("fedbn", "batch"),
}


@dataclass(frozen=True)
class Cell:
    """One combination of factors.

    Attributes:
        skew: how the sites differ.
        steps: of a round.
        algorithm: of ``ALGORITHMS``.
        state: what becomes of momentum.
    """

    skew: str
    steps: int
    algorithm: str
    state: str = "kept"

    @property
    def name(self) -> str:
        """Of the figure."""
        return f"{self.skew}, {self.algorithm}, {self.steps} steps a round, momentum {self.state}"

    @property
    def rounds(self) -> int:
        """Of the federation, each of which sends the model to every site and back."""
        return TOTAL_STEPS // self.steps


def cells() -> Iterator[Cell]:
    """Yield the cells: algorithms by steps per round, and momentum with the first algorithm."""
    for skew in SKEWS:
        for algorithm in ALGORITHMS:
            yield from (Cell(skew, steps, algorithm) for steps in STEPS_PER_ROUND)
        yield from (Cell(skew, steps, "fedavg", "reset") for steps in STEPS_PER_ROUND)


def run(bench: Bench) -> None:
    """Measure every cell with three seeds."""
    source = Path(os.environ.get("ONCOFED_DATA", ""), "hippocampus")
    if bench.quick or not source.is_dir():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("sites uneven, fedavg", "Dice", why)
        return
    sites = {(skew, seed): dealt(source, bench.folder / "data", skew, seed) for skew in SKEWS for seed in SEEDS}
    beside: dict[str, list[tuple[Scores, Scores]]] = {}
    for (skew, seed), data in sites.items():
        bench.doing(f"{skew}, pooled and alone, seed {seed}")
        beside.setdefault(skew, []).append(without_federation(skew, seed, data, bench.folder))
    for number, cell in enumerate(cells()):
        found = []
        for seed in SEEDS:
            bench.doing(f"{cell.name}, seed {seed}")
            found.append(measured(cell, seed, sites[cell.skew, seed], bench.folder / f"{number}-{seed}"))
        settings: Settings = {"sites": SITES, "seeds": len(SEEDS), "steps": TOTAL_STEPS, "rounds": cell.rounds}
        pooled, alone = zip(*beside[cell.skew], strict=True)
        for of, figure in (("mean of the sites", _mean), ("worst site", _worst)):
            bench.measured(
                f"{cell.name}, {of}",
                [figure(scores) for scores in found],
                "Dice",
                "higher",
                settings,
                baseline=Beside(name="pooled", samples=[figure(scores) for scores in pooled]),
                others=[Beside(name="alone", samples=[figure(scores) for scores in alone])],
            )


def _mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)


def _worst(scores: Scores) -> float:
    return min(scores.values())


def dealt(source: Path, folder: Path, skew: str, seed: int) -> dict[str, Path]:
    """Register the dataset and deal it; return folders by site."""
    registered = folder / "hippocampus"
    if not registered.is_dir():
        register(RegisterOptions(source=source, out=registered, name="hippocampus"))
    return deal_in_parts(registered, folder / f"{skew.replace(':', '-')}-{seed}", SITES, parse_skew(skew), seed=seed)


def job(cell: Cell, seed: int) -> JobSpec:
    """Return the job of a cell: the shipped one, smaller and coarser."""
    strategy, norm = ALGORITHMS[cell.algorithm]
    changes: dict[str, dict[str, Any]] = {
        "data": {"spacing": [2, 2, 2], "patch": [16, 24, 16], "split": {"validation": 0.2, "test": 0.25}},
        "model": {"channels": [8, 16, 32], "norm": norm},
        "training": {"steps_per_round": cell.steps, "batch_size": 4, "optimizer_state": cell.state},
        "rounds": {"number": cell.rounds},
        "evaluation": {"select": "last"},
        "strategy": {"name": strategy},
    }
    return read_job("hippocampus_segmentation").changed(changes).with_seed(seed)


def without_federation(skew: str, seed: int, sites: dict[str, Path], folder: Path) -> tuple[Scores, Scores]:
    """Train on the sites' pooled patients, and on each site's alone, as many steps as a federation's site takes."""
    plan = job(Cell(skew, STEPS_PER_ROUND[-1], "fedavg"), seed).plan()
    own = {
        site: usable_cases(data, plan.data, plan.supervision(), plan.seed, site).cases for site, data in sites.items()
    }

    def scores(cases: Cases, of: Collection[str]) -> Scores:
        tests = {site: own[site].test for site in of}
        one = Baseline("without-federation", cases, tests, cases.validation, keeps_last=True)
        return {site: _known(score.mean) for site, score in train_baseline(plan, one, folder, None).items()}

    alone = [scores(cases, [site]) for site, cases in own.items()]
    return scores(pool_cases(own), own.keys()), {site: score for one in alone for site, score in one.items()}


def _known(score: float | None) -> float:
    if score is None:
        raise ValueError("a site has no patients to score; deal the patients to fewer sites")
    return score


def measured(cell: Cell, seed: int, sites: dict[str, Path], folder: Path) -> Scores:
    """Train a cell in memory; return the score of each site's held-out patients."""
    spec, found = job(cell, seed), Scores()
    plan, federation = spec.plan(), spec.federation()
    running = {
        site: InProcessSite(plan, federation, SiteContext(site=site, data=data, state=folder / site))
        for site, data in sites.items()
    }

    def record(event: Event) -> None:
        if isinstance(event, Finished):
            found.update({site: one["mean"] for site, one in event.test.items() if one["mean"] is not None})

    train_in_memory(plan, federation, running, folder, record)
    return found
