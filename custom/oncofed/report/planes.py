"""Draws a case: planes, contours, anatomical directions, scale bar."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from markupsafe import Markup, escape
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from oncofed.data import case_facts
from oncofed.data.case import Case
from oncofed.data.images import LoadedImage
from oncofed.data.placement import is_oblique, upright
from oncofed.data.register_options import Progress
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.report.slide_views import view_of

# After Okabe and Ito (2008), lighter for a black ground: distinct for colour-blind readers.
COLOURS = ("#ffb000", "#56b4e9", "#3ddc97", "#f0e442", "#ff7fc8", "#ff6f61", "#b9a3ff", "#9ae6e6")
_DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2")
_SIDE, FLAT_SIDE = 320, 480  # of a picture on the page, in pixels
_MOST_PIXELS = 640  # along a side of the stored picture
_SMALL = 256
_LEAST_BODY = 0.25  # share of the bright voxels of the fullest plane
_MOST_OBJECTS = 800
_MOST_TILES = 6000
_SMALL_LABEL = 0.05
_BAR = 0.3
# (upper limit of a label's median, window) in Hounsfield units.
_CT_WINDOWS = ((-300.0, (-1350.0, 150.0)), (250.0, (-160.0, 240.0)), (math.inf, (-450.0, 1050.0)))
_AIR = -200


@dataclass(frozen=True)
class Plane:
    """One picture: rows top to bottom, columns left to right.

    Attributes:
        title: name of a volume's plane; empty for a flat image.
        pixels: (row, column) or (row, column, 3) uint8.
        labels: (row, column), integers; None without a mask.
        size: width and height in mm, or in pixels if not calibrated.
        ends: letters of the directions left, right, top and bottom; empty if unknown.
        calibrated: whether ``size`` is in mm.
        tiles: left, top, width and height of each tile in pixels, with its label.
    """

    title: str
    pixels: NDArray[np.uint8]
    labels: NDArray[Any] | None
    size: tuple[float, float]
    ends: str = ""
    calibrated: bool = True
    tiles: tuple[tuple[float, float, float, float, int], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A case to draw.

    Attributes:
        case: image and mask.
        is_ct: values are Hounsfield units.
        most: show the planes with most of the mask, not those through its centre. Without a mask, planes go through
            the middle of the bright voxels.
    """

    case: Case
    is_ct: bool = False
    most: bool = False


@dataclass(frozen=True)
class Drawn:
    """Pictures of a case, with the label values in them."""

    name: str
    pictures: tuple[Markup, ...] = ()
    values: tuple[int, ...] = ()
    note: str = ""
    problem: str = ""


def draw(drawing: Drawing) -> Drawn:
    """Read and draw a case.

    ``problem`` says why it cannot be read.
    """
    case = drawing.case
    try:
        if case.tiles or case.features:
            view = view_of(case)
            planes = [Plane("", view.pixels, None, view.size, calibrated=view.calibrated, tiles=view.tiles)]
            note = view.note
        else:
            planes, note = _planes(drawing)
        values = sorted({int(v) for plane in planes for v in _values(plane)})
        if case.instances:
            values = [1] if values else []
        pictures = tuple(svg(plane, case.name, case.instances) for plane in planes)
        return Drawn(case.name, pictures, tuple(values), note)
    except Exception as error:  # noqa: BLE001 - readers raise any type for a malformed file
        return Drawn(case.name, problem=case_facts.reason_of(error))


def draw_all(
    drawings: Sequence[Drawing], workers: int | None, fewest: int, progress: Progress | None
) -> dict[str, Drawn]:
    """Draw cases in several processes.

    Args:
        drawings: the cases.
        workers: processes; None: one per core.
        fewest: cases from which several processes are used.
        progress: called with ("drawing", number done, total).

    Returns:
        Case name -> its drawing.
    """
    drawn: dict[str, Drawn] = {}
    with Workers(workers) as pool:
        for case in pool.map(draw, drawings, fewest, _broke):
            drawn[case.name] = case
            if progress:
                progress("drawing", len(drawn), len(drawings))
    return drawn


