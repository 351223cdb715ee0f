"""Exports a model as MONAI bundle or ONNX.

Each export is checked on an example, which stays next to it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.data.case import Case
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError, TrainingError
from oncofed.models.bundle import BUNDLE_NAME
from oncofed.prediction.export.to_onnx import ONNX_NAME, require_onnx, write_onnx
from oncofed.prediction.model import MODEL_FOLDER, TrainedModel
from oncofed.report.card import CARD_JSON, CARD_MARKDOWN
from oncofed.tasks.bundled import answer_of
from oncofed.tasks.inferred import ClassScores, LabelMap, ObjectMap, TargetScores
from oncofed.tasks.targets import TargetsTask

Format = Literal["bundle", "onnx"]
Progress = Callable[[str], None]
# Target -> what is told of it -> number or words.
Answers = Mapping[str, Mapping[str, float | str]]

EXAMPLE_NAME = "example"
PROBABILITY_TOLERANCE = 1e-5
_CPU = torch.device("cpu")
_PREDICTIONS = "predictions.json"
# Runs a bundle in a process that cannot import oncofed, nor libraries of plots and texts. Those take much of the time
# that MONAI takes to be imported, as garbage collection does.
_ALONE = (
    "import gc, json, sys; "
    "sys.modules.update(dict.fromkeys(['oncofed', 'matplotlib', 'pandas', 'sklearn', 'transformers', 'zarr'])); "
    "gc.disable(); from monai.bundle import run; gc.freeze(); gc.enable(); run(**json.loads(sys.argv[1]))"
)
# Voxel size of the example in mm if the job sets none.
_SIDES = (0.9, 1.1, 1.3)


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        folder: exported files.
        form: format.
        agreement: result of the check on the example, in words.
        digest: SHA-256 of the weights.
    """

    folder: Path
    form: Format
    agreement: str
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "folder": str(self.folder),
            "format": self.form,
            "agreement": self.agreement,
            "weights": self.digest,
        }


def export(model: TrainedModel, form: Format, out: Path, progress: Progress = lambda _: None) -> Export:
    """Export a model after checking its answer on an example.

    Writes ``out/bundle`` or ``out/onnx``.

    Args:
        model: model to export.
        form: format.
        out: parent folder.
        progress: called with the next step.

    Raises:
        SpecError: the format cannot hold it, the folder exists, or a package is missing.
        TrainingError: the export answers differently; nothing is left of it.
    """
    code = model.job.model.code
    if code and form == "onnx":
        raise SpecError(
            f"the job {model.job.name} trains a pack's code ({code[:12]}…), which ONNX cannot vouch for. Hand on the "
            "run's folder together with the pack"
        )
    if form == "onnx" and model.task.pooled_channels:
        raise SpecError(
            f"the job {model.job.name} draws beside other targets, and an ONNX file would hold one of them "
            "alone. Hand on the run's folder"
        )
    if form == "onnx" and model.job.data.covariates:
        raise SpecError(
            f"the job {model.job.name} reads columns of a table beside the image, whose mean, spread and vocabulary an "
            "ONNX file of the network would not say. Hand on the run's folder"
        )
    if form == "onnx" and model.job.data.harmonization.is_used:
        raise SpecError(
            f"the job {model.job.name} makes images or values of sites alike (data.harmonization), which an ONNX file "
            "of the network would not do. Hand on the run's folder"
        )
    if form == "onnx" and model.job.data.stain.normalise != "none":
        raise SpecError(
            f"the job {model.job.name} sees images in the stain that its sites agreed on (data.stain), which an "
            "ONNX file of the network would not give them. Hand on the run's folder"
        )
    if form == "onnx":
        answer_of(model.job.task, model.job.data)
        require_onnx()
    with _whole(out / (BUNDLE_NAME if form == "bundle" else ONNX_NAME)) as folder:
        agreement = _export_bundle(model, folder, progress) if form == "bundle" else write_onnx(model, folder, progress)
    return Export(out / folder.name.removeprefix(".").removesuffix(".unfinished"), form, agreement, model.digest)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a folder that is renamed once complete.

    Nothing is left after a failure.
    """
    if folder.exists():
        raise SpecError(f"{folder}: is there already. Name another folder (--out), or remove it")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _export_bundle(model: TrainedModel, folder: Path, progress: Progress) -> str:
    progress("writing the bundle")
    values = model.job.model_dump(mode="json", by_alias=True)
    written = model.job.plan().write_bundle(folder, model.job.title, model.weights, values)
    for path in written.iterdir():
        path.rename(folder / path.name)
    written.rmdir()
    _take_along(model, folder)
    if lacks := model.job.plan().bundle_lacks:
        pack = " together with the pack" if model.job.model.code else ""
        return f"it holds the weights and answers nothing: {lacks}. Hand on the run's folder{pack}"
    images, answers = folder / EXAMPLE_NAME / "images", folder / EXAMPLE_NAME / "answers"
    images.mkdir(parents=True)
    progress("answering for the example")
    expected, more = _example(model, images)
    progress("answering for it with MONAI alone, in a process of its own")
    _run_alone(folder, images, answers, more)
    return _compared(expected, answers)


def _take_along(model: TrainedModel, bundle: Path) -> None:
    """Copy the model's records and card into its bundle."""
    model_folder, docs = model.folder / MODEL_FOLDER, Path("docs")
    complete_bundle(bundle, [model_folder, model.folder])
    for name in (CARD_JSON, CARD_MARKDOWN):
        for path in (model_folder / name, model.folder / docs / name):
            if path.is_file():
                shutil.copyfile(path, bundle / docs / name)
                break


