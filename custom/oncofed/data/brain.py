"""Four simulated hospitals with one brain's anatomy.

The anatomy is the ICBM152 2009a symmetric average brain (T1 image, grey-matter and white-matter probability maps at
1 mm; Fonov et al., NeuroImage 2011), which the ``nilearn`` wheel carries, so that nothing is downloaded. A patient is
that anatomy under a random affine map and a smooth random deformation; a scanner adds contrast, bias field, noise,
voxel size, orientation and stored type. All of it follows from one seed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from oncofed.data.workers import Workers
from oncofed.errors import DataError

CLASSES = {1: "grey matter", 2: "white matter"}
_FIELD_OF_VIEW_MARGIN_MM = 6.0
# Of a lesion, where white matter is about one.
_LESION_BRIGHTNESS = 2.5


@dataclass(frozen=True)
class Scanner:
    """A simulated scanner.

    Attributes:
        voxel_mm: voxel size along right, anterior and superior, in mm.
        axes: orientation of the stored array as nibabel axis codes.
        dtype: stored type.
        gamma: exponent of the contrast curve: below 1 grey and white matter move together.
        grey_shift: change of the grey matter's brightness, as a share of the full range.
        bias: amplitude of the smooth multiplicative field (0.3 is plus or minus 30 %).
        noise: standard deviation of the Rician noise, as a share of the full range.
        scale: brightness of white matter in stored units.
    """

    voxel_mm: tuple[float, float, float]
    axes: str
    dtype: str
    gamma: float
    grey_shift: float
    bias: float
    noise: float
    scale: float


@dataclass(frozen=True)
class Hospital:
    """A simulated site: its scanner and numbers of patients."""

    name: str
    scanner: Scanner
    train: int
    validation: int
    test: int


# One large hospital and three small ones; portable low-field scanners are this noisy.
HOSPITALS = (
    Hospital(
        name="site-1",
        scanner=Scanner(
            voxel_mm=(2.0, 2.0, 2.0),
            axes="RAS",
            dtype="int16",
            gamma=1.0,
            grey_shift=0.00,
            bias=0.4,
            noise=0.09,
            scale=900.0,
        ),
        train=8,
        validation=2,
        test=4,
    ),
    Hospital(
        name="site-2",
        scanner=Scanner(
            voxel_mm=(2.0, 2.0, 3.0),
            axes="LPS",
            dtype="uint8",
            gamma=0.7,
            grey_shift=0.05,
            bias=0.6,
            noise=0.15,
            scale=140.0,
        ),
        train=2,
        validation=1,
        test=4,
    ),
    Hospital(
        name="site-3",
        scanner=Scanner(
            voxel_mm=(2.5, 2.0, 2.0),
            axes="PSR",
            dtype="float32",
            gamma=1.6,
            grey_shift=-0.06,
            bias=0.5,
            noise=0.18,
            scale=1.0,
        ),
        train=1,
        validation=1,
        test=4,
    ),
    Hospital(
        name="site-4",
        scanner=Scanner(
            voxel_mm=(2.2, 2.2, 2.2),
            axes="ASL",
            dtype="uint16",
            gamma=1.1,
            grey_shift=0.08,
            bias=0.7,
            noise=0.24,
            scale=3000.0,
        ),
        train=1,
        validation=1,
        test=4,
    ),
)


@lru_cache(maxsize=1)
def _atlas() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return T1 image and tissue maps at 1 mm, RAS.

    The image is (x, y, z), the maps are (2, x, y, z), both in [0, 1].
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "The demo's brain comes with the package 'nilearn', which is not installed. "
            "Install the demo's extra: pip install 'oncofed[demo]' -c provisioning/constraints.txt"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"

    def read(kind: str) -> NDArray[np.float32]:
        image = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        return np.asarray(image.dataobj, dtype=np.float32) / 255.0

    return read("t1"), np.stack([read("gm"), read("wm")])


@lru_cache(maxsize=4)
def _scanned_atlas(voxel_mm: tuple[float, float, float]) -> tuple[NDArray[np.float32], ...]:
    """Return T1, grey and white maps at a scanner's resolution.

    A voxel averages its volume of ``voxel_mm``.
    """
    t1, tissue = _atlas()
    return tuple(ndimage.gaussian_filter(volume, [mm / 3 for mm in voxel_mm]) for volume in (t1, *tissue))


def _smooth_field(
    shape: tuple[int, int, int], knots: int, sigma: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a smooth random field of ``shape``.

    A cubic spline through ``knots``³ normal values, axis by axis.
    """
    spline = make_interp_spline(np.arange(knots), np.eye(knots))
    x, y, z = (spline(np.linspace(0, knots - 1, n)).astype(np.float32) for n in shape)
    coarse = rng.normal(0.0, sigma, (knots,) * 3).astype(np.float32)
    field: NDArray[np.float32] = np.einsum("abc,xa,yb,zc->xyz", coarse, x, y, z, optimize=True)
    return field


