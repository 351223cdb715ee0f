"""Reading data: registering, tiles of a slide, loading for training.

All data is generated. Figures:

- volumes a second from DICOM series and from NIfTI: ``oncofed data register`` against reading the same files in one
  process with pydicom, and with MONAI's ``LoadImage``; cold (first time) and again (nothing changed);
- tiles a second from a tiled TIFF: ``TileReader`` against OpenSlide and MONAI's ``WSIReader``, one thread;
- seconds of an epoch's loading: prepared cases against MONAI's ``LoadImaged`` and the same transforms each time;
- memory after registering few and many files.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dicoms import make_series
from harness.bench import Bench
from harness.results import Target
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileReader, TileSpec
from tissue import write_tissue

_MEMORY_FILES, _MEMORY_FILES_QUICK = (1000, 10_000), (50, 200)


def run(bench: Bench) -> None:
    """Measure registering, tiles, loading, memory."""
    dicom(bench, bench.folder / "dicom", 8 if bench.quick else 400)
    nifti(bench, bench.folder / "nifti", 20 if bench.quick else 1000)
    tiles(bench, bench.folder / "tiles", 8 if bench.quick else 36)
    epoch(bench, bench.folder / "epoch", 6 if bench.quick else 44)
    memory(bench, bench.folder / "memory", *(_MEMORY_FILES_QUICK if bench.quick else _MEMORY_FILES))


def dicom(bench: Bench, root: Path, series: int) -> None:
    """Volumes a second from DICOM series.

    Each has 24 slices of 256 x 256.
    """
    values = np.random.default_rng(0).integers(0, 900, (256, 256, 24)).astype(np.int16)
    for number in range(series):
        make_series(root / "in" / str(number), values + number, patient=f"P{number}")
    _load_decoders(root)
    bench.race(
        "registering DICOM series",
        {
            "oncofed": lambda: _register(root / "in", root / "out", fresh=True),
            "the same job, one process": lambda: _pydicom(root / "in", root / "plain"),
            "reading alone, pydicom": lambda: _pydicom(root / "in"),
            "reading alone, MONAI LoadImage": lambda: _monai_series(root / "in"),
        },
        unit="volumes/s",
        amount=series,
        target=Target(of="baseline", value=2.0),
        settings={"series": series},
    )
    _again(bench, root, "DICOM series", series)


def _again(bench: Bench, root: Path, what: str, amount: int) -> None:
    """Register an unchanged folder, against a new one."""
    bench.race(
        f"registering {what} again, nothing changed",
        {
            "oncofed": lambda: _register(root / "in", root / "out"),
            "anew": lambda: _register(root / "in", root / "anew", fresh=True),
        },
        unit="volumes/s",
        amount=amount,
        settings={"series": amount},
    )


def nifti(bench: Bench, root: Path, cases: int) -> None:
    """Cases a second, image and label.

    96 x 96 x 48 voxels.
    """
    import nibabel as nib
    from monai.transforms import LoadImage

    _write_cases(root / "in", cases, np.eye(4))
    files = sorted((root / "in").rglob("*.nii.gz"))
    pairs = [(file, root / "in" / "labels" / file.name) for file in files if file.parent.name == "images"]
    load = LoadImage(image_only=True)
    bench.race(
        "registering NIfTI with labels",
        {
            "oncofed": lambda: _register(root / "in", root / "out", fresh=True),
            "the same job, one process": lambda: [_nibabel_facts(*pair) for pair in pairs],
            "reading alone, nibabel": lambda: [np.asarray(nib.load(file).dataobj).mean() for file in files],
            "reading alone, MONAI LoadImage": lambda: [load(file).mean() for file in files],
        },
        unit="cases/s",
        amount=cases,
        target=Target(of="baseline", value=2.0),
        settings={"cases": cases},
    )
    _again(bench, root, "NIfTI", cases)


def tiles(bench: Bench, root: Path, side: int) -> None:
    """Tiles of 256 x 256 a second, one thread.

    The slide is a JPEG-compressed pyramid with smooth tissue.
    """
    import openslide
    from monai.data.wsi_reader import WSIReader

    root.mkdir(parents=True)
    path = root / "slide.tif"
    write_tissue(path, side)
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

    amounts = {"OpenSlide": len(places) // 2, "MONAI WSIReader": len(few)}
    bench.race(
        "aligned tiles, one thread",
        {"oncofed": ours, "OpenSlide": theirs, "MONAI WSIReader": monai},
        unit="tiles/s",
        amount={"oncofed": len(places), **amounts},
        target=Target(of="value", value=5000.0),
        settings={"tiles": len(places)},
    )
    bench.race(
        "tiles that are not aligned, one thread",
        {"oncofed": ours_unaligned, "OpenSlide": theirs},
        unit="tiles/s",
        amount={"oncofed": len(places) // 4, **amounts},
        settings={"tiles": len(places)},
    )


def _write_cases(folder: Path, count: int, affine: np.ndarray) -> None:
    """Write images with masks (96 x 96 x 48)."""
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


def epoch(bench: Bench, root: Path, cases: int) -> None:
    """Seconds to load every training case once.

    Prepared before, against read and transformed each time.
    """
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
    PreparedCases(train, patches, cpu)
    held = {
        kind: PreparedCases(train, Patches(data.model_copy(update={"cache": kind}), "none", 2), cpu)
        for kind in ("memory", "disk")
    }
    for name, program in {
        "kept in memory": lambda: [held["memory"][n] for n in range(len(train))],
        "kept on disk": lambda: [held["disk"][n] for n in range(len(train))],
        "as a second run starts": lambda: PreparedCases(train, patches, cpu),
    }.items():
        bench.race(
            f"an epoch's loading, {name}",
            {"oncofed": program, "read and transformed": lambda: [patches.prepare(case) for case in train]},
            target=Target(of="baseline", value=20.0),
            settings={"cases": cases},
        )


def memory(bench: Bench, root: Path, few: int, many: int) -> None:
    """Peak memory of registering few and many files.

    DICOM of 64 x 64.
    """
    values = np.random.default_rng(0).integers(0, 900, (64, 64, 10)).astype(np.int16)
    peaks = []
    for count in (few, many):
        source = root / f"in{count}"
        for number in range(count // 10):
            make_series(source / str(number), values + number, patient=f"P{number}")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(_peak_of, (source, root / f"out{count}")))
    bench.measured(
        f"peak memory, registering {many} files",
        peaks[1:],
        "MB",
        settings={"files": many},
        baseline={"name": f"{few} files", "samples": peaks[:1]},
    )


def _load_decoders(root: Path) -> None:
    """Load modules and decoders before anything is timed."""
    make_series(root / "warm")
    _register(root / "warm", root / "warm-out", fresh=True)
    _pydicom(root / "warm")


def _register(source: Path, out: Path, fresh: bool = False) -> None:
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    register(RegisterOptions(source, "bench", out))


def _pydicom(root: Path, out: Path | None = None) -> None:
    """Read every series in one process, with care.

    Slices are sorted by position, pixels rescaled. With ``out`` it does what registering does: reads all headers first,
    for it cannot know which file belongs to which series, measures, writes NIfTI, and sums it up.
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
    """Find a case's facts with plain NumPy."""
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
    register(RegisterOptions(source, "bench", out, workers=1))
    # getrusage's peak includes the parent's memory up to the exec of this program.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
