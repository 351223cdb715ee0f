"""Generated, registered data of the checked jobs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from gpu_checks.context import Context
from oncofed.data.case import Case
from oncofed.data.cases import Cases, read_cases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import JobSpec, read_job
from oncofed.training import Plan, Trainer
from synthetic import make_nuclei, make_slides, make_textures
from volumes import make_volumes

Changes = Mapping[str, dict[str, Any]]

CT, BRAIN, NUCLEI = "ct_organ_segmentation", "brain_tissue_segmentation", "nuclei_segmentation"
TILES, XRAYS, SLIDES = "tile_classification", "xray_classification", "slide_classification"
JOBS = (CT, BRAIN, NUCLEI, TILES, XRAYS, SLIDES)

# Changes that make a job small enough for a CPU; the network keeps its form.
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    CT: {"data": {"patch": [16, 16, 16]}, "model": {"channels": [8, 8, 8], "deep_supervision": 1}},
    BRAIN: {"data": {"patch": [16, 16, 16]}, "model": {"channels": [4, 8, 8]}},
    NUCLEI: {"data": {"patch": [32, 32]}, "training": {"batch_size": 2}},
    TILES: {"data": {"patch": [32, 32]}, "training": {"batch_size": 4}},
    XRAYS: {"data": {"patch": [32, 32]}, "training": {"batch_size": 2}},
    SLIDES: {"data": {"patch": [128, 128]}},
}
_CLASSES = {TILES: 9, XRAYS: 2}
_VOXEL = (0.8, 0.8, 2.5)  # mm, of an abdominal CT


def plan_of(context: Context, job: str, changes: Changes | None = None, small: bool = False) -> Plan:
    """Return a job's plan, a small one on a CPU.

    Args:
        context: of the check.
        job: its name.
        changes: settings by section.
        small: also on a GPU.
    """
    always: dict[str, dict[str, Any]] = {"data": {"spacing_range": None}, "training": {"warmup_steps": 0}}
    if job == SLIDES:
        always["data"]["patch"] = [128, 128]
    parts: list[Changes] = [always, *([SMALL[job]] if small or not context.cuda else []), changes or {}]
    spec: JobSpec = read_job(job)
    for part in parts:
        spec = spec.changed(dict(part))
    return spec.plan()


def trainer_of(context: Context, job: str, changes: Changes | None = None, checkpoint: Path | None = None) -> Trainer:
    """Return an unprepared trainer of a job on generated data."""
    plan = plan_of(context, job, changes)
    return Trainer(plan, cases_of(context, job), "here", context.device, checkpoint)


def cases_of(context: Context, job: str) -> Cases:
    """Return a job's cases, generated at the first call."""
    plan = plan_of(context, job)
    dataset = dataset_of(context, job)
    return read_cases(dataset, plan.data.split, plan.seed, plan.supervision())


def dataset_of(context: Context, job: str) -> Path:
    """Return the folder of a job's registered dataset."""
    return _made(context, job, lambda folder: _MAKERS[job](folder, plan_of(context, job))) / "set"


def large_ct(context: Context, count: int) -> Cases:
    """Return abdominal CTs for validation.

    512×512×100 voxels; small on a CPU. Three differ, the others are copies: reading and scoring them takes as
    long.
    """
    plan = plan_of(context, CT)

    def make(folder: Path) -> None:
        shape = (512, 512, 100) if context.cuda else (40, 40, 24)
        for number in range(count):
            image, label = (
                folder / "in" / "images" / f"c{number}.nii.gz",
                folder / "in" / "labels" / f"c{number}.nii.gz",
            )
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            if number < 3:
                write_ct(image, label, shape, len(plan.task.classes), _VOXEL, number)
            else:
                for path in (image, label):
                    shutil.copy(path.with_name(path.name.replace(f"c{number}.", f"c{number % 3}.")), path)
        register(RegisterOptions(folder / "in", plan.data.dataset, folder / "set", labels=plan.task.classes))

    folder = _made(context, f"large-{count}", make)
    cases = read_cases(folder / "set", plan.data.split, plan.seed, plan.supervision())
    return Cases((), tuple(cases), ())


def write_ct(
    image: Path, label: Path, shape: tuple[int, ...], classes: int, voxel: tuple[float, ...], seed: int = 0
) -> Case:
    """Write noise with a box per class as a case."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-150, 150, shape, dtype=np.int16)
    found = np.zeros(shape, np.uint8)
    # Boxes in a row along the first axis, of half the other sides.
    edges = np.linspace(0, shape[0], classes + 2).astype(int)
    inside = tuple(slice(side // 4, 3 * side // 4) for side in shape[1:])
    for value in range(1, classes + 1):
        box = (slice(edges[value - 1], edges[value]), *inside)
        found[box] = value
        values[box] += 100
    affine = np.diag([*voxel, 1.0])
    for path, content in ((image, values), (label, found)):
        nib.save(nib.Nifti1Image(content, affine), path)
    return Case(image.stem, image.stem, image, label)


def _volumes(folder: Path, plan: Plan) -> None:
    (folder / "set").symlink_to(make_volumes(folder, plan.data, plan.task.classes))


def _nuclei(folder: Path, plan: Plan) -> None:
    source = make_nuclei(folder / "in", 16, 160)
    register(RegisterOptions(source, plan.data.dataset, folder / "set", "segmentation"))


def _images(folder: Path, plan: Plan) -> None:
    channels = len(plan.data.channels)
    source = make_textures(folder / "in", list(plan.task.classes.values()), each=12, side=64, colours=channels)
    register(RegisterOptions(source, plan.data.dataset, folder / "set", "classification"))


def _slides(folder: Path, plan: Plan) -> None:
    make_slides(folder / "in", 10, 512)
    tiles, labels = TileSpec(plan.data.patch[0], 1.0, 0.25), folder / "in" / "labels.csv"
    register(RegisterOptions(folder / "in", plan.data.dataset, folder / "set", "slides", table=labels, tiles=tiles))


_MAKERS: dict[str, Callable[[Path, Plan], None]] = {
    CT: _volumes,
    BRAIN: _volumes,
    NUCLEI: _nuclei,
    TILES: _images,
    XRAYS: _images,
    SLIDES: _slides,
}


def _made(context: Context, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that is filled once.

    An unfinished one, left by a check that died, is filled again.
    """
    folder, done = context.folder / name, context.folder / f"{name}.done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        done.touch()
    return folder
