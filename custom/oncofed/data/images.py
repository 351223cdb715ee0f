"""Reading one image file, whatever its format, without guessing: NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF.

MONAI's ``LoadImage`` tries other readers where the one asked for fails. Here a file is read by the format that it
claims to be, or refused with what it looks like instead.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import psutil
from isal import igzip
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from PIL import Image

from oncofed.errors import DataError

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# gzip cannot make anything smaller than by this factor: a header that declares more is false.
_GZIP_LIMIT = 1032
# FSL, SPM, FreeSurfer, ANTs, ITK, dcm2niix and nibabel write versions and sequence parameters.
_SOFTWARE_TEXT = re.compile(
    r"(FSL|SPM|FreeSurfer|ITK|ANTs|dcm2nii|NiBabel|nifti|TE=|TR=|\d{1,4}(\.\d{1,4}){1,3}(:[0-9a-f]+)?$|none$|None$)",
    re.I,
)
_NIFTI2_HEADER = 540
# Only a header that says so tells how large voxels are: ITK takes a millimetre where it does not.
_SAYS_SPACING = re.compile(r"^(space directions:.*\(|spacings:.*\d|Element(Spacing|Size)\s*=)", re.M)
_LONGEST_HEADER = 1 << 16
# What stands before and around the reason in what ITK and its NRRD library say.
_ITK_ERROR = re.compile(r"ERROR: (?:\w+\(0x[0-9a-f]+\): )?(.+?)(?:: \S+ for reading\.)?$", re.M)
_NRRD_ERROR = re.compile(r"^\[nrrd\] \w+: ", re.M)
_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Salted__", "an encrypted file"),
    (b"-----BEGIN PGP", "an encrypted file"),
    (b"age-encryption.org", "an encrypted file"),
)


# It tells of oddities of headers without the file's name; what is wrong is raised, and told with it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class LoadedImage:
    """An image file's contents.

    Attributes:
        values: (x, y, z, channel) of a volume, (x, y, channel) of a flat image; scale and intercept are applied.
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image its pixel sizes alone.
        stored: type in the file, such as "int16".
        calibrated: whether the file says how large its pixels are.
        texts: header fields that hold text of their own, beyond what software writes of itself.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64]
    stored: str
    calibrated: bool = True
    texts: tuple[str, ...] = ()

    @property
    def dimensions(self) -> int:
        """2 for a flat image, 3 for a volume."""
        return self.values.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis, without channels."""
        return self.values.shape[:-1]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel or pixel size along each axis in mm; None where the file does not say."""
        return tuple(float(s) for s in voxel_sizes(self.affine)[: self.dimensions]) if self.calibrated else None

    @property
    def orientation(self) -> str | None:
        """Where a volume's axes point, such as "RAS"; None for a flat image."""
        return "".join(a or "?" for a in nib.aff2axcodes(self.affine)) if self.dimensions == 3 else None


def image_format(path: Path) -> str | None:
    """Return "nifti", "itk" or "raster" by the file's name; None for any other."""
    name = path.name.lower()
    for suffixes, kind in ((NIFTI, "nifti"), (ITK, "itk"), (RASTER, "raster")):
        if name.endswith(suffixes):
            return kind
    return None


def stem(path: Path) -> str:
    """Return a file's name without the suffix of its format, be it double."""
    name = path.name
    for suffix in (*NIFTI[::-1], *ITK, *RASTER):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def read_image(path: Path) -> LoadedImage:
    """Read one image file.

    Raises:
        DataError: it is missing, broken, or not what its name says; the message names neither path nor file.
    """
    kind = image_format(path)
    readers = {"nifti": _read_nifti, "itk": _read_itk, "raster": _read_raster}
    if kind is None:
        known = ", ".join((*NIFTI, *ITK, *RASTER))
        raise DataError(f"has no suffix of an image ({path.suffix or 'none'}), expected one of {known}")
    if not path.is_file():
        raise DataError("is missing")
    if path.stat().st_size == 0:
        raise DataError("is empty (0 bytes)")
    try:
        image = readers[kind](path)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - nibabel, gzip, zlib and Pillow raise many types for a broken file
        reason = _in_short(str(error)) or type(error).__name__
        reason = reason.replace(str(path), "file").replace(path.name, "file")
        names = {"nifti": "NIfTI", "itk": "NRRD or MetaImage", "raster": "an image"}
        raise DataError(f"cannot be read as {names[kind]} ({reason}{_resembles(path, kind)})") from None
    if not image.values.size:
        raise DataError(f"has no voxels: its size is {image.values.shape}")
    return image


def _in_short(text: str) -> str:
    """Return the reason in a library's message."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and _NRRD_ERROR.match(lines[-1]):
        return _NRRD_ERROR.sub("", lines[-1])
    found = _ITK_ERROR.search(text)
    return found[1] if found else lines[0] if lines else ""


def looks_like(path: Path) -> str | None:
    """Return what a file is by its first bytes, as words; None where they tell nothing."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if not head:
        return "an empty file"
    return next((words for magic, words in _MAGIC if head.startswith(magic)), None)


def require_memory(size: int, what: str = "declares") -> None:
    """Refuse an image that would not fit into half of this machine's memory.

    Args:
        size: bytes.
        what: verb of the message.

    Raises:
        DataError: it would not.
    """
    limit = _memory() // 2
    if size > limit:
        raise DataError(f"{what} {size / 2**30:.1f} GiB of pixels, more than half of this machine's memory")


