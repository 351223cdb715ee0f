"""Read a stack's pixels and their place in space.

Patient orientation of projections: DICOM PS3.3, section C.7.6.1.1.1.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from oncofed.data.dicom.files import read_file
from oncofed.data.dicom.frames import mean_orientation
from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.dicom.projections import size_notes
from oncofed.data.dicom.stacks import Stack
from oncofed.data.dicom.values import bright_padding, meant, rescaled, smallest
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.data.images import LoadedImage, require_memory
from oncofed.errors import DataError

_BLOCK = 1 << 20
_CUT_OFF = re.compile(r"less than expected|cut off|truncated|end of (file|data)|not enough", re.I)
_PLAIN_SYNTAXES = {str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)}


@dataclass(frozen=True)
class Pixels:
    """An image read from DICOM.

    Attributes:
        image: values with their place; a flat image's affine holds only pixel sizes.
        notes: steps taken, for people.
    """

    image: LoadedImage
    notes: list[str] = field(default_factory=list)


def read_stack(root: Path, stack: Stack) -> Pixels:
    """Read the pixels of a stack.

    Args:
        root: folder that the slices' paths start from.
        stack: from ``group_series``.

    Returns:
        A volume (column, row, slice, 1) or a flat image (column, row, channel), rescaled; int16, int32 or float32.

    Raises:
        DataError: it cannot be read; the message names no path.
    """
    if stack.reason:
        raise DataError(stack.reason)
    header = stack.header
    frames = max(header.frames, len(stack.slices))
    require_memory(header.rows * header.columns * frames * header.samples * 4)
    paths = [root / item.path for item in stack.slices]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if stack.kind == "multiframe":
                return _multiframe(paths[0])
            if stack.kind == "flat":
                return _flat(paths[0], stack)
            return _volume(paths, stack)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise many types for broken pixels
            raise DataError(f"its pixels cannot be read ({_why(error, header)})") from None


def digest(path: Path, header: ImageHeader) -> str:
    """Return a digest of an image's real values.

    It does not depend on how they are stored, except for several frames and pixels that cannot be read.
    """
    found = hashlib.sha256()
    values = _lone_frame(path, header)
    if values is not None:
        found.update(f"{values.shape} {values.dtype}".encode())
        found.update(values.tobytes())
        return found.hexdigest()
    with path.open("rb") as file:
        file.seek(header.pixels_at)
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _lone_frame(path: Path, header: ImageHeader) -> NDArray[Any] | None:
    """Return a single frame's values, if there is one.

    None also if they cannot be read.
    """
    if header.frames > 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _frame(path, [], header)
        except Exception:  # noqa: BLE001 - decoders raise many types for broken pixels
            return None


def _why(error: Exception, header: ImageHeader) -> str:
    """Return why pixels cannot be decoded."""
    message = str(error)
    if _CUT_OFF.search(message):
        return "the file is cut off: it holds fewer bytes of pixels than its header says. Copy it anew"
    kind = UID(header.syntax).name if header.syntax else "not said"
    if "12-bit" in message:
        return f"{kind} of 12-bit precision; pip install 'oncofed[jpeg12]' brings a decoder under the GPL"
    return f"transfer syntax {kind}: no decoder could read them; the file is damaged, or that is not how it is written"


def _volume(paths: Sequence[Path], stack: Stack) -> Pixels:
    notes: list[str] = []
    headers = [item.header for item in stack.slices]
    first = _frame(paths[0], notes, headers[0])
    # Slice by slice in memory, the order of the frames and of NIfTI: others take several times as long.
    frames = np.empty((len(paths), *first.shape), first.dtype)
    frames[0] = first
    for number, path in enumerate(paths[1:], start=1):
        frame = _frame(path, [], headers[number])
        if frame.shape != first.shape:
            sizes = " and ".join(" x ".join(map(str, shape)) for shape in (first.shape, frame.shape))
            raise DataError(f"its slices have different sizes ({sizes}), expected one. Export the series again")
        if np.result_type(frames, frame) != frames.dtype:
            frames = frames.astype(np.result_type(frames, frame))
        frames[number] = frame
    values = frames.transpose(2, 1, 0)
    affine = _affine(stack)
    if stack.tilt:
        values, affine = _straighten(values, affine)
    image = LoadedImage(values[..., None], LPS_TO_RAS @ affine, str(values.dtype))
    return Pixels(image, notes)


def _affine(stack: Stack) -> NDArray[np.float64]:
    """Return (column, row, slice) -> LPS in mm.

    PS3.3, equation C.7.6.2.1-1, with the slices' positions.
    """
    header = stack.header
    row, column = _directions(stack)
    positions = np.array([item.header.position for item in stack.slices])
    affine = np.eye(4)
    affine[:3, 0] = row * header.spacing[1]
    affine[:3, 1] = column * header.spacing[0]
    if len(positions) > 1:
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    else:
        affine[:3, 2] = np.cross(row, column) * (header.thickness or 1.0)
    affine[:3, 3] = positions[0]
    return affine


def _directions(stack: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions of rows and columns in LPS.

    If slices differ by rounding, their mean, made perpendicular.
    """
    mean = mean_orientation(stack.slices)
    row, column = mean[:3], mean[3:]
    if any(item.header.orientation != stack.header.orientation for item in stack.slices):
        row = row / np.linalg.norm(row)
        column = column - row * (row @ column)
        column = column / np.linalg.norm(column)
    return row, column


