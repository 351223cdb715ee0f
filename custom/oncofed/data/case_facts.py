"""Facts of a case, for checks, profiles and plans."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from oncofed.data.exif import AS_TURNED, as_stored_reason, is_open
from oncofed.data.formats.common import LoadedImage
from oncofed.data.images import read_image
from oncofed.data.manifest import Entry, Intensity
from oncofed.data.masks import counted, read_mask
from oncofed.data.same_grid import other_grid, turned_onto
from oncofed.data.stain.sketch import sketch
from oncofed.errors import DataError

Values = NDArray[Any]

EMPTY = "its label is empty: no voxel of any class"
# A mask with more distinct values than this numbers objects, not classes.
_MOST_CLASSES = 64
_INTENSITY_SAMPLES = 30_000
_ROUGH_SAMPLES = 2_000
_STAIN_SAMPLES = 4000
_LIKE_GLASS = 0.15
_CHUNK = 1 << 20
# Decimals of lengths in mm, unless voxels are smaller than 0.01 mm.
_DECIMALS = 6


def read_case(
    images: Sequence[Path], label: Path | None, by_colour: bool = False, named: Collection[int] = ()
) -> tuple[LoadedImage, LoadedImage | None]:
    """Read a case's files.

    Several images are the channels of one; all follow the axes of the first.

    Args:
        images: one, or one per channel.
        label: the mask, if any.
        by_colour: the mask's values are the colours of its palette; see ``read_mask``.
        named: values of the mask that have names; see ``read_mask``.

    Raises:
        DataError: a file cannot be read, or the channels do not lie on one grid; the message says "its image" or "its
            label" and names no path.
    """
    parts = [_read_as("image", path, read_image) for path in images]
    first = parts[0]
    parts = [first, *(turned_onto(first, part, "one of its channels") for part in parts[1:])]
    for path, part in zip(images[1:], parts[1:], strict=True):
        if fault := other_grid(first, part):
            raise DataError(f"its channels do not lie on one grid: that of {path.name} {fault}")
    if len(parts) > 1:
        values = np.concatenate([part.values for part in parts], axis=-1)
        texts = tuple(sorted({text for part in parts for text in part.texts}))
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        first = replace(first, values=values, texts=texts, notes=notes)
    if label is None:
        return first, None
    mask = _read_as("label", label, lambda path: read_mask(path, by_colour, named))
    return first, turned_onto(first, mask, "its label")


def measure(image: LoadedImage, label: LoadedImage | None, classes: int = 0) -> dict[str, Any]:
    """Return a case's facts, as fields of an ``Entry``.

    Args:
        image: of the case.
        label: its mask.
        classes: number of mask values that are known to be classes.
    """
    values = image.values
    finite = bool(np.isfinite(values).all()) if np.issubdtype(values.dtype, np.floating) else True
    decimals = _DECIMALS + (4 if image.spacing and min(image.spacing) < 0.01 else 0)
    facts: dict[str, Any] = {
        "shape": list(image.shape),
        "channels": int(values.shape[-1]),
        "spacing": [round(s, decimals) for s in image.spacing] if image.spacing else None,
        "affine": np.round(image.affine, decimals).tolist() if image.dimensions == 3 and image.oriented else None,
        "orientation": image.orientation,
        "dtype": image.stored,
        "finite": finite,
    }
    mask = None
    if label is not None:
        facts |= _label_facts(image, label, max(classes, _MOST_CLASSES))
        if label.shape == image.shape:
            mask = _flat(label.values, like=values)[:, 0] > 0
    if finite:
        facts["intensity"] = _intensity(values, mask)
        # For comparison with unlabelled images, which have no labelled voxels.
        facts["image_intensity"] = _rough_intensity(values) if mask is not None else None
        facts["stain"] = stain(_flat(values)) if _is_coloured(image) else None
        facts["colours"] = sketch(_flat(values)) or None if _is_coloured(image) else None
        facts["thumbnail"] = _thumbnail(values)
    return facts


def image_faults(entry: Entry) -> list[str]:
    """Return why no job can use a case's image, if so."""
    found = []
    if entry.finite is False:
        found.append("its image holds values that are not finite (NaN or infinity). Replace them, or export it again")
    if entry.intensity and entry.intensity.std == 0 and entry.intensity.low == entry.intensity.high:
        found.append(f"its image is constant (every voxel is {entry.intensity.median:g})")
    return found


