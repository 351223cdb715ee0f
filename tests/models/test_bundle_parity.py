"""A bundle in MONAI alone gives oncofed's answers.

It refuses files that it cannot read as oncofed does.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from bundle_runs import Run, Scored, command_of_monai, prepare, run_all
from oncofed.models import ModelSpec
from oncofed.training.plan import Plan

UNET = {"network": "unet", "channels": [4, 8], "residual_units": 0}
DENSENET = {
    "network": "densenet121",
    "arguments": {"init_features": 16, "growth_rate": 16, "block_config": [2, 2]},
}
TWO = {1: "shell", 2: "core"}


def _plan(task: dict[str, Any], data: dict[str, Any], model: dict[str, Any]) -> Plan:
    return Plan.model_validate({"task": task, "data": {"dataset": "demo", **data}, "model": model})


PLANS = {
    "mri": _plan(
        {"type": "segmentation", "classes": TWO, "mirror": True, "keep_largest": [2, 1]}, {"patch": [16, 16, 8]}, UNET
    ),
    "ct": _plan(
        {"type": "segmentation", "classes": {1: "organ"}, "overlap": 0.5},
        {
            "patch": [16, 16, 16],
            "modality": "ct",
            "window": [-160, 240],
            "spacing": [1.5, 1.5, 2],
            "orientation": "LPS",
            "spacing_range": [0.5, 20],
        },
        UNET,
    ),
    "two": _plan(
        {"type": "segmentation", "classes": TWO},
        {"patch": [16, 16, 16], "channels": ["t1", "t2"], "spacing": [2, 2, 2], "modality": "pet"},
        UNET,
    ),
    "micro": _plan(
        {"type": "objects", "mirror": True, "smallest": 4, "seed_depth": 0.2},
        {"patch": [16, 16, 8], "spacing": [0.001, 0.001, 0.002], "modality": "microscopy"},
        UNET,
    ),
    "flat": _plan(
        {"type": "segmentation", "classes": TWO, "keep_largest": [1]},
        {"patch": [32, 24], "channels": ["red", "green", "blue"], "background": "dark", "modality": "microscopy"},
        UNET,
    ),
    "pixels": _plan(
        {"type": "segmentation", "classes": TWO, "mirror": True},
        {"patch": [32, 32], "modality": "xray", "spacing": [0.05, 0.08]},
        UNET,
    ),
    "objects": _plan(
        {"type": "objects", "smallest": 6},
        {
            "patch": [32, 32],
            "channels": ["red", "green", "blue"],
            "background": "dark",
            "modality": "microscopy",
            "size_range": [8, 400],
        },
        UNET,
    ),
    "stained": _plan(
        {"type": "segmentation", "classes": TWO},
        {
            "patch": [32, 24],
            "channels": ["red", "green", "blue"],
            "modality": "microscopy",
            "stain": {"augment": "randstainna"},
        },
        UNET,
    ),
    "xray": _plan(
        {"type": "classification", "classes": {0: "no", 1: "$yes", 2: "%file"}},
        {"patch": [64, 64], "modality": "xray"},
        DENSENET,
    ),
    "tiles": _plan(
        {"type": "classification", "classes": {0: "a", 1: "b"}},
        {"patch": [64, 32], "channels": ["red", "green", "blue"], "background": "dark", "modality": "microscopy"},
        {"network": "resnet18"},
    ),
    "stained tiles": _plan(
        {"type": "classification", "classes": {0: "a", 1: "b"}},
        {
            "patch": [64, 32],
            "channels": ["red", "green", "blue"],
            "modality": "microscopy",
            "stain": {"augment": "hed"},
        },
        {"network": "resnet18"},
    ),
    "vit": _plan(
        {"type": "classification", "classes": {0: "a", 1: "b"}},
        {"patch": [32, 32], "spacing": [0.3, 0.3], "modality": "xray"},
        {"network": "vit", "arguments": {"hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}},
    ),
    "volumes": _plan(
        {"type": "classification", "classes": {0: "a", 1: "b"}},
        {"patch": [32, 32, 32], "orientation": "LPS"},
        DENSENET,
    ),
    "slides": _plan(
        {"type": "slide_classification", "classes": {0: "a", 1: "b"}},
        {
            "patch": [64, 64],
            "channels": ["red", "green", "blue"],
            "spacing": [0.0005, 0.0005],
            "modality": "microscopy",
        },
        {"network": "attention_mil", "arguments": {"hidden": 16}},
    ),
}
PLANS |= {
    f"slides, {name}": PLANS["slides"].model_copy(
        update={"model": ModelSpec.model_validate({"network": name, "arguments": {"hidden": 16}})}
    )
    for name in ("clam_sb", "dsmil", "transmil", "mean_pooling", "max_pooling")
}
# Files of bags -> tiles: more than landmarks, a full square, and the fewest.
BAGS = {"a.npy": 50, "square.npy": 16, "one.npy": 1}
DENSE = ("mri", "ct", "two", "micro", "flat", "pixels", "objects", "stained")
PIXELS = {"pixels": (0.07, 0.04), "vit": (0.2, 0.4)}
OBLIQUE = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(3).normal(size=(3, 3)))[0]


def _volume(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return ndimage.gaussian_filter(rng.normal(size=shape), [1.5] * 3 + [0] * (len(shape) - 3)) * 900 + 200


def _picture(rng: np.random.Generator, width: int, height: int, channels: int = 3, bright: bool = False) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.normal(size=(height, width, channels)), (2, 2, 0))
    shares = ((values - values.min()) / np.ptp(values)) ** 3
    pixels = ((1 - shares if bright else shares) * 255).astype(np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def _affine(sides: tuple[float, float, float], turn: np.ndarray | None = None) -> np.ndarray:
    matrix = np.diag(sides) if turn is None else turn @ np.diag(sides)
    return nib.affines.from_matvec(matrix, [7, -30, 11.5])


def _save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def _volumes(folder: Path, rng: np.random.Generator, mm: float = 1.0) -> None:
    """Volumes of odd shapes, axes and types.

    Oblique, mirrored and swapped axes; smaller than a patch; one slice; scaled integers.
    """
    _save(folder / "ras.nii.gz", _volume(rng, 33, 29, 19).astype(np.int16), _affine((mm, 1.3 * mm, 2 * mm)))
    _save(folder / "oblique.nii", _volume(rng, 21, 25, 17), _affine((-mm, 1.1 * mm, 1.7 * mm), OBLIQUE))
    swapped = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])
    _save(folder / "sagittal.nii.gz", _volume(rng, 19, 24, 9), _affine((1.2 * mm, 0.9 * mm, 3 * mm), swapped))
    _save(folder / "small.nii.gz", _volume(rng, 9, 11, 5).astype(np.float32), _affine((-mm, -mm, mm)))
    _save(folder / "slice.nii.gz", _volume(rng, 23, 18, 1), _affine((mm, mm, 5 * mm)))
    scaled = nib.Nifti1Image(_volume(rng, 18, 17, 16).astype(np.int16), _affine((1.5 * mm, 1.5 * mm, 2 * mm)))
    scaled.header.set_slope_inter(0.5, -20)
    nib.save(scaled, folder / "scaled.nii.gz")


def _pictures(folder: Path, rng: np.random.Generator, kinds: bool) -> None:
    """Pictures of five odd sizes.

    Colour and grey, dark and bright, one rotated; optionally with palettes, opacity and the like.
    """
    sizes = ((67, 45, 3, True), (31, 90, 3, False), (33, 27, 1, True), (64, 32, 1, False), (101, 9, 3, True))
    for number, (width, height, channels, bright) in enumerate(sizes):
        Image.fromarray(_picture(rng, width, height, channels, bright)).save(folder / f"{number}.png")
    colours, grey = _picture(rng, 41, 37), _picture(rng, 39, 44, 1)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colours).save(folder / "turned.jpg", exif=turned)
    if not kinds:
        return
    opacity = rng.integers(0, 255, (37, 41, 1)).astype(np.uint8)
    Image.fromarray(np.concatenate([colours, opacity], axis=-1)).save(folder / "opacity.png")
    Image.fromarray(np.stack([grey, 255 - grey], axis=-1)).save(folder / "grey_opacity.png")
    Image.fromarray(colours).quantize(16).save(folder / "palette.png")
    Image.fromarray(colours).quantize(7).save(folder / "palette.gif.bmp", format="BMP")
    Image.fromarray(grey > 128).save(folder / "bits.png")
    deep = (grey.astype(np.uint16) << 8) + rng.integers(0, 255, grey.shape).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(colours).convert("CMYK").save(folder / "print.jpeg")
    Image.fromarray(colours).save(folder / "lossless.webp", lossless=True)
    tifffile.imwrite(folder / "colour.tif", colours, photometric="rgb", compression="zlib")
    tifffile.imwrite(folder / "deep.grey.tiff", deep)


def _fill(runs: dict[str, Run], rng: np.random.Generator) -> None:
    for name in ("mri", "ct", "volumes"):
        _volumes(Path(runs[name].images), rng)
    _volumes(Path(runs["micro"].images), rng, 0.001)
    _save(Path(runs["two"].images) / "both.nii.gz", _volume(rng, 13, 22, 17, 2), _affine((1, 2, 3), OBLIQUE))
    for name in ("flat", "pixels", "objects", "stained", "xray", "tiles", "stained tiles", "vit"):
        # How a file is read depends on whether the job's images are colour or grey alone: one plan of each.
        _pictures(Path(runs[name].images), rng, kinds=name in {"flat", "stained", "xray"})
        runs[name].more = {"pixel_size": PIXELS[name]} if name in PIXELS else {}
    for name in (name for name in PLANS if name.startswith("slides")):
        for file, tiles in BAGS.items():
            np.save(Path(runs[name].images) / file, rng.normal(size=(tiles, _features())).astype(np.float32))


def _features() -> int:
    return PLANS["slides"].build_task().in_channels


def _in_files(run: Run, root: Path) -> Run:
    """Return a run with one file per channel."""
    image = nib.load(Path(run.images) / "both.nii.gz")
    values = np.asarray(image.dataobj)
    files = [root / f"{name}.nii.gz" for name in ("t1", "t2")]
    root.mkdir(parents=True)
    for number, file in enumerate(files):
        _save(file, values[..., number], image.affine)
    return replace(run, out=str(root / "out"), more={"datalist": [{"image": [str(file) for file in files]}]})


def _refused(runs: dict[str, Run], root: Path, rng: np.random.Generator) -> dict[str, Run]:
    """Return runs of refused images, by reason."""
    found: dict[str, Run] = {}

    def folder(what: str, plan: str, **more: Any) -> Path:
        images = root / what / "images"
        images.mkdir(parents=True)
        found[what] = replace(runs[plan], images=str(images), out=str(root / what / "out"), more=more)
        return images

    volume, plain = _volume(rng, 20, 20, 20), _affine((1, 1, 1))
    hollow = volume.copy()
    hollow[3, 4, 5] = np.nan
    _save(folder("not finite", "mri") / "a.nii.gz", hollow, plain)
    metres = nib.Nifti1Image(volume, _affine((0.001, 0.001, 0.001)))
    metres.header.set_xyzt_units("meter")
    nib.save(metres, folder("metres", "ct") / "a.nii.gz")
    split = nib.Nifti1Image(volume, None)
    split.set_sform(_affine((2, 2, 2)), 1)
    split.set_qform(plain, 1)
    nib.save(split, folder("two affines", "mri") / "a.nii.gz")
    _save(folder("complex", "mri") / "a.nii.gz", volume.astype(np.complex64), plain)
    _save(folder("channels", "mri") / "a.nii.gz", _volume(rng, 20, 20, 20, 3), plain)
    _save(folder("one channel", "two") / "a.nii.gz", volume, plain)
    _save(folder("voxels of the job", "ct") / "a.nii.gz", volume, _affine((0.1, 0.1, 0.1)))
    picture = _picture(rng, 30, 30)
    Image.fromarray(_picture(rng, 900, 30)).save(folder("sides of the job", "objects") / "a.png")
    deep = (picture.astype(np.uint16) << 8) + 77
    folder("16 bits a colour", "flat")
    tifffile.imwrite(Path(found["16 bits a colour"].images) / "a.tif", deep, photometric="rgb")
    frames = [Image.fromarray(_picture(rng, 30, 30)) for _ in range(2)]
    frames[0].save(folder("two pictures", "flat") / "a.webp", save_all=True, append_images=frames[1:])
    tifffile.imwrite(folder("white is zero", "flat") / "a.tif", picture[..., 0], photometric="miniswhite")
    turned = folder("turned", "flat") / "a.tif"
    tifffile.imwrite(turned, picture, photometric="rgb", extratags=[(274, "H", 1, 8, True)])
    Image.fromarray(picture).save(folder("no pixel size", "pixels") / "a.png")
    Image.fromarray(picture).save(folder("one name", "flat") / "a.png")
    Image.fromarray(picture).save(Path(found["one name"].images) / "a.bmp")
    folder("nothing", "flat")
    np.save(folder("another encoder", "slides") / "a.npy", np.zeros((5, 3), np.float32))
    np.save(folder("a pickle", "slides") / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root, rng = tmp_path_factory.mktemp("bundles"), np.random.default_rng(1)
    runs = {name: prepare(root / name, plan) for name, plan in PLANS.items()}
    _fill(runs, rng)
    refused = _refused(runs, root / "refused", rng)
    runs["files"] = _in_files(runs["two"], root / "files")
    elsewhere = _in_files(runs["two"], root / "elsewhere")
    _save(root / "elsewhere" / "t2.nii.gz", _volume(rng, 13, 22, 17), _affine((1, 2, 4)))
    refused["channels elsewhere"] = elsewhere
    run_all(root, [*runs.values(), *refused.values()])
    return {**runs, **refused}


def _read(path: Path) -> np.ndarray:
    if path.name.endswith(".nii.gz"):
        return np.asarray(nib.load(path).dataobj)
    return np.asarray(tifffile.imread(path) if path.suffix == ".tif" else Image.open(path)).T


@pytest.mark.parametrize("name", DENSE)
def test_labels_are_the_same_and_maps_agree(runs: dict[str, Run], name: str) -> None:
    run, plan = runs[name], PLANS[name]
    assert not run.refused
    ours, several = Scored(plan, run, PIXELS.get(name)), set()
    for image in sorted(Path(run.images).iterdir()):
        theirs, expected = run.maps[image.name], ours.maps(image)
        for found in (theirs, expected):
            classes = found[: 2 if plan.task.type == "objects" else None]
            classes[:] = torch.from_numpy(classes).softmax(0).numpy()
        np.testing.assert_allclose(theirs, expected, atol=1e-5, rtol=0, err_msg=image.name)
        stem = image.name.removesuffix(".gz").rpartition(".")[0]
        ending = ".nii.gz" if plan.data.dimensions == 3 else ".png" if plan.task.type == "segmentation" else ".tif"
        answer = _read(Path(run.out, f"{stem}_seg{ending}"))
        np.testing.assert_array_equal(answer, ours.answer(image), err_msg=image.name)
        several |= set(np.unique(answer).tolist())
        if ending == ".nii.gz":
            np.testing.assert_allclose(nib.load(Path(run.out, f"{stem}_seg{ending}")).affine, nib.load(image).affine)
    assert len(several) > 1


@pytest.mark.parametrize("name", ["xray", "tiles", "stained tiles", "vit", "volumes"])
def test_probabilities_agree(runs: dict[str, Run], name: str) -> None:
    run, plan = runs[name], PLANS[name]
    assert not run.refused
    images, ours = sorted(Path(run.images).iterdir()), Scored(plan, run, PIXELS.get(name))
    assert set(run.probabilities) == {image.name for image in images}
    for image in images:
        expected = ours.answer(image)
        np.testing.assert_allclose(run.probabilities[image.name], expected, atol=1e-5, err_msg=image.name)
    assert np.ptp([shares[0] for shares in run.probabilities.values()]) > 1e-4


@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith("slides")])
def test_a_bag_of_features_gets_the_probabilities_of_its_slide(runs: dict[str, Run], name: str) -> None:
    run, plan = runs[name], PLANS[name]
    assert not run.refused
    network = Scored(plan, run).network
    assert set(run.probabilities) == set(BAGS)
    for file, found in run.probabilities.items():
        bags = torch.from_numpy(np.load(Path(run.images) / file))[None]
        with torch.no_grad():
            expected = network(bags, torch.ones(bags.shape[:2], dtype=torch.bool))[0].softmax(0)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=file)


def test_channels_may_be_files_of_their_own(runs: dict[str, Run]) -> None:
    assert not runs["files"].refused
    one, other = (
        _read(Path(runs[name].out, f"{file}.nii.gz")) for name, file in (("two", "both_seg"), ("files", "t1_seg"))
    )
    np.testing.assert_array_equal(one, other)


def test_the_command_line_that_its_readme_names_answers_the_same(runs: dict[str, Run], tmp_path: Path) -> None:
    pytest.importorskip("fire", reason="MONAI's command line needs it")
    run = runs["two"]
    settings = {"config_file": "configs/inference.json", "dataset_dir": run.images, "output_dir": tmp_path}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command_of_monai("run", *words), cwd=run.bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (_read(Path(folder, "both_seg.nii.gz")) for folder in (tmp_path, run.out))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("not finite", "not finite"),
        ("metres", "in millimetres"),
        ("two affines", "whose header says one thing"),
        ("complex", "real numbers"),
        ("channels", "channels"),
        ("one channel", "channels"),
        ("channels elsewhere", "affine"),
        ("voxels of the job", "spacing of the job"),
        ("sides of the job", "size or spacing"),
        ("16 bits a colour", "Pillow reads whole"),
        ("two pictures", "Pillow reads whole"),
        ("white is zero", "Pillow reads whole"),
        ("turned", "Pillow reads whole"),
        ("no pixel size", "give pixel_size"),
        ("one name", "two images of one name"),
        ("nothing", "no image in dataset_dir"),
        ("another encoder", "not a bag of features"),
        ("a pickle", "allow_pickle"),
    ],
)
def test_files_that_it_would_read_differently_are_refused(runs: dict[str, Run], what: str, why: str) -> None:
    assert why in runs[what].refused
    assert not [path for path in Path(runs[what].out).iterdir() if path.name != "refused.txt"]
