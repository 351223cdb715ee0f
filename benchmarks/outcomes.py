"""Survival whose law is known, and findings of which some are unknown, federated.

The masks of hippocampus volumes (Medical Segmentation Decathlon, task 4) stand for images. A patient's hazard is 0.02 ·
exp(-1.2 · v) a month, with v the structure's volume of mean 0 and spread 1; follow-up ends between 12 and 60 months.
Findings are that the whole, its front and its back are large, above the median but for a little noise; then 30 % of
what is said of training and validation patients is unknown. Scores are of all sites' test patients together, whose
findings are all known. How far a model's concordance is from the law's own, which Cox's model of the true volume has
as well, is told with its interval over these patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from harness.bench import Bench, Settings
from hippocampus import DATA, SITES, TRAINING, counting_model, hippocampus, standardised_volumes, write_sites
from in_memory import cases_of, known, pooled_and_alone, scores, trained_together
from oncofed.data.brain_outcomes import Law
from oncofed.job.spec import JobSpec
from oncofed.tasks.survival.figures import concordance
from oncofed.tasks.survival.follow_up import FollowUps

LAW = Law(per_size=-1.2, per_decade=0.0)
HORIZON = 36.0
FINDINGS = ("large", "large front", "large back")
# The masks' front is 1, their back 2.
_WINDOW = [0, 2]
_UNKNOWN = 0.3
_SEEDS = (1, 2, 3)
# Of survival, chosen on seeds 11 to 22. Points 3 mm apart miss a part of a volume; without so much weight decay the
# network learns shapes of its hundred patients by heart, and federated and pooled drift apart.
_SURVIVAL: dict[str, dict[str, Any]] = {
    "data": {"spacing": [2, 2, 2], "patch": [24, 24, 24]},
    "training": {"weight_decay": 1.0},
}
_RESAMPLES = 2000


@dataclass(frozen=True)
class Tested:
    """Test patients of one seed.

    Attributes:
        risks: by the federated model, (patient,).
        law: the law's own log hazards, (patient,).
        truth: what became of them.
    """

    risks: NDArray[np.float64]
    law: NDArray[np.float64]
    truth: FollowUps

    def behind_law(self, drawn: NDArray[np.int64] | slice = slice(None)) -> float:
        """Return the model's concordance less the law's, of drawn patients."""
        truth = FollowUps(self.truth.times[drawn], self.truth.events[drawn])
        ours, best = (known(concordance(risks[drawn], truth, HORIZON)) for risks in (self.risks, self.law))
        return ours - best


def run(bench: Bench) -> None:
    """Measure both with three seeds: federated, pooled and alone."""
    if bench.quick or not hippocampus():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("survival, federated", "concordance", why)
        return
    settings: Settings = {"sites": len(SITES), "seeds": len(_SEEDS)}
    survival: dict[str, list[float]] = {}
    findings: dict[str, list[float]] = {}
    tested: list[Tested] = []
    for seed in _SEEDS:
        bench.doing(f"survival, seed {seed}")
        found, patients = survival_scores(bench.folder / f"survival-{seed}", seed)
        tested.append(patients)
        for how, score in found.items():
            survival.setdefault(how, []).append(score)
        for words, share in (("all known", 0.0), ("30 % unknown", _UNKNOWN)):
            bench.doing(f"findings, {words}, seed {seed}")
            for how, score in findings_scores(bench.folder / f"findings-{share:g}-{seed}", share, seed).items():
                findings.setdefault(f"{words}, {how}", []).append(score)
    for how, values in survival.items():
        bench.measured(f"survival, {how}", values, "concordance", "higher", settings)
    low, high = difference_interval(tested)
    apart = [one.behind_law() for one in tested]
    note = f"95 % interval of the mean over patients: {low:.3f} to {high:.3f}"
    bench.measured("survival, federated less the law", apart, "concordance", "higher", settings, note=note)
    for how, values in findings.items():
        bench.measured(f"findings, {how}", values, "AUROC", "higher", settings)


def difference_interval(tested: Sequence[Tested]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over seeds of ``behind_law``, paired: both rank the patients drawn."""
    rng = np.random.default_rng(0)
    drawn = [
        np.mean([one.behind_law(rng.integers(0, len(one.law), len(one.law))) for one in tested])
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def survival_scores(folder: Path, seed: int) -> tuple[dict[str, float], Tested]:
    """Return the concordance by the way a model was trained, and the law's own; and the test patients."""
    masks = hippocampus()
    volumes = standardised_volumes(masks)
    rng = np.random.default_rng(seed)
    entries = [
        {"targets": {"survival": LAW.follow_up(float(volume), 60, rng)}, "tags": {"volume": f"{volume:.6f}"}}
        for volume in volumes
    ]
    declared = {"survival": {"kind": "survival", "unit": "months"}}
    sites = write_sites(folder / "data", masks, entries, declared, rng.permutation(len(masks)))
    target = {"name": "survival", "kind": "survival", "unit": "months", "horizon": HORIZON, "intervals": 8}
    spec = _job(target, 8, seed).changed(_SURVIVAL)
    judge = trained_together(spec, sites, folder)
    kept: list[tuple[str, Any]] = []
    federated = known(judge.evaluate(judge.cases.test, keep=kept).mean)
    follow_ups = np.array([outcome.truths["survival"] for _, outcome in kept])
    # An answer is survival at the end of each interval.
    risks = np.array([1 - outcome.answers["survival"][-1] for _, outcome in kept])
    law = [LAW.log_hazard(float(case.entry.tags["volume"]), 60) for case in judge.cases.test if case.entry]
    tested = Tested(risks, np.array(law), FollowUps(follow_ups[:, 0], follow_ups[:, 1] > 0))
    best = known(concordance(tested.law, tested.truth, HORIZON))
    return {"federated": federated, **pooled_and_alone(spec, sites, folder), "the law": best}, tested


def findings_scores(folder: Path, unknown: float, seed: int) -> dict[str, float]:
    """Return the mean AUROC of the findings by the way a model was trained.

    Args:
        folder: for the data.
        unknown: share of training and validation patients' findings that nobody looked for.
        seed: of the patients.
    """
    masks = hippocampus()
    rng = np.random.default_rng(seed)
    traits = np.array([_traits(path) for path in masks])
    traits = (traits - traits.mean(axis=0)) / traits.std(axis=0) + rng.normal(0, 0.3, traits.shape)
    holds = traits > np.median(traits, axis=0)
    order = rng.permutation(len(masks))
    looked = rng.random(holds.shape) >= unknown
    declared = {"findings": {"kind": "labels"}}
    entries: list[Mapping[str, Any]] = [
        {"targets": {"findings": dict(zip(FINDINGS, map(bool, of_patient), strict=True))}} for of_patient in holds
    ]
    target = {"name": "findings", "kind": "labels", "findings": list(FINDINGS)}
    spec = _job(target, 8, seed).changed({"data": {"window": _WINDOW}})
    plan = spec.plan()
    # Which patients are tested follows from names and values: it is asked while all are known, and then kept.
    whole = cases_of(plan, write_sites(folder / "whole", masks, entries, declared, order))
    split = {
        case.name: name
        for cases in whole.values()
        for name, own in (("training", cases.train), ("validation", cases.validation), ("test", cases.test))
        for case in own
    }
    named = [split[path.name.partition(".")[0]] for path in masks]
    entries = [
        {
            "targets": {
                "findings": {
                    name: bool(value)
                    for name, value, seen in zip(FINDINGS, holds[number], looked[number], strict=True)
                    if seen or named[number] == "test"
                }
            },
        }
        for number in range(len(masks))
    ]
    sites = write_sites(folder / "data", masks, entries, declared, order, named)
    return scores(spec, sites, folder)


def _traits(path: Path) -> tuple[float, float, float]:
    """Return the volumes of the whole, the front and the back."""
    values = np.asarray(nib.load(path).dataobj)
    front, back = (float(np.count_nonzero(values == part)) for part in (1, 2))
    return front + back, front, back


def _job(target: Mapping[str, Any], rounds: int, seed: int) -> JobSpec:
    values = {
        "name": "outcome",
        "title": "outcome",
        "data": DATA,
        "targets": [dict(target)],
        "model": counting_model(),
        "training": TRAINING,
        "rounds": {"number": rounds},
        "evaluation": {"select": "last"},
        "seed": seed,
    }
    return JobSpec.model_validate(values)