def mask_faults(entry: Entry, may_be_empty: bool = False) -> list[str]:
    """Return why no job can use a case's mask, if so.

    Args:
        entry: of the case.
        may_be_empty: a mask without any voxel of a class is fine, as it is where a person has said so.
    """
    found = []
    if entry.label_problem:
        found.append(entry.label_problem)
    elif is_empty(entry) and not (may_be_empty or entry.nothing_there):
        found.append(EMPTY)
    return found


def is_empty(entry: Entry) -> bool:
    """Return whether a case's mask has no voxel of any class."""
    return entry.label_values is not None and not any(int(float(value)) != 0 for value in entry.label_values)


def reason_of(error: Exception) -> str:
    """Return why a case cannot be read.

    Readers raise errors of any type for a malformed file.
    """
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or 'its disk or network does not answer'})"
    if isinstance(error, MemoryError):
        return "cannot be read: it needs more memory than there is"
    return (
        "cannot be read: its header or its pixels are damaged, or of a kind that is not known here. Copy it again, or "
        "export it in another format"
    )


def checksum(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of concatenated files, as hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest()


def notes(image: LoadedImage, label: LoadedImage | None = None) -> list[str]:
    """Return the notes of reading.

    One of them warns of header text beyond what software writes by itself.
    """
    text = [f"header text in {', '.join(image.texts)}"] if image.texts else []
    taken = (AS_TURNED,) if label and is_open(image, label) else ()
    return [*text, *dict.fromkeys((*image.notes, *(label.notes if label else ()), *taken))]


def stamp(paths: Sequence[Path]) -> str:
    """Return the sizes and times of files, to see changes.

    Of a folder, such as a Zarr store, those of all files inside: its own time stays when one of them is rewritten.
    """
    return " ".join(_stamp_of_folder(path) if path.is_dir() else _stamp_of_file(path) for path in paths)


def _stamp_of_file(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"


def _stamp_of_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {_stamp_of_file(path)}" for path in files]
    return f"{len(files)} files {blake3(chr(10).join(lines).encode('utf-8', 'surrogateescape')).hexdigest()}"


def thumbnail_values(entry: Entry) -> NDArray[np.float32] | None:
    """Return an entry's standardised thumbnail; None without one.

    Its mean is 0 and its norm 1, so that a dot product is a correlation.
    """
    if not entry.thumbnail:
        return None
    values: NDArray[np.float32] = np.frombuffer(base64.b64decode(entry.thumbnail), np.uint8).astype(np.float32)
    centred: NDArray[np.float32] = values - values.mean()
    norm = np.float32(np.linalg.norm(centred))
    return centred / norm if norm > 0 else None


def label_counts(label: Mapping[str, int]) -> dict[int, int]:
    """Return label value -> voxels with numbers as keys."""
    return {int(float(value)): count for value, count in label.items()}


def tissue_density(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the optical density of sampled pixels, (pixel, 3).

    Stains add optical density (Ruifrok and Johnston, 2001); glass, which has almost none, is left out.

    Args:
        pixels: (pixel, 3).
    """
    sample = pixels[:: max(1, len(pixels) // _STAIN_SAMPLES)].astype(np.float64)
    density: NDArray[np.float64] = -np.log10((sample + 1) / 256)
    tissue: NDArray[np.float64] = density[density.max(axis=1) > _LIKE_GLASS]
    return tissue


def stain(pixels: NDArray[np.uint8]) -> list[float] | None:
    """Return the mean optical density by channel.

    Of red, green and blue; None for glass only.
    """
    tissue = tissue_density(pixels)
    return [round(float(value), 4) for value in tissue.mean(axis=0)] if len(tissue) else None


def _is_coloured(image: LoadedImage) -> bool:
    return image.dimensions == 2 and image.values.shape[-1] == 3 and image.values.dtype == np.uint8


def _read_as(kind: str, path: Path, reader: Callable[[Path], LoadedImage]) -> LoadedImage:
    """Read a file; errors say which one it is."""
    try:
        return reader(path)
    except DataError as error:
        raise DataError(f"its {kind} file {path.parent.name}/{path.name} {error}") from None


def _label_facts(image: LoadedImage, label: LoadedImage, most_classes: int) -> dict[str, Any]:
    values = label.values
    if reason := as_stored_reason(image, label):
        return {"label_problem": reason}
    if fault := other_grid(image, label):
        return {"label_problem": f"its label {fault}".replace("expected (", "expected the image's (")}
    found, counts = counted(values)
    objects = int((found != 0).sum())
    if len(found) > most_classes:
        background = int(counts[found == 0].sum())
        return {
            "instances": objects,
            "label_values": {"0": background, "1": int(values.size) - background},
            "label_digest": _digest_of(values != 0, np.arange(2)),
        }
    return {
        "instances": objects,
        "label_digest": _digest_of(values, found),
        "label_values": {f"{int(v)}": int(c) for v, c in zip(found, counts, strict=True)},
        "label_colours": {str(number): colour for number, colour in label.colours} or None,
        "label_by_colour": label.by_colour or None,
    }


def _digest_of(values: Values, found: Values) -> str:
    """Return the digest of a mask's values, whatever its dtype.

    Args:
        values: of the mask.
        found: the distinct values, sorted.
    """
    small = values.astype(np.uint8 if found[0] >= 0 and found[-1] <= 255 else np.int32, copy=False)
    # Readers hold images in this order, so nothing is copied.
    return blake3(small.ravel(order="F").view(np.uint8).data).hexdigest()


def _flat(values: Values, like: Values | None = None) -> Values:
    """Return (voxel, channel) in the order of memory.

    NIfTI's first axis is the fastest in memory; any other order takes several times as long.
    """
    lying = values if like is None else like
    first_fastest = lying.strides[0] < lying.strides[-2]
    return values.reshape(-1, values.shape[-1], order="F" if first_fastest else "C")


def _intensity(values: NDArray[Any], mask: NDArray[np.bool_] | None) -> Intensity:
    flat = _flat(values)
    inside = mask if mask is not None and mask.any() else _foreground(flat)
    # Percentiles of evenly spread voxels match those of all, in a fraction of the time.
    step = max(1, np.count_nonzero(inside) // _INTENSITY_SAMPLES)
    sample = flat[::step][inside[::step]].astype(np.float64)
    if not len(sample):
        sample = flat[:: max(1, len(flat) // _INTENSITY_SAMPLES)].astype(np.float64)
    if sample.max() == sample.min() and flat.max() != flat.min():
        sample = flat[:: max(1, len(flat) // _INTENSITY_SAMPLES)].astype(np.float64)
    found = intensity_of(sample)
    if found.std == 0 and flat.max() != flat.min():
        return found.model_copy(update={"std": float(flat.std(dtype=np.float64)), "high": float(flat.max())})
    return found


def intensity_of(values: NDArray[Any]) -> Intensity:
    """Return the statistics of a sample of intensities."""
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return Intensity(
        low=float(low), median=float(median), high=float(high), mean=float(values.mean()), std=float(values.std())
    )


def _rough_intensity(values: NDArray[Any]) -> Intensity:
    """Return foreground intensities from fewer voxels.

    They suffice for the bins of a profile.
    """
    flat = _flat(values)
    return _intensity(flat[:: max(1, len(flat) // _ROUGH_SAMPLES)], None)


def _foreground(flat: Values) -> NDArray[np.bool_]:
    if flat.shape[1] == 1:
        return np.not_equal(flat[:, 0], 0)
    return np.asarray(flat.any(axis=1))


def _thumbnail(values: NDArray[Any]) -> str:
    cells, voxels = (16, 8) if values.ndim == 3 else (8, 4)
    # A few voxels along each axis of a cell suffice for its mean.
    steps = tuple(slice(None, None, max(1, n // (cells * voxels))) for n in values.shape[:-1])
    grey: NDArray[Any] = values[steps].mean(axis=-1, dtype=np.float32)
    for axis in range(grey.ndim):
        grey = _shrink(grey, axis, cells)
    low, high = float(grey.min()), float(grey.max())
    scaled = np.zeros(grey.shape) if high == low else (grey - low) / (high - low) * 255
    return base64.b64encode(np.rint(scaled).astype(np.uint8).tobytes()).decode()


def _shrink(values: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    length = values.shape[axis]
    bounds = np.arange(size) * length // size
    if length < size:
        shrunk: NDArray[Any] = np.take(values, bounds, axis=axis)
        return shrunk
    sums: NDArray[Any] = np.add.reduceat(values, bounds, axis=axis)
    counts = np.diff([*bounds, length])
    shape = [1] * values.ndim
    shape[axis] = size
    return sums / counts.reshape(shape).astype(np.float32)
