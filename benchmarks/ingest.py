"""Reading images: registering, tiles of a slide, and a training's input, beside plain readers in the same run.

Everything is generated on the spot. Each pair of programs runs in turn (A B A B); the median of each is kept. Figures:

- volumes a second from DICOM series and from NIfTI: ``oncofed data register`` beside reading the same files in one
  process with pydicom, and with MONAI's ``LoadImage``; cold (first time) and again (nothing changed);
- tiles a second from a tiled TIFF: ``TileReader`` beside OpenSlide and beside MONAI's ``WSIReader``, one thread;
- seconds of an epoch's loading: prepared cases beside MONAI's ``LoadImaged`` and the same transforms each time;
- memory after registering few and many files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from dicoms import make_series  # noqa: E402 - the tests' generator of DICOM
from oncofed.data.register import Request, register  # noqa: E402
from oncofed.data.slides import TileReader, TileSpec  # noqa: E402 - the same


def main() -> None:
    """Run all and print, compare or keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: does it run?")
    parser.add_argument(
        "--repeats", type=int, default=3, help="times that each program runs; tiles three times as often"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    # Here, so that the processes that are measured do not load torch.
    from oncofed.job.outcome import environment

    warnings.filterwarnings("ignore")
    scale = 0.1 if arguments.quick else 1.0
    with tempfile.TemporaryDirectory(prefix="oncofed-ingest-") as folder:
        root = Path(folder)
        figures: dict[str, dict[str, Any]] = {
            "machine": {**environment(), "cores": os.cpu_count()},
            "dicom": dicom(root / "dicom", int(400 * scale), arguments.repeats),
            "nifti": nifti(root / "nifti", int(1000 * scale), arguments.repeats),
            "tiles": tiles(root / "tiles", int(32 * scale) + 4, 3 * arguments.repeats),
            "epoch": epoch(root / "epoch", int(40 * scale) + 4, arguments.repeats),
            "memory": memory(root / "memory", int(1000 * scale), int(10_000 * scale)),
        }
    print(table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def interleaved(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each program, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            begun = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def dicom(root: Path, series: int, repeats: int) -> dict[str, float]:
    """Volumes a second from series of 24 slices of 256 x 256."""
    values = np.random.default_rng(0).integers(0, 900, (256, 256, 24)).astype(np.int16)
    for number in range(series):
        make_series(root / "in" / str(number), values + number, patient=f"P{number}")
    _warm_up(root)
    seconds = interleaved(
        {
            "register": lambda: _register(root / "in", root / "out", fresh=True),
            "again": lambda: _register(root / "in", root / "out"),
            "pydicom": lambda: _pydicom(root / "in"),
            "monai": lambda: _monai_series(root / "in"),
            "same_job": lambda: _pydicom(root / "in", root / "plain"),
        },
        repeats,
    )
    return {name: series / value for name, value in seconds.items()}


def nifti(root: Path, cases: int, repeats: int) -> dict[str, float]:
    """Cases a second, image and label, of 96 x 96 x 48 voxels."""
    import nibabel as nib
    from monai.transforms import LoadImage

    _write_cases(root / "in", cases, np.eye(4))
    files = sorted((root / "in").rglob("*.nii.gz"))
    pairs = [(file, root / "in" / "labels" / file.name) for file in files if file.parent.name == "images"]
    load = LoadImage(image_only=True)
    seconds = interleaved(
        {
            "register": lambda: _register(root / "in", root / "out", fresh=True),
            "again": lambda: _register(root / "in", root / "out"),
            "nibabel": lambda: [np.asarray(nib.load(file).dataobj).mean() for file in files],
            "monai": lambda: [load(file).mean() for file in files],
            "same_job": lambda: [_nibabel_facts(*pair) for pair in pairs],
        },
        repeats,
    )
    return {name: cases / value for name, value in seconds.items()}


def tiles(root: Path, side: int, repeats: int) -> dict[str, float]:
    """Tiles of 256 x 256 a second, one thread, from a JPEG-compressed pyramid with smooth tissue."""
    import openslide
    import tifffile
    from monai.data.wsi_reader import WSIReader

    root.mkdir(parents=True)
    path = root / "slide.tif"
    y, x = np.mgrid[: side * 256, : side * 256].astype(np.float32) / 256
    wave = (np.sin(x * 3) + np.cos(y * 2)) * 20
    pixels = np.stack([200 + wave, 130 + wave, 180 + wave], axis=-1).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    places = [(column * 256, row * 256) for column in range(side) for row in range(side)]
    few = places[:: max(1, len(places) // 60)]

    def ours() -> None:
        with TileReader(path, TileSpec(256, 0.5)) as reader:
            for x0, y0 in places:
                reader.read(x0, y0)

    def ours_unaligned() -> None:
        with TileReader(path, TileSpec(256, 0.5)) as reader:
            for x0, y0 in places[: len(places) // 4]:
                reader.read(x0 + 40, y0 + 40)

    def theirs() -> None:
        slide = openslide.OpenSlide(str(path))
        for x0, y0 in places[: len(places) // 2]:
            np.asarray(slide.read_region((x0, y0), 0, (256, 256)).convert("RGB"))

    def monai() -> None:
        reader = WSIReader("openslide")
        wsi = reader.read(str(path))
        for x0, y0 in few:
            reader.get_data(wsi, location=(y0, x0), size=(256, 256), level=0)

    counts = {"oncofed": len(places), "oncofed_unaligned": len(places) // 4, "openslide": len(places) // 2}
    counts["monai"] = len(few)
    seconds = interleaved(
        {"oncofed": ours, "oncofed_unaligned": ours_unaligned, "openslide": theirs, "monai": monai}, repeats
    )
    return {name: counts[name] / value for name, value in seconds.items()}


def _write_cases(folder: Path, count: int, affine: np.ndarray) -> None:
    """Write images with masks of 96 x 96 x 48 voxels."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    label = np.zeros((96, 96, 48), np.uint8)
    label[20:60, 20:60, 10:30] = 1
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True)
    for number in range(count):
        image = rng.integers(0, 900, label.shape).astype(np.int16)
        for sub, values in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(values, affine), folder / sub / f"c{number}.nii.gz")


def epoch(root: Path, cases: int, repeats: int) -> dict[str, float]:
    """Seconds to load every training case once: prepared before, and read and transformed each time."""
    import torch

    from oncofed.data.cases import read_cases
    from oncofed.data.inputs import Patches
    from oncofed.data.prepared import PreparedCases
    from oncofed.data.spec import DataSpec, SplitSpec

    _write_cases(root / "in", cases, np.diag([1, 1, 2, 1]))
    _register(root / "in", root / "out")
    data = DataSpec(dataset="bench", spacing=(1.0, 1.0, 2.0), patch=(64, 64, 32), split=SplitSpec())
    train = read_cases(root / "out", data.split, 1).train
    patches = Patches(data, "none", 2)
    cpu = torch.device("cpu")
    begun = time.perf_counter()
    PreparedCases(train, patches, cpu)
    first = time.perf_counter() - begun
    held = {
        kind: PreparedCases(train, Patches(data.model_copy(update={"cache": kind}), "none", 2), cpu)
        for kind in ("memory", "disk")
    }
    seconds = interleaved(
        {
            "uncached": lambda: [patches.prepare(case) for case in train],
            "memory": lambda: [held["memory"][n] for n in range(len(train))],
            "disk": lambda: [held["disk"][n] for n in range(len(train))],
            "second_run_starts": lambda: PreparedCases(train, patches, cpu),
        },
        repeats,
    )
    return {"first_run_prepares": first, **seconds}


def memory(root: Path, few: int, many: int) -> dict[str, float]:
    """Peak memory in MB of a process that registers few and many DICOM files of 64 x 64."""
    values = np.random.default_rng(0).integers(0, 900, (64, 64, 10)).astype(np.int16)
    peaks = {}
    for count in (few, many):
        source = root / f"in{count}"
        for number in range(count // 10):
            make_series(source / str(number), values + number, patient=f"P{number}")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[f"{count}_files_mb"] = pool.apply(_peak_of, (source, root / f"out{count}"))
    return peaks


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    d, n, t, e, m = (figures[k] for k in ("dicom", "nifti", "tiles", "epoch", "memory"))
    rows = [
        ("DICOM series, volumes/s", d["register"], "the same job, pydicom and nibabel, one process", d["same_job"]),
        ("the same", d["register"], "reading alone, pydicom", d["pydicom"]),
        ("the same", d["register"], "reading alone, MONAI LoadImage", d["monai"]),
        ("the same again, nothing changed", d["again"], "registering", d["register"]),
        ("NIfTI with label, cases/s", n["register"], "the same job, nibabel and NumPy, one process", n["same_job"]),
        ("the same", n["register"], "reading alone, nibabel", n["nibabel"]),
        ("the same", n["register"], "reading alone, MONAI LoadImage", n["monai"]),
        ("aligned tiles/s, one thread", t["oncofed"], "OpenSlide", t["openslide"]),
        ("the same", t["oncofed"], "MONAI WSIReader", t["monai"]),
        ("tiles that are not aligned/s", t["oncofed_unaligned"], "OpenSlide, aligned", t["openslide"]),
    ]
    lines = ["| figure | oncofed | beside | theirs | ratio |", "|---|---|---|---|---|"]
    lines += [f"| {what} | {a:,.1f} | {other} | {b:,.1f} | {a / b:.2f} |" for what, a, other, b in rows]
    uncached = e["uncached"]
    for name in ("memory", "disk", "second_run_starts"):
        label = f"an epoch's loading, {name.replace('_', ' ')}, s"
        lines.append(f"| {label} | {e[name]:.3f} | read and transformed | {uncached:.3f} | {e[name] / uncached:.3f} |")
    (few, small), (many, large) = m.items()
    what, beside = (f"{name.split('_')[0]} files" for name in (many, few))
    lines.append(f"| peak memory, {what}, MB | {large:.0f} | {beside} | {small:.0f} | {large / small:.2f} |")
    return "\n".join(lines)


def _warm_up(root: Path) -> None:
    """Let imports and decoders be loaded before anything is timed."""
    make_series(root / "warm")
    _register(root / "warm", root / "warm-out", fresh=True)
    _pydicom(root / "warm")


def _register(source: Path, out: Path, fresh: bool = False) -> None:
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    register(Request(source, "bench", out))


def _pydicom(root: Path, out: Path | None = None) -> None:
    """Read every series as a careful script does, in one process: slices sorted by position, pixels rescaled.

    With ``out`` it does what registering does: reads all headers first, for it cannot know which file belongs to which
    series, measures, writes NIfTI, and sums it up.
    """
    import nibabel as nib
    import pydicom
    from pydicom.pixels.processing import apply_rescale

    if out is not None:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in root.rglob("*.dcm")]
        sorted(headers, key=lambda h: (h.SeriesInstanceUID, h.InstanceNumber))
    for folder in _series_folders(root):
        slices = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
        slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
        values = np.stack([apply_rescale(s.pixel_array, s) for s in slices])
        if out is None:
            values.mean()
            continue
        out.mkdir(exist_ok=True)
        np.percentile(values[values != 0], (0.5, 50, 99.5))
        path = out / f"{folder.name}.nii"
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), path)
        hashlib.sha256(path.read_bytes()).hexdigest()


def _nibabel_facts(image: Path, label: Path) -> tuple[object, ...]:
    """Read a case and find out about it what registering does, with NumPy's plain functions."""
    import nibabel as nib

    values, mask = (np.asarray(nib.load(path).dataobj) for path in (image, label))
    return (
        np.unique(mask, return_counts=True),
        np.percentile(values[mask > 0], (0.5, 50, 99.5)),
        np.isfinite(values).all(),
        hashlib.sha256(image.read_bytes()).hexdigest(),
    )


def _monai_series(root: Path) -> None:
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True, reader="PydicomReader")
    for folder in _series_folders(root):
        load(folder).mean()


def _series_folders(root: Path) -> Iterator[Path]:
    subfolders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    yield from subfolders or [root]


def _peak_of(source: Path, out: Path) -> float:
    register(Request(source, "bench", out, workers=1))
    # The peak that getrusage gives counts the parent's memory too, up to the moment at which this program was loaded.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
