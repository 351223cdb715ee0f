"""Every job trains on small data with small networks.

One of each task runs in FLARE's simulator.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from carded import CARDED, register_by_card
from commands import oncofed
from oncofed.data.box_tables import state_boxes
from oncofed.data.brain_outcomes import make_outcome_hospitals
from oncofed.data.cases import usable_cases
from oncofed.data.manifest import SALT_FILE
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import JobSpec, ProfileJobSpec, list_jobs, parse_any_job, read_job
from oncofed.private_files import write_private
from oncofed.tasks.calibration import TEMPERATURES, read_calibration
from oncofed.training import Trainer
from slide_files import drawn_slides
from synthetic import make_lesions, make_nuclei, make_site, make_slides, make_textures

pytestmark = [pytest.mark.slow, pytest.mark.federation]

SMALL_DENSENET = {"init_features": 16, "growth_rate": 16, "block_config": [2, 2]}
ENOUGH_TO_TEST = {"validation": 0.2, "test": 0.4}
# A table, slides and images; the other jobs take the same way.
QUICKLY = {"hippocampus_survival", "nuclei_segmentation", "slide_classification"}
# What makes a job small enough for seconds; its own settings otherwise.
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "hippocampus_segmentation": {"data": {"patch": [16, 16, 16]}, "model": {"channels": [4, 8]}},
    "nuclei_segmentation": {"data": {"patch": [64, 64], "minimum_cases": 2}, "model": {"channels": [8, 16]}},
    "tile_classification": {"data": {"patch": [32, 32]}},
    "xray_classification": {
        "data": {"patch": [32, 32], "split": {"validation": 0.3, "test": 0.3}},
        "model": {"arguments": SMALL_DENSENET},
    },
    "slide_classification": {"data": {"patch": [64, 64]}},
    "slide_regions_segmentation": {
        "data": {"patch": [32, 32], "spacing": [0.002, 0.002]},
        "model": {"channels": [4, 8]},
        "task": {"patches": 8},
    },
    "lung_nodule_detection": {
        "data": {"patch": [16, 16, 8], "minimum_cases": 2, "spacing": [1.5, 1.5, 2], "max_bad_share": 1},
        "model": {"channels": [8, 16], "arguments": {"features": 8}},
    },
    "ct_organ_segmentation": {
        "data": {"patch": [16, 16, 16]},
        "model": {"channels": [4, 8, 16], "deep_supervision": 1},
        "task": {"classes": {1: "spleen", 2: "core"}},
    },
    "partial_organs_segmentation": {
        "data": {"patch": [16, 16, 16]},
        "model": {"channels": [4, 8, 16], "deep_supervision": 1},
    },
    "brain_tumour_regions": {
        "data": {"patch": [16, 16, 16]},
        "model": {"channels": [4, 8, 16], "deep_supervision": 1},
    },
    "brain_survival": {},
    "chest_findings": {
        "data": {"patch": [32, 32], "split": ENOUGH_TO_TEST},
        "model": {"arguments": SMALL_DENSENET},
    },
    "grade_tiles": {"data": {"patch": [32, 32], "split": ENOUGH_TO_TEST}},
    "survival_ct": {
        "data": {"patch": [32, 32, 32], "spacing": [1, 1, 1], "split": ENOUGH_TO_TEST},
        "model": {"arguments": SMALL_DENSENET},
    },
    "hippocampus_survival": {
        "data": {"patch": [16, 16, 16], "spacing": [1, 1, 1], "split": ENOUGH_TO_TEST},
        "model": {"channels": [4, 8]},
    },
    "hippocampus_pretraining": {"data": {"patch": [16, 16, 16]}, "model": {"channels": [4, 8]}},
    "survival_slides": {"data": {"patch": [64, 64], "split": ENOUGH_TO_TEST}},
    "survival_features": {"data": {"split": ENOUGH_TO_TEST}},
    "slide_features": {"data": {"split": ENOUGH_TO_TEST}},
}
SALT = bytes(32)
# Enough for a model that is sure of something, and wrong about the images that are in the other's folder.
SURE = {"steps_per_round": 40, "batch_size": 8, "warmup_steps": 0, "learning_rate": 0.003}
LONGER = {"xray_classification": {"training": SURE}}
# One of each task goes all the way through the simulator, which takes most of a minute.
IN_SIMULATOR = {
    "nuclei_segmentation",
    "xray_classification",
    "slide_classification",
    "slide_regions_segmentation",
    "partial_organs_segmentation",
    "brain_tumour_regions",
    "lung_nodule_detection",
    "hippocampus_pretraining",
    *CARDED,
}
FIGURES = {
    "partial_organs_segmentation": {"liver", "pancreas"},
    "brain_tumour_regions": {"whole tumour", "tumour core", "enhancing tumour"},
    # Of the other eleven findings the made table states nothing.
    "chest_findings": {
        "findings",
        *(f"findings.{name}" for name in ("atelectasis", "effusion", "pleural thickening")),
    },
    "grade_tiles": {"isup"},
    "survival_ct": {"survival"},
    "hippocampus_survival": {"structures", "structures.anterior", "structures.posterior", "survival"},
    "survival_slides": {"survival"},
    "survival_features": {"survival"},
}
# Of these classes alone there are labels at the site.
LABELLED = {"partial_organs_segmentation": {1: "liver", 2: "pancreas"}}


def _site(spec: JobSpec, source: Path, out: Path) -> Path:
    if spec.name in CARDED:
        return register_by_card(spec.name, source, out)
    if spec.name == "brain_survival":
        return next(iter(make_outcome_hospitals(out, 1, sizes=((8, 4, 12),)).values()))
    names = list(spec.task.classes.values())
    makers: dict[str, Callable[[], object]] = {
        "nuclei_segmentation": lambda: make_nuclei(source, 8, 96),
        "tile_classification": lambda: make_textures(source, names, 4),
        "xray_classification": lambda: _mislabel(make_textures(source, names, 40, colours=1)),
        "slide_classification": lambda: make_slides(source, 10, side=512),
        "slide_regions_segmentation": lambda: drawn_slides(source, 10, side=384),
        "lung_nodule_detection": lambda: _as_table(make_lesions(source, 8)),
        "brain_tumour_regions": lambda: _as_tumours(make_site(source, 6)),
    }
    makers.get(spec.name, lambda: make_site(source, 6))()
    # Patients are dealt by their keys: with a salt of its own each run would have other validation patients.
    out.mkdir()
    write_private(out / SALT_FILE, SALT)
    table = source / "labels.csv"
    if spec.name == "slide_classification":
        _deal_both_classes(table)
    tiles = TileSpec(64, 1.0, 0.25)
    task = "slides" if spec.name.startswith("slide_") else None
    labels = LABELLED.get(spec.name, spec.task.classes)
    labels = {} if task or "classification" in spec.name or "nuclei" in spec.name else labels
    options = RegisterOptions(source, spec.data.dataset, out, task, labels, table if table.is_file() else None, tiles)
    register(replace(options, workers=1))  # others would import for longer than they read
    if spec.name == "lung_nodule_detection":
        state_boxes(out, source.with_suffix(".csv"), "voxels", names[0], rest_has_none=True)
    return out


def _as_table(folder: Path) -> None:
    """Put the boxes of a folder's list into a table beside the folder, as LUNA16 has them."""
    listed = folder / "dataset.json"
    ends = [(end, axis) for end in ("low", "high") for axis in range(3)]
    lines = [",".join(["image", *(f"{end}_{'xyz'[axis]}" for end, axis in ends)])]
    for entry in json.loads(listed.read_text())["training"]:
        name = Path(entry["image"]).name
        lines += [",".join([name, *(str(box[end][axis]) for end, axis in ends)]) for box in entry["boxes"]]
    folder.with_suffix(".csv").write_text("\n".join(lines))
    listed.unlink()