def _broke(drawing: Drawing) -> Drawn:
    return Drawn(drawing.case.name, problem=BROKE_ITS_READER)


def legend(values: Iterable[int], names: Mapping[int, str]) -> list[tuple[str, str, str]]:
    """Return (colour, dashes, name) of label values."""
    return [(colour(value), dash(value), names.get(value, f"label {value}")) for value in values]


def colour(value: int) -> str:
    """Return a label value's colour."""
    return COLOURS[(value - 1) % len(COLOURS)]


def dash(value: int) -> str:
    """Return dashes that distinguish labels of one colour."""
    return _DASHES[(value - 1) // len(COLOURS) % len(_DASHES)]


# --- planes


def _planes(drawing: Drawing) -> tuple[list[Plane], str]:
    case = drawing.case
    if isinstance(case.label, Path):
        image, label = case.read(numbered=case.instances)
        mask = label.values[..., 0] if label.shape == image.shape else None
    else:
        image, mask = case.read_image(), None
    channels = image.values.shape[-1]
    if image.dimensions == 2:
        return [_flat(image, mask)], "" if channels in {1, 3, 4} else f"first of {channels} channels"
    note = f"first of {channels} channels" if channels > 1 else ""
    if is_oblique(image.affine):
        note = f"{note}; oblique: letters say the nearest direction".lstrip("; ")
    return _volume(image, mask, drawing), note


def _flat(image: LoadedImage, mask: NDArray[Any] | None) -> Plane:
    values = image.values.swapaxes(0, 1)
    colours = values[..., :3] if values.shape[-1] in {3, 4} else values[..., 0]
    pixels = colours if colours.dtype == np.uint8 and colours.ndim == 3 else _shaded(colours, *_range(colours))
    width, height = (n * side for n, side in zip(image.shape, image.spacing or (1.0, 1.0), strict=True))
    return Plane("", pixels, None if mask is None else mask.T, (width, height), calibrated=image.spacing is not None)


def _volume(image: LoadedImage, mask: NDArray[Any] | None, drawing: Drawing) -> list[Plane]:
    turn = io_orientation(image.affine)
    known = bool(np.isfinite(turn).all())
    values = upright(image.values[..., :1], image.affine)[..., 0]
    labels = None if mask is None else upright(mask[..., None], image.affine)[..., 0]
    sizes = voxel_sizes(image.affine)
    if known:
        sizes = sizes[np.argsort(turn[:, 0])]
    at = _places(values, labels, drawing.most)
    window = _window(values, labels) if drawing.is_ct else None
    planes = []
    # Radiological view: from the feet, the front, and the patient's left.
    for title, axis, across, down, ends in (
        ("axial", 2, 0, 1, "RLAP"),
        ("coronal", 1, 0, 2, "RLSI"),
        ("sagittal", 0, 1, 2, "APSI"),
    ):
        # Right, and in the sagittal plane anterior, to the left of the page; anterior, or superior, on top.
        cut = [np.take(v, at[axis], axis=axis).T[::-1, ::-1] for v in (values, labels) if v is not None]
        size = (float(sizes[across] * values.shape[across]), float(sizes[down] * values.shape[down]))
        limits = window or _range(cut[0])
        planes.append(
            Plane(title, _shaded(cut[0], *limits), cut[1] if len(cut) > 1 else None, size, ends if known else "")
        )
    return planes


def _places(values: NDArray[Any], labels: NDArray[Any] | None, most: bool) -> tuple[int, ...]:
    """Return the plane to show, along each axis."""
    if labels is None or not (labels > 0).any():
        return _middle_of_body(values)
    return _fullest(labels, values) if most else _centre(labels)


def _centre(labels: NDArray[Any]) -> tuple[int, ...]:
    """Return the labelled voxel nearest to the label's centre."""
    found = np.argwhere(labels > 0)
    nearest = np.abs(found - found.mean(axis=0)).sum(axis=1).argmin()
    return tuple(int(n) for n in found[nearest])


def _fullest(labels: NDArray[Any], values: NDArray[Any]) -> tuple[int, ...]:
    """Return each axis's plane with most of a label.

    A plane that is nearly all air counts only if the label is nowhere else: false positives in the air would
    otherwise give a picture of air alone.
    """
    found = []
    for labelled, bright in zip(_by_plane(labels > 0), _by_plane(_bright(values)), strict=True):
        in_body = np.where(bright >= _LEAST_BODY * bright.max(), labelled, 0)
        found.append(int((in_body if in_body.any() else labelled).argmax()))
    return tuple(found)


def _middle_of_body(values: NDArray[Any]) -> tuple[int, ...]:
    """Return each axis's median plane of the body.

    The body: voxels brighter than the mean.
    """
    sums = [np.cumsum(bright) for bright in _by_plane(_bright(values))]
    return tuple(int(np.searchsorted(s, s[-1] / 2)) if s[-1] else len(s) // 2 for s in sums)


def _bright(values: NDArray[Any]) -> NDArray[np.bool_]:
    finite = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    bright: NDArray[np.bool_] = finite > finite.mean(dtype=np.float64)
    return bright


def _by_plane(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return each plane's number of voxels, by axis."""
    return [mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis)) for axis in range(mask.ndim)]


def _window(values: NDArray[Any], labels: NDArray[Any] | None) -> tuple[float, float] | None:
    """Return a CT window for the label.

    None if values are not Hounsfield units.
    """
    if values.min() >= _AIR:
        return None
    labelled = values[labels > 0] if labels is not None else values[:0]
    typical = float(np.median(labelled)) if labelled.size else 0.0
    return next(window for limit, window in _CT_WINDOWS if typical < limit)


def _range(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if np.issubdtype(values.dtype, np.floating) else values
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    return low, high if high > low else max(float(finite.max()), low + 1)


def _shaded(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) / max(high - low, 1e-6)
    shaded: NDArray[np.uint8] = (scaled.clip(0, 1) * 255).astype(np.uint8)
    return shaded


def _values(plane: Plane) -> NDArray[Any]:
    found = np.array([tile[4] for tile in plane.tiles]) if plane.labels is None else plane.labels
    return np.unique(found[found > 0])


# --- as SVG


def svg(plane: Plane, name: str, instances: bool = False) -> Markup:
    """Return a plane as SVG, in true proportions.

    Args:
        plane: to draw.
        name: of the case.
        instances: whether labels number objects of one class.
    """
    scale = (_SIDE if plane.title else FLAT_SIDE) / max(plane.size)
    width, height = (max(side * scale, 1.0) for side in plane.size)
    rows, columns = plane.pixels.shape[:2]
    parts = [
        f'<image href="{_encoded(plane.pixels)}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"/>'
    ]
    if plane.labels is not None:
        parts += _contours(plane.labels, (width / columns, height / rows), instances)
    if plane.tiles:
        parts += _tiles(plane, (width / columns, height / rows))
    parts += _letters(plane.ends, width, height)
    if plane.calibrated:
        parts.append(_bar(width, height, scale))
    label = escape(f"{plane.title} plane of {name}" if plane.title else name)
    box = f'viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}"'
    return Markup(f'<svg {box} role="img" aria-label="{label}">{"".join(parts)}</svg>')  # noqa: S704 - made of numbers


def _encoded(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    kind = "png" if max(picture.size) <= _SMALL else "jpeg"
    picture.save(buffer, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _contours(labels: NDArray[Any], pixel: tuple[float, float], instances: bool) -> Iterator[str]:
    """Yield outlines of labels, and rings around small ones."""
    step = max(1, math.ceil(max(labels.shape) / (2 * _MOST_PIXELS)))
    # The maximum of each cell keeps small labels on the coarser grid.
    coarse = ndimage.maximum_filter(labels, step)[::step, ::step] if step > 1 else labels
    numbers = np.unique(coarse[coarse > 0])
    if instances and len(numbers) > _MOST_OBJECTS:
        coarse, numbers = (coarse > 0).astype(np.uint8), np.array([1])
    paths: dict[int, list[str]] = {}
    boxes = ndimage.find_objects(coarse.astype(np.int32))
    for number in (int(n) for n in numbers):
        value = 1 if instances else number
        box = boxes[number - 1]
        paths.setdefault(value, []).append(_outline(coarse, number, box, (pixel[0] * step, pixel[1] * step)))
    for value, outlines in paths.items():
        dashes = f' stroke-dasharray="{dash(value)}"' if dash(value) else ""
        yield f'<path class="contour" stroke="{colour(value)}"{dashes} d="{"".join(outlines)}"/>'
    if len(numbers) and (ring := _ring(coarse, (pixel[0] * step, pixel[1] * step))):
        yield ring


def _outline(labels: NDArray[Any], number: int, box: tuple[slice, ...], pixel: tuple[float, float]) -> str:
    crop = np.pad((labels[box] == number).astype(np.float32), 1)
    # Contours go through pixel centres; the crop has a border of one pixel.
    corner = np.array([box[1].start - 0.5, box[0].start - 0.5])
    lines = contour_generator(z=crop).lines(0.5)
    text = []
    for line in lines:
        points = (np.asarray(line) + corner) * pixel
        text.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(text)


def _ring(labels: NDArray[Any], pixel: tuple[float, float]) -> str:
    rows, columns = np.nonzero(labels > 0)
    x, y = (columns.mean() + 0.5) * pixel[0], (rows.mean() + 0.5) * pixel[1]
    if max(np.ptp(columns) * pixel[0], np.ptp(rows) * pixel[1]) > _SMALL_LABEL * _SIDE:
        return ""
    return f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{_SMALL_LABEL * _SIDE:.0f}"/>'


def _tiles(plane: Plane, pixel: tuple[float, float]) -> Iterator[str]:
    step = max(1, math.ceil(len(plane.tiles) / _MOST_TILES))
    by_value: dict[int, list[str]] = {}
    for x, y, wide, high, value in plane.tiles[::step]:
        w, h = wide * pixel[0], high * pixel[1]
        by_value.setdefault(value, []).append(f"M{x * pixel[0]:.1f} {y * pixel[1]:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z")
    for value, squares in sorted(by_value.items()):
        paint = f'fill="{colour(value)}" stroke="{colour(value)}"' if value > 0 else 'fill="none" stroke="#0b6"'
        yield f'<path class="tiles" {paint} d="{"".join(squares)}"/>'


def _letters(ends: str, width: float, height: float) -> Iterator[str]:
    places = ((10, height / 2), (width - 10, height / 2), (width / 2, 14), (width / 2, height - 6))
    for letter, (x, y) in zip(ends, places, strict=False):
        yield f'<text class="end" x="{x:.1f}" y="{y:.1f}">{letter}</text>'


def _bar(width: float, height: float, scale: float) -> str:
    """Return a labelled scale bar.

    Its length is 1, 2 or 5 times a power of ten.
    """
    longest = _BAR * width / scale
    power = 10 ** math.floor(math.log10(longest))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= longest * 1.0001)
    words = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    left, drawn = 8.0, length * scale
    line = f"M{left} {height - 12:.1f}v4h{drawn:.1f}v-4"
    text = f'<text class="bar" x="{left}" y="{height - 17:.1f}">{words}</text>'
    return f'<path class="barline under" d="{line}"/><path class="barline" d="{line}"/>{text}'