def _patient_coordinates(
    shape: tuple[int, int, int], voxel_mm: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a patient's deformation, in atlas voxels (1 mm).

    Shape (3, *shape).
    """
    t1, _ = _atlas()
    centre = (np.asarray(t1.shape) - 1) / 2
    angles = np.deg2rad(rng.normal(0, 6, 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    scale = 1 + rng.normal(0, 0.05, 3)
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, voxel_mm, strict=True)]
    millimetres = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    where = (rotation * scale) @ millimetres + centre[:, None] + rng.normal(0, 3, 3)[:, None]
    coordinates: NDArray[np.float32] = where.reshape(3, *shape).astype(np.float32)
    for axis in range(3):
        coordinates[axis] += _smooth_field(shape, 5, 4.0, rng) + _smooth_field(shape, 9, 2.0, rng)
    return coordinates


def make_patient(
    scanner: Scanner, rng: np.random.Generator, lesion_mm: float = 0.0, visits: float = 1.0
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return one patient's image and label.

    The image is as the scanner stores it; the label is uint8: 0, 1 grey, 2 white.

    Args:
        scanner: that takes the image.
        rng: of the patient.
        lesion_mm: radius of a bright lesion somewhere in the white matter; 0: none.
        visits: share of the usual differences of contrast between visits.
    """
    t1, _ = _atlas()
    extent = np.asarray(t1.shape) - 1 - 2 * _FIELD_OF_VIEW_MARGIN_MM
    x, y, z = (int(n) for n in np.ceil(extent / np.asarray(scanner.voxel_mm)))
    shape = (x, y, z)
    coordinates = _patient_coordinates(shape, scanner.voxel_mm, rng)
    signal, grey, white = (
        ndimage.map_coordinates(volume, coordinates, order=1, mode="constant")
        for volume in _scanned_atlas(scanner.voxel_mm)
    )

    if lesion_mm:
        signal = np.maximum(signal, _LESION_BRIGHTNESS * _lesion(white, scanner.voxel_mm, lesion_mm, rng.spawn(1)[0]))

    # Visits differ: coil, protocol and patient vary contrast and noise around the scanner's values.
    gamma = scanner.gamma * np.exp(visits * rng.normal(0, 0.3))
    signal = np.clip(signal, 0, None) ** gamma + (scanner.grey_shift + visits * rng.normal(0, 0.06)) * grey
    signal *= np.exp(_smooth_field(shape, 4, scanner.bias / 2, rng))
    noise = scanner.noise * np.exp(rng.normal(0, 0.5))
    signal = np.hypot(signal + rng.normal(0, noise, shape), rng.normal(0, noise, shape))

    label = np.zeros(shape, np.uint8)
    label[(grey >= 0.5) & (grey >= white)] = 1
    label[(white >= 0.5) & (white > grey)] = 2

    affine = np.diag([*scanner.voxel_mm, 1.0])
    affine[:3, 3] = -np.asarray(scanner.voxel_mm) * (np.asarray(shape) - 1) / 2
    stored = signal * scanner.scale
    if np.issubdtype(scanner.dtype, np.integer):
        stored = np.clip(np.rint(stored), 0, np.iinfo(scanner.dtype).max)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(scanner.axes)
    )
    image = nib.Nifti1Image(stored.astype(scanner.dtype), affine).as_reoriented(turn)
    return image, nib.Nifti1Image(label, affine).as_reoriented(turn)


def _lesion(
    white: NDArray[np.float32], voxel_mm: tuple[float, float, float], radius_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return how much of each voxel a round lesion fills, (x, y, z) float32.

    Its centre is a random voxel of white matter.
    """
    places = np.argwhere(white > 0.5)
    centre = places[rng.integers(len(places))]
    axes = [(np.arange(n) - c) * mm for n, c, mm in zip(white.shape, centre, voxel_mm, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    beyond = np.sqrt(np.square(grid).sum(axis=0)) - radius_mm
    filled: NDArray[np.float32] = np.clip(0.5 - beyond / min(voxel_mm), 0, 1).astype(np.float32)
    return filled


# Hospital's folder, case name, scanner, seed.
_Patient = tuple[Path, str, Scanner, tuple[int, ...]]


def _write_patient(patient: _Patient) -> None:
    folder, case, scanner, seed = patient
    image, label = make_patient(scanner, np.random.default_rng(seed))
    nib.save(image, folder / "imagesTr" / f"{case}.nii.gz")
    nib.save(label, folder / "labelsTr" / f"{case}.nii.gz")


def make_hospitals(
    out: Path,
    seed: int,
    hospitals: tuple[Hospital, ...] = HOSPITALS,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Write a Decathlon folder per hospital; return site -> folder.

    Args:
        out: folder to write to; each hospital gets a sub-folder with its name.
        seed: the same seed writes the same patients.
        hospitals: the simulated sites.
        workers: processes that write patients.
        progress: called with (patients written, patients in all).
    """
    jobs: list[_Patient] = []
    folders = {}
    for number, hospital in enumerate(hospitals, start=1):
        folder = folders[hospital.name] = out / hospital.name
        for sub in ("imagesTr", "labelsTr"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        lists: dict[str, list[dict[str, str]]] = {}
        case_number = 0
        for key, count in (("training", hospital.train), ("validation", hospital.validation), ("test", hospital.test)):
            for _ in range(count):
                case_number += 1
                case = f"{hospital.name}_{case_number:03d}"
                jobs.append((folder, case, hospital.scanner, (seed, number, case_number)))
                files = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
                lists.setdefault(key, []).append(files)
        manifest = {
            "name": "brain_tissue",
            "description": "ICBM152 average brain, simulated patients and scanner",
            "modality": {"0": "MRI T1"},
            "labels": {"0": "background", **{str(k): v for k, v in CLASSES.items()}},
            **lists,
        }
        (folder / "dataset.json").write_text(json.dumps(manifest, indent=1))
    with Workers(workers) as pool:
        for done, _ in enumerate(pool.map(_write_patient, jobs, fewest=2), start=1):
            if progress:
                progress(done, len(jobs))
    return folders
