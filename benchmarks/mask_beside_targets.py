"""A mask and survival learned by one network, and each alone.

MRI of the hippocampus (Medical Segmentation Decathlon, task 4) at three sites; survival follows the stated law of
``oncofed.data.hippocampus_outcomes``: the smaller the structure, the larger the hazard. One network learns both with
the job ``hippocampus_survival``, on a coarser grid. The mask alone is a segmentation by the same UNet; survival alone
is the same job whose mask counts next to nothing. Scores are of all sites' test patients together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Bench, Settings
from in_memory import cases_of, evaluations, known
from oncofed.data.cases import pool_cases
from oncofed.data.hippocampus_outcomes import state_outcomes
from oncofed.data.partition import deal_to_sites
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.survival.figures import concordance
from oncofed.tasks.survival.follow_up import FollowUps

_SEEDS, _SITES, _HORIZON = (1, 2, 3), 3, 36.0
# Next to nothing: a weight is above zero.
_NOTHING = 1e-6
_STEPS, _ROUNDS = 25, 8
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"spacing": [3, 3, 3], "patch": [16, 24, 16], "split": {"validation": 0.05, "test": 0.35}},
    "model": {"channels": [8, 16, 32]},
    "training": {"steps_per_round": _STEPS, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 10},
    "rounds": {"number": _ROUNDS},
}
# What a job's figures are called -> what they are.
_FIGURES = {"structures": "Dice", "survival": "concordance"}


def run(bench: Bench) -> None:
    """Measure each way with three seeds, federated and pooled."""
    root = Path(os.environ.get("ONCOFED_DATA", ""), "hippocampus")
    if bench.quick or not (root / "dataset.json").is_file():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("a mask and survival together, federated", "Dice", why)
        return
    found: dict[tuple[str, str], list[float]] = {}
    for seed in _SEEDS:
        sites = make_sites(root, bench.folder / f"data-{seed}", seed)
        for name, spec in jobs(seed).items():
            bench.doing(f"{name}, seed {seed}")
            for words, figures in scores(name, spec, sites, bench.folder / f"{name}-{seed}").items():
                for what, value in figures.items():
                    found.setdefault((words, what), []).append(value)
        found.setdefault(("survival, the law", "concordance"), []).append(law_score(jobs(seed)["together"], sites))
    settings: Settings = {"sites": _SITES, "seeds": len(_SEEDS), "rounds": _ROUNDS, "steps": _STEPS}
    for (words, what), values in found.items():
        bench.measured(words, values, what, "higher", settings)


def make_sites(root: Path, folder: Path, seed: int) -> dict[str, Path]:
    """Deal the patients to sites, and state their outcomes."""
    sites = deal_to_sites(root, folder, [1] * _SITES, seed)
    state_outcomes(sites, seed)
    return sites


def jobs(seed: int) -> dict[str, JobSpec]:
    """Return the jobs by name."""
    together = read_job("hippocampus_survival").changed(CHANGES).with_seed(seed)
    mask, survival = (target.model_dump(mode="json") for target in together.task.targets)  # type: ignore[attr-defined]
    values = together.model_dump(mode="json", by_alias=True)

    def weighed(weight: float) -> JobSpec:
        task = {"type": "mask_targets", "targets": [{**mask, "weight": weight}, survival]}
        return JobSpec.model_validate({**values, "task": task})

    return {
        "together": together,
        "together, each weighs 1": weighed(1),
        "mask alone": JobSpec.model_validate({**values, "task": mask["mask"]}),
        "survival alone": weighed(_NOTHING),
    }


def scores(name: str, spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """Return what a job's models reach, by what was learned and the way of training."""
    found = {}
    for how, evaluation in evaluations(spec, sites, folder).items():
        if name == "mask alone":
            figures = {"Dice": known(evaluation.mean)}
        else:
            figures = {what: evaluation.by_class[target] for target, what in _FIGURES.items()}
        if name == "survival alone":
            del figures["Dice"]  # of a mask that was hardly learned
        found[f"{name}, {how}"] = figures
    return found


def law_score(spec: JobSpec, sites: Mapping[str, Path]) -> float:
    """Return the concordance of the law's own hazards over the test patients."""
    test = [case.entry for case in pool_cases(cases_of(spec.plan(), sites)).test if case.entry]
    stated: list[Any] = [entry.targets["survival"] for entry in test]
    truth = FollowUps(np.array([one.time for one in stated]), np.array([one.event for one in stated]))
    return known(concordance(np.array([float(entry.tags["log_hazard"]) for entry in test]), truth, _HORIZON))