def _as_tumours(folder: Path) -> None:
    """Give each volume four channels, and its core an enhancing half."""
    for path in sorted((folder / "imagesTr").iterdir()):
        image, mask = nib.load(path), nib.load(folder / "labelsTr" / path.name)
        channels = np.stack([np.asarray(image.dataobj) + n for n in range(4)], -1)
        label = np.asarray(mask.dataobj).copy()
        label[10:][label[10:] == 2] = 3
        nib.save(nib.Nifti1Image(channels, image.affine), path)
        nib.save(nib.Nifti1Image(label, mask.affine), folder / "labelsTr" / path.name)


def _mislabel(folder: Path) -> None:
    """Put every fifth image into the other class.

    A model can only be wrongly sure about these.
    """
    one, other = sorted(folder.iterdir())
    for first, second in ((one, other), (other, one)):
        for image in sorted(first.glob("[01]-*.png"))[::5]:
            image.rename(second / f"x{image.name}")


def _deal_both_classes(table: Path) -> None:
    """Write a table of splits with both classes.

    Otherwise two test slides would often be of one class.
    """
    head, *rows = table.read_text().split()
    by_class = sorted(rows, key=lambda row: row.split(",")[1])
    lists = ["training", "training", "training", "validation", "test"] * 2
    dealt = [f"{row},{split}" for row, split in zip(by_class, lists, strict=True)]
    table.write_text("\n".join([f"{head},split", *dealt]))