@cache
def _memory() -> int:
    return int(psutil.virtual_memory().total)


def _resembles(path: Path, kind: str) -> str:
    found = looks_like(path)
    expected = {"nifti": ("gzip data",), "raster": ("a PNG image", "a JPEG image", "a TIFF image")}.get(kind, ())
    return f"; it looks like {found}" if found and found not in expected else ""


def _read_nifti(path: Path) -> LoadedImage:
    with uncompressed(path) as file:
        return _parse_nifti(path, file)


def uncompressed(path: Path) -> BinaryIO:
    """Open a NIfTI file, through ISA-L where it is compressed: it unpacks twice as fast as zlib, which nibabel uses."""
    if path.name.lower().endswith(".gz"):
        return cast("BinaryIO", igzip.open(path))  # type: ignore[no-untyped-call]
    return path.open("rb")


def _parse_nifti(path: Path, file: BinaryIO) -> LoadedImage:
    header_size = file.read(4)
    file.seek(0)
    of_nifti2 = _NIFTI2_HEADER in {int.from_bytes(header_size, "little"), int.from_bytes(header_size, "big")}
    version: Any = nib.Nifti2Image if of_nifti2 else nib.Nifti1Image
    image: Any = version.from_file_map({"image": nib.FileHolder(fileobj=file)})
    size = int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize
    require_memory(size)
    held = path.stat().st_size * (_GZIP_LIMIT if path.name.lower().endswith(".gz") else 1)
    if size > held:
        raise DataError(f"declares {size} bytes of voxels, which a file of {path.stat().st_size} bytes cannot hold")
    stored = image.get_data_dtype()
    if stored.fields or np.issubdtype(stored, np.complexfloating):
        raise DataError(f"is stored as {stored}, expected one number a voxel")
    shape = image.shape
    if len(shape) > 4 and all(n == 1 for n in shape[4:]):
        shape = shape[:4]
    if len(shape) not in {3, 4}:
        raise DataError(f"has {len(image.shape)} axes {image.shape}, expected a 3D volume, or 4D with channels last")
    _require_voxel_size(version, file, shape)
    values = np.asanyarray(image.dataobj).reshape(shape)
    if len(shape) == 3:
        values = values[..., None]
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError("has an affine that is not invertible: its header does not say where its voxels lie")
    return LoadedImage(values, affine, str(stored), texts=_header_texts(image.header))


def _require_voxel_size(version: Any, file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Refuse a volume of which the header tells no voxel size: nibabel takes a millimetre then."""
    file.seek(0)
    header = version.header_class.from_fileobj(file, check=False)
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    unknown = [not (np.isfinite(size) and size > 0) and n > 1 for size, n in zip(sizes, shape, strict=False)]
    if header["sform_code"] <= 0 and any(unknown):
        raise DataError(f"does not say how large its voxels are (pixdim is {[float(size) for size in sizes]})")


def _header_texts(header: Any) -> tuple[str, ...]:
    found = []
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        text = bytes(header[name].tobytes()).rstrip(b"\0 ").decode("latin-1") if name in header else ""
        if text.strip() and not _SOFTWARE_TEXT.match(text):
            found.append(name)
    return (*found, "extensions") if len(header.extensions) else tuple(found)


def _read_itk(path: Path) -> LoadedImage:
    if importlib.util.find_spec("SimpleITK") is None:
        raise DataError(f"is {path.suffix}, for which SimpleITK is needed: pip install 'oncofed[radiology]'")
    import SimpleITK as sitk  # noqa: N813, PLC0415 - optional

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    require_memory(int(np.prod(reader.GetSize(), dtype=np.int64)) * 4 * reader.GetNumberOfComponents())
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        values = values[..., None]
    dimensions = image.GetDimension()
    if dimensions not in {2, 3}:
        raise DataError(f"has {dimensions} axes {image.GetSize()}, expected two or three")
    with path.open("rb") as file:
        calibrated = bool(_SAYS_SPACING.search(file.read(_LONGEST_HEADER).decode("latin-1")))
    if dimensions == 3 and not calibrated:
        raise DataError("does not say how large its voxels are: its header has no spacing")
    values = np.moveaxis(values, range(dimensions), range(dimensions)[::-1])
    affine = np.eye(4)
    if dimensions == 3:
        direction = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
        affine[:3, :3], affine[:3, 3] = direction, image.GetOrigin()
        affine = np.diag([-1.0, -1, 1, 1]) @ affine  # ITK's world is LPS+
    else:
        affine[[0, 1], [0, 1]] = image.GetSpacing()
    return LoadedImage(values, affine, str(values.dtype), calibrated=calibrated)


def _read_raster(path: Path) -> LoadedImage:
    with Image.open(path) as image:
        require_memory(image.width * image.height * 4)
        if image.mode in {"P", "RGBA", "LA", "CMYK", "YCbCr"}:
            image = image.convert("RGB" if image.mode != "LA" else "L")  # noqa: PLW2901 - the same picture
        values = np.asarray(image)
        if values.dtype == bool:
            values = values.astype(np.uint8)
    values = values[..., None] if values.ndim == 2 else values
    return LoadedImage(values.swapaxes(0, 1), np.eye(4), str(values.dtype), calibrated=False)
