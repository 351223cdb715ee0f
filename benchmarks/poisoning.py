"""What one bad site of five does to the model, by strategy: real server and sites, poisoned updates and labels.

The sites are alike: patients of one scanner, dealt evenly. One of them trains as the others do and then sends something
else, or trains on masks whose classes are swapped. The score is the mean Dice of the final best model on the test
patients of the four good sites.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fault_lab import Lab, lab, poison
from figures import hand_over, options
from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.spec import JobSpec, read_job

_SITES, _BAD = 5, "site-5"
_SWAPPED = "brain_tissue_swapped"
_STRATEGIES = ("fedavg", "median", "trimmed_mean", "krum", "clipped_mean")
# What the bad site does -> its filter (see ``poison.Poison``); swapped labels need none.
ATTACKS = {
    "nothing": "none",
    "its update times -1": "flip",
    "its update times -4": "reverse",
    "its update times 10": "scale",
    "NaN": "nan",
    "its first update again and again": "stale",
    "classes swapped in its masks": "none",
}
# No such update gets past the door: it is the same for every strategy.
_AT_THE_DOOR = {"scale", "nan"}
_LONGEST_SECONDS = 300.0


def make_sites(folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Write the sites' images; return site -> folder, and the same with the bad site's masks swapped."""
    alike = tuple(replace(HOSPITALS[0], name=f"site-{n}", train=2, validation=1, test=3) for n in range(1, _SITES + 1))
    sites = make_hospitals(folder, seed=1, hospitals=alike)
    swapped = folder / "swapped"
    shutil.copytree(sites[_BAD], swapped)
    for path in (swapped / "labelsTr").iterdir():
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        other = np.where(labels == 1, 2, np.where(labels == 2, 1, labels)).astype(labels.dtype)
        nib.save(nib.Nifti1Image(other, image.affine, image.header), path)
    return sites, {site: {_SWAPPED: swapped if site == _BAD else path} for site, path in sites.items()}


def run_all(running: Lab, spec: JobSpec) -> Iterator[dict[str, Any]]:
    """Run each attack under each strategy, and yield a row for each attack."""
    for attack, filtered in ATTACKS.items():
        dataset = _SWAPPED if attack.startswith("classes") else spec.data.dataset
        row: dict[str, Any] = {"attack": attack}
        for strategy in _STRATEGIES[:1] if filtered in _AT_THE_DOOR else _STRATEGIES:
            poison(running.alliance.kit(_BAD), filtered)
            running.submit(spec.changed({"strategy": {"name": strategy}, "data": {"dataset": dataset}}))
            state = running.wait(lambda state: state.finished is not None, "the run ends", _LONGEST_SECONDS)
            assert state.finished is not None
            good = [e["mean"] for site, e in state.finished["test"].items() if site != _BAD]
            refused = sum(_BAD in who["refused"] for who in state.participation.values())
            row[strategy] = {"score": sum(good) / len(good), "refused": refused}
        yield row


def main() -> None:
    """Run, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="of each run (default 4)")
    parser.add_argument("--steps", type=int, default=25, help="of each round (default 25)")
    arguments = parser.parse_args()
    spec = read_job("brain_tissue_segmentation").changed(
        {
            "rounds": {"number": arguments.rounds},
            "training": {"steps_per_round": arguments.steps, "warmup_steps": 5},
        }
    )
    rows = []
    if not arguments.json:
        print("| one site of five sends |", " | ".join(f"`{name}`" for name in _STRATEGIES), "|")
    with tempfile.TemporaryDirectory(prefix="oncofed-poisoning-") as temporary:
        folder = Path(temporary)
        sites, more = make_sites(folder / "data")
        # The first job is the lab's own; what it does is not looked at.
        first = spec.changed({"rounds": {"number": 1}, "training": {"steps_per_round": 1, "warmup_steps": 0}})
        with lab(first, sites, folder / "lab", {_BAD: "none"}, more=more) as running:
            running.wait(lambda state: state.finished is not None, "the first job ends", _LONGEST_SECONDS)
            for row in run_all(running, spec):
                rows.append(row)
                if not arguments.json:
                    print(_line(row), flush=True)
    record = {
        "benchmark": "poisoning",
        "sites": _SITES,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "rows": rows,
    }
    hand_over(record, arguments)


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{row[name]['score']:.3f}{' (refused)' if row[name]['refused'] else ''}" for name in _STRATEGIES if name in row
    ]
    cells += ["the same"] * (len(_STRATEGIES) - len(cells))
    return f"| {row['attack']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