def test_every_job_that_trains_is_run() -> None:
    trains = {e.name for e in list_jobs() if not isinstance(parse_any_job(e.file), ProfileJobSpec)}
    assert trains - set(SMALL) == {"brain_tissue_segmentation"}  # the demo, which has tests of its own


def _quick(name: str) -> JobSpec:
    quick = {"training": {"steps_per_round": 2, "batch_size": 2}, "rounds": {"number": 1}}
    return read_job(name).changed({**SMALL[name], **quick, **LONGER.get(name, {})})


@pytest.mark.parametrize("name", sorted(set(SMALL) - IN_SIMULATOR))
def test_a_job_trains_and_scores(name: str, tmp_path: Path) -> None:
    spec = _quick(name)
    plan = spec.plan()
    folder = _site(spec, tmp_path / "in", tmp_path / "set")
    cases = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "east")
    trainer = Trainer(plan, cases.cases, "east")
    assert trainer.train(2) > 0
    assert trainer.evaluate(trainer.cases.test, detailed=True).extra_metrics
    assert trainer.task.picture(trainer.network.eval(), trainer.cases.test[0], trainer.device)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKLY else pytest.mark.thorough) for name in sorted(IN_SIMULATOR)]
)
def test_a_job_runs_from_images_to_a_report(name: str, tmp_path: Path) -> None:
    spec = _quick(name)
    site = _site(spec, tmp_path / "in", tmp_path / "set")
    job = tmp_path / "job.yaml"
    job.write_text(spec.to_yaml())
    out = tmp_path / "run"
    # One site takes half as long to start as two, and goes the same way.
    arguments = ["--site", f"east={site}", "--backend", "simulate", "--no-baselines"]
    done = oncofed("job", "run", job, *arguments, "--out", out, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["metric"]) == ("completed", spec.plan().build_task().metric)
    # Of so few patients no curve of detections leaves the site, and no order of two classes.
    assert (result["sites"]["east"]["federated"] is None) == (name in {"lung_nodule_detection", "slide_classification"})
    report = (out / "report.html").read_text()
    told = result["pooled_test"] or {"classes": {}, "reliability": None, "targets": {}}
    # Pictures, what is known over the sites, and attention; rounds and targets where enough patients are behind them.
    attention = result["attention"] is not None
    assert report.count("<svg") >= 1 + bool(told["classes"] or told["reliability"]) + attention
    calibration = read_calibration(out / "model")
    assert (calibration is None) == (result["calibration"] is None)
    if name in FIGURES:
        assert set(result["sites"]["east"]["by_class"]["federated"]) <= FIGURES[name]
    if name == "xray_classification":
        assert calibration
        assert calibration.after
        assert TEMPERATURES[0] < calibration.temperature < TEMPERATURES[-1]
        assert list(result["pooled_test"]["classes"]) == ["pneumonia"]
        assert result["pooled_test"]["auroc"] == pytest.approx(result["mean"]["federated"], abs=5e-5)  # of one site
        assert result["pooled_test"]["patients"] == result["sites"]["east"]["test_cases"]
    assert (out / "model" / "bundle" / "models" / "model.pt").is_file()
