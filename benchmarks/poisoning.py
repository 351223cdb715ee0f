"""Effect of one malicious site of five, by strategy.

A real server and real sites, poisoned updates and labels. The sites are alike: patients of one scanner, dealt
evenly. One of them trains like the others and then sends something else, or trains on masks with swapped classes.
The score is the mean Dice of the final best model on the test patients of the four good sites.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from brain import brain_job
from fault_lab import Lab, lab, poison
from harness.bench import Bench, Settings
from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.spec import JobSpec

_SITES, _BAD = 5, "site-5"
_SWAPPED = "brain_tissue_swapped"
_STRATEGIES = ("fedavg", "median", "trimmed_mean", "krum", "clipped_mean")
# Attack -> its filter (see ``poison.Poison``); swapped labels need none.
ATTACKS = {
    "nothing": "none",
    "its update times -1": "flip",
    "its update times -4": "reverse",
    "its update times 10": "scale",
    "NaN": "nan",
    "its first update again and again": "stale",
    "classes swapped in its masks": "none",
}
# Intake refuses such updates under every strategy.
_AT_THE_DOOR = {"scale", "nan"}
_QUICK = ("nothing", "its update times 10")
_LONGEST_SECONDS = 300.0


def make_sites(folder: Path, test: int) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Write images; return folders by site, and poisoned ones.

    The poisoned ones have the bad site's masks swapped.
    """
    alike = tuple(
        replace(HOSPITALS[0], name=f"site-{n}", train=2, validation=1, test=test) for n in range(1, _SITES + 1)
    )
    sites = make_hospitals(folder, seed=1, hospitals=alike)
    swapped = folder / "swapped"
    shutil.copytree(sites[_BAD], swapped)
    for path in (swapped / "labelsTr").iterdir():
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        other = np.where(labels == 1, 2, np.where(labels == 2, 1, labels)).astype(labels.dtype)
        nib.save(nib.Nifti1Image(other, image.affine, image.header), path)
    return sites, {site: {_SWAPPED: swapped if site == _BAD else path} for site, path in sites.items()}


def run(bench: Bench) -> None:
    """Run each attack under each strategy, in one alliance."""
    rounds, steps = (2, 10) if bench.quick else (4, 25)
    spec = brain_job(
        bench.quick, {"rounds": {"number": rounds}, "training": {"steps_per_round": steps, "warmup_steps": 5}}
    )
    settings: Settings = {"sites": _SITES, "rounds": rounds, "steps": steps}
    sites, more = make_sites(bench.folder / "data", 1 if bench.quick else 3)
    # The first job is the lab's and is not measured.
    first = spec.changed({"rounds": {"number": 1}, "training": {"steps_per_round": 1, "warmup_steps": 0}})
    with lab(first, sites, bench.folder / "lab", {_BAD: "none"}, more=more) as running:
        running.wait(lambda state: state.finished is not None, "the first job ends", _LONGEST_SECONDS)
        for attack in _QUICK if bench.quick else ATTACKS:
            at_the_door = bench.quick or ATTACKS[attack] in _AT_THE_DOOR
            for strategy in _STRATEGIES[:1] if at_the_door else _STRATEGIES:
                bench.doing(f"{attack}, {strategy}")
                score, refused = _score(running, spec, attack, strategy)
                note = f"refused in {refused} of {rounds} rounds" if refused else ""
                bench.measured(
                    f"{attack}, {strategy}", [score], "Dice", "higher", {**settings, "strategy": strategy}, note=note
                )


def _score(running: Lab, spec: JobSpec, attack: str, strategy: str) -> tuple[float, int]:
    """Return the good sites' mean Dice, and rejected rounds.

    The rounds in which the bad site's update was rejected.
    """
    dataset = _SWAPPED if attack.startswith("classes") else spec.data.dataset
    poison(running.alliance.kit(_BAD), ATTACKS[attack])
    running.submit(spec.changed({"strategy": {"name": strategy}, "data": {"dataset": dataset}}))
    state = running.wait(lambda state: state.finished is not None, "the run ends", _LONGEST_SECONDS)
    assert state.finished is not None
    good = [e["mean"] for site, e in state.finished.test.items() if site != _BAD]
    return sum(good) / len(good), sum(_BAD in who["refused"] for who in state.participation.values())