def _run_alone(bundle: Path, images: Path, answers: Path, more: dict[str, Any]) -> None:
    settings = {
        "config_file": str(bundle / "configs" / "inference.json"),
        "bundle_root": str(bundle),
        "dataset_dir": str(images),
        "output_dir": str(answers),
        "device": "$torch.device('cpu')",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE, json.dumps(settings)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrainingError(f"the bundle does not run with MONAI alone: {last.partition(': ')[2] or last}")


def _compared(expected: NDArray[Any] | Answers, answers: Path) -> str:
    """Return the agreement in words; raise if the answers differ."""
    files = sorted(answers.iterdir())
    if not files:
        raise TrainingError("the bundle wrote no answer for its example")
    if not isinstance(expected, np.ndarray):
        (found,) = json.loads(files[0].read_text())["answers"].values()
        return _of_numbers(*_numbers(expected, found), "the targets' numbers")
    if files[0].name == _PREDICTIONS:
        (found,) = json.loads(files[0].read_text())["probabilities"].values()
        return _of_numbers(expected, np.array(found), "probabilities")
    flat = files[0].suffix in {".png", ".tif"}
    labels = np.asarray(Image.open(files[0])).T if flat else np.asarray(nib.load(files[0]).dataobj)
    wrong = int((labels != expected).sum()) if labels.shape == expected.shape else labels.size
    if wrong:
        raise TrainingError(
            f"the bundle answers otherwise for {wrong} of the example's {labels.size} voxels, expected for none"
        )
    return f"all {labels.size} voxels of the example get the same answer"


def _of_numbers(expected: NDArray[Any], found: NDArray[Any], what: str) -> str:
    """Return how well numbers agree, in words; raise if they differ."""
    apart = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    if not apart <= PROBABILITY_TOLERANCE:
        raise TrainingError(
            f"the bundle's {what.removeprefix('the ')} differ by {apart:.2g} on the example, expected "
            f"{PROBABILITY_TOLERANCE:g} or less"
        )
    return f"{what} on the example differ by {apart:.1e} at most"


def _numbers(expected: Answers, found: Answers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the numbers of two answers side by side; raise if their words differ."""
    sides = [
        [(name, key, one) for name, of in answers.items() for key, one in of.items()] for answers in (expected, found)
    ]
    ours, theirs = ([one for *_, one in side if not isinstance(one, str)] for side in sides)
    # A bundle writes some names of a job with a space more, lest MONAI's parser evaluates them.
    words = [
        ["".join(f"{name} {key} {one if isinstance(one, str) else ''}".split()) for name, key, one in side]
        for side in sides
    ]
    if words[0] != words[1]:
        apart = next((pair for pair in zip(*words, strict=False) if pair[0] != pair[1]), words)
        raise TrainingError(f"the bundle says {apart[1]!r} of its targets, expected {apart[0]!r}")
    return np.array(ours, np.float64), np.array(theirs, np.float64)


def _example(model: TrainedModel, folder: Path) -> tuple[NDArray[Any] | Answers, dict[str, Any]]:
    """Write a noise image; return its prediction and extra settings."""
    data, task = model.job.data, model.task
    rng = np.random.default_rng(0)
    more: dict[str, Any] = {}
    if task.network_kind == "bag":
        bag = rng.normal(size=(64, task.in_channels)).astype(np.float32)
        np.save(folder / "example.npy", bag)
        prepared = {
            "bags": torch.from_numpy(bag),
            "places": torch.zeros(len(bag), 2, dtype=torch.int32),
            "slides": torch.zeros(len(bag), dtype=torch.int16),
        }
    else:
        path, sides = _write_example(data, folder, rng)
        more = {"pixel_size": list(sides)} if sides else {}
        prepared = task.inference_preparation().prepare(Case("example", "example", path, 0, spacing=sides))
    found = task.infer(model.network(_CPU), prepared, _CPU)
    if isinstance(found, LabelMap):
        return found.values.numpy(), more
    if isinstance(found, TargetScores):
        assert isinstance(task, TargetsTask)
        return task.described(found), more
    assert isinstance(found, ClassScores | ObjectMap)
    return (found.probabilities(task.temperature) if isinstance(found, ClassScores) else found.numbers), more


def _write_example(data: DataSpec, folder: Path, rng: np.random.Generator) -> tuple[Path, tuple[float, ...] | None]:
    """Write an image as the job expects it.

    Returns its path, and the pixel size that the file cannot hold.
    """
    sizes = [side + side // 4 + 3 for side in data.patch]
    if data.size_range:
        sizes = [int(np.clip(size, *data.size_range)) for size in sizes]
    sides = [side * 1.2 for side in data.spacing] if data.spacing else list(_SIDES[: data.dimensions])
    if data.spacing_range:
        sides = [float(np.clip(side, *data.spacing_range)) for side in sides]
    noise = ndimage.gaussian_filter(rng.normal(size=(*sizes, len(data.channels))), [2.0] * data.dimensions + [0.0])
    shares = (noise - noise.min()) / np.ptp(noise)
    if data.dimensions == 3:
        values = (shares * 1200 - (600 if data.modality == "ct" else 0)).astype(np.int16)
        turned = nib.affines.from_matvec(np.diag([-1, 1, 1]) @ np.diag(sides))
        nib.save(
            nib.Nifti1Image(values[..., 0] if values.shape[-1] == 1 else values, turned), folder / "example.nii.gz"
        )
        return folder / "example.nii.gz", None
    pixels = (shares * 255).astype(np.uint8).swapaxes(0, 1)
    if pixels.shape[-1] not in {1, 3}:
        raise SpecError(
            f"the job's images have {pixels.shape[-1]} channels, and no flat file that a bundle reads has so many"
        )
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / "example.png")
    return folder / "example.png", tuple(sides) if data.spacing or data.spacing_range else None