def _straighten(values: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Straighten a tilted gantry's slices.

    Each is shifted to lie above the first one, on a grid with right angles.
    """
    from scipy import ndimage  # noqa: PLC0415 - takes 0.2 s to import, and is seldom needed

    units = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    normal = np.cross(units[:, 0], units[:, 1])
    step = affine[:3, 2]
    sizes = np.linalg.norm(affine[:3, :2], axis=0)
    shift = units.T @ step / sizes  # pixels per slice, along columns and rows
    depth = values.shape[2]
    reach = shift * (depth - 1)
    before = np.ceil(np.maximum(-reach, 0)).astype(int)
    after = np.ceil(np.maximum(reach, 0)).astype(int)
    padded = np.pad(values, [*zip(before, after, strict=True), (0, 0)], constant_values=values.min())
    moved = np.empty(padded.shape, np.float32)
    for number in range(depth):
        ndimage.shift(
            padded[..., number].astype(np.float32), shift * number, moved[..., number], order=1, mode="nearest"
        )
    straight = affine.copy()
    straight[:3, 2] = normal * (step @ normal)
    straight[:3, 3] -= affine[:3, :2] @ before
    return moved, straight


def _frame(path: Path, notes: list[str], header: ImageHeader) -> NDArray[Any]:
    """Return one frame of real values.

    (row, column) or (row, column, 3).
    """
    plain = _plain_frame(path, notes, header)
    return meant(read_file(path), header, notes) if plain is None else plain


def _plain_frame(path: Path, notes: list[str], header: ImageHeader) -> NDArray[Any] | None:
    """Return a 16-bit grey frame without parsing, if possible.

    Parsing the header a second time takes longer than the rest of reading an uncompressed slice.
    """
    plain = header.syntax in _PLAIN_SYNTAXES and header.bits == 16 and header.samples == 1
    if not plain or header.photometric != "MONOCHROME2" or header.frames != 1 or not header.plain_values:
        return None
    if bright_padding(header):
        return None
    size = header.rows * header.columns * 2
    with path.open("rb") as file:
        file.seek(header.pixels_at)
        head = file.read(12 if header.syntax == ExplicitVRLittleEndian else 8)
        content = file.read(size)
    # Tag (7FE0,0010), the VR if it is explicit, and the length: PS3.5, section 7.1.
    length = int.from_bytes(head[-4:], "little")
    if head[:4] != b"\xe0\x7f\x10\x00" or length != size or len(content) != size:
        return None
    stored = np.frombuffer(content, "<i2" if header.signed else "<u2").reshape(header.rows, header.columns)
    bits = header.bits_stored - (1 if header.signed else 0)
    if stored.max() >= 1 << bits or stored.min() < (-(1 << bits) if header.signed else 0):
        return None  # the unused bits hold something else: leave it to pydicom
    return smallest(rescaled(stored, header, None, notes))


def _multiframe(path: Path) -> Pixels:
    import highdicom  # noqa: PLC0415 - the same

    image = highdicom.Image.from_dataset(read_file(path), copy=False)
    try:
        volume = image.get_volume(dtype=np.float32, allow_missing_positions=False)
    except (ValueError, RuntimeError):
        raise DataError(_no_volume(image)) from None
    # highdicom's axes are (slice, row, column).
    values = smallest(np.asarray(volume.array).transpose(2, 1, 0))
    affine = volume.affine[:, [2, 1, 0, 3]]
    return Pixels(LoadedImage(values[..., None], LPS_TO_RAS @ affine, str(values.dtype)))


def _no_volume(image: Dataset) -> str:
    """Return why frames are not one volume."""
    frames = image.get("PerFrameFunctionalGroupsSequence", [])
    places = [
        tuple(np.round([float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient], 2))
        for frame in frames
        if frame.get("PlanePositionSequence")
    ]
    if len(places) > len(set(places)):
        what = f"it holds several volumes in one file, {len(places)} frames at {len(set(places))} places"
    else:
        what = f"its {len(frames)} frames have uneven distances, several directions, or no positions"
    return f"its frames are not one regular volume: {what}. Convert it with dcm2niix, register the NIfTI"


def _flat(path: Path, stack: Stack) -> Pixels:
    notes = size_notes(stack.header.magnified) if stack.header.spacing else []
    values = _frame(path, notes, stack.header)
    values = values[..., None] if values.ndim == 2 else values
    spacing = stack.header.spacing
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0]) if spacing else np.eye(4)
    values = values.swapaxes(0, 1)
    values, affine = _upright(values, affine, stack, notes)
    return Pixels(LoadedImage(values, affine, str(values.dtype), calibrated=bool(spacing)), notes)


def _upright(
    values: NDArray[Any], affine: NDArray[np.float64], stack: Stack, notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn a projection upright, by its header."""
    header = stack.header
    if header.modality not in {"CR", "DX", "RG"} or header.body_part.upper() == "BREAST":
        return values, affine
    turned = header.turned
    if len(turned) != 2 or not all(turned):
        notes.append("its header does not say how it is turned (PatientOrientation)")
        return values, affine
    along_columns, along_rows = turned[0][0], turned[1][0]
    if along_columns in "FH" and along_rows in "LRAP":
        values, affine = values.swapaxes(0, 1), affine[[1, 0, 2, 3]][:, [1, 0, 2, 3]]
        along_columns, along_rows = along_rows, along_columns
        notes.append(f"was stored sideways ({turned[0]}, {turned[1]}): turned upright")
    if along_rows == "H":
        values = values[:, ::-1]
        notes.append("was stored upside down: flipped")
    if along_columns == "R":
        values = values[::-1]
        notes.append("was stored mirrored, with the patient's right on the right: flipped")
    return values, affine


def as_turned(values: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """Return a flat image's label, turned as the image was.

    (column, row, channel).
    """
    return _upright(values, np.eye(4), stack, [])[0]
