"""A bundle's preprocessing, equal to ``data.transforms``.

Steps are MONAI's transforms, or expressions of one line where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from oncofed.data.grids import in_larger_units
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import LUMA, NEARLY, intensity_range
from oncofed.models.bundle.expressions import Config, literal, of_image, unless
from oncofed.models.foreign import VOXEL_SIZE

_VOLUMES, _FLAT = (".nii", ".nii.gz"), (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_FORMATS = ["PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "PPM", "TIFF"]
# Pillow's mode -> the mode for reading it: without a palette, opacity or CMYK.
_MODES = {mode: mode for mode in ("1", "L", "I", "F", "I;16", "I;16B", "RGB")}
_MODES |= dict.fromkeys(("P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"), "RGB") | {"LA": "L"}
# If a reader refuses a file, LoadImaged tries all others.
_LOADED = "$lambda path: monai.transforms.LoadImage(image_only=True)(path, reader=@reader)"
# NIfTI's numbers of complex types, and of millimetres among the units of length; 0: unknown.
_STORED = [
    "'sform_code' in image.meta",
    "int(image.meta['datatype']) not in [32, 1792, 2048]",
    "numpy.allclose(nibabel.load(image.meta['filename_or_obj']).affine, image.meta['original_affine'])",
]
_IN_MILLIMETRES = "int(image.meta['xyzt_units']) % 8 in [0, 2]"
_ONE_PICTURE = "(getattr(image, 'n_frames', 1) == 1 or image.format == 'MPO')"
_WHOLE_VALUES = "not any(tile[3] in ['RGB;16B', 'RGBA;16B', 'LA;16B'] for tile in image.tile)"
# Photometric interpretation, bits of each sample, orientation, extra samples (TIFF 6.0).
_SIMPLE_TIFF = (
    "(image.format != 'TIFF' or image.mode in ['L', 'I;16', 'F', 'RGB'] and image.tag_v2.get(262) in [1, 2] "
    "and image.tag_v2.get(274, 1) == 1 and 338 not in image.tag_v2 "
    "and set(image.tag_v2.get(258, ())) <= ({8} if image.mode == 'RGB' else {8, 16, 32}))"
)
_CONVERTED = (
    f"$lambda image: ImageOps.exif_transpose(image).convert(@modes[image.mode]) if image.mode in @modes "
    f"and {_ONE_PICTURE} and {_WHOLE_VALUES} and {_SIMPLE_TIFF} else @refuse('not a picture that Pillow reads whole: "
    "save it as a PNG of 8 bits, or of 16 bits of grey')"
)
_PLACED = (
    "$lambda image: monai.data.MetaTensor(image, affine=torch.diag(torch.tensor([*@pixel_size, 1, 1], "
    "dtype=torch.float64)), applied_operations=image.applied_operations) if @pixel_size else "
    "@refuse('flat images do not say how large their pixels are: give pixel_size, x and y in mm')"
)
_FITTED = (
    "$lambda image: (lambda factor: monai.transforms.Resize([max(1, round(side * factor)) for side in image.shape[1:]],"
    " mode='area' if factor < 1 else {larger!r})(image))"
    "(min(box / side for box, side in zip({patch}, image.shape[1:])))"
)


@dataclass
class Reading:
    """A preprocessing.

    Attributes:
        suffixes: of the files that it reads.
        imports: what its expressions import.
        entries: functions that its steps refer to.
        steps: transforms of {"image": path}.
        moved: the image is not on its file's grid.
        packages: that it needs in addition to MONAI.
    """

    suffixes: tuple[str, ...]
    imports: list[str]
    packages: list[str]
    entries: Config = field(default_factory=dict)
    steps: list[Config] = field(default_factory=list)
    moved: bool = False

    def do(self, name: str, expression: str) -> None:
        """Add an expression of an image as the next step."""
        self.entries[name] = expression
        self.steps.append(of_image(f"@{name}"))


def reading(data: DataSpec, whole: bool) -> Reading:
    """Return the preprocessing of a job's images.

    Args:
        data: of the job.
        whole: the image is brought to the size of a patch, for a class of the image as a whole.
    """
    read = _volume(data) if data.dimensions == 3 else _flat(data)
    read.do("checked", unless(_conditions(data), "not finite, or not of the channels, size or spacing of the job"))
    if data.background == "dark":
        read.do("darkened", _darkened())
    _to_grid(read, data)
    if whole and not data.spacing:
        larger = "trilinear" if data.dimensions == 3 else "bilinear"
        read.do("fitted", _FITTED.format(larger=larger, patch=literal(list(data.patch))))
    read.steps.append(_normalised(data))
    if whole:
        read.steps.append({"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": list(data.patch)})
    read.steps.append({"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"})
    return read


def _volume(data: DataSpec) -> Reading:
    read = Reading(_VOLUMES, ["import nibabel", "import numpy"], ["nibabel"])
    read.entries["reader"] = {"_target_": "NibabelReader"}
    read.do("loaded", _LOADED)
    stored = [*_STORED, *([_IN_MILLIMETRES] if data.spacing or data.spacing_range else [])]
    why = "not a NIfTI file of real numbers in millimetres whose header says one thing"
    read.do("stored", unless(stored, why))
    read.steps.append({"_target_": "EnsureChannelFirstd", "keys": "image"})
    return read


def _flat(data: DataSpec) -> Reading:
    read = Reading(_FLAT, ["import PIL.Image as Image", "import PIL.ImageOps as ImageOps", "import numpy"], ["pillow"])
    reader = {"_target_": "PILReader", "converter": "@converted", "formats": _FORMATS}
    read.entries |= {"modes": _MODES, "converted": _CONVERTED, "reader": reader}
    read.do("loaded", _LOADED)
    read.steps.append({"_target_": "EnsureChannelFirstd", "keys": "image"})
    if data.spacing or data.spacing_range:
        read.entries["pixel_size"] = None
        read.do("placed", _PLACED)
    if len(data.channels) == 3:
        read.do("coloured", "$lambda image: image.repeat(3, 1, 1) if len(image) == 1 else image")
    elif len(data.channels) == 1:
        luma = literal([round(float(share), 3) for share in LUMA])
        read.do(
            "greyed",
            f"$lambda image: (image * torch.tensor({luma})[:, None, None]).sum(0, keepdim=True) "
            "if len(image) == 3 else image",
        )
    return read


def _conditions(data: DataSpec) -> list[str]:
    found = [
        f"image.ndim == {1 + data.dimensions}",
        f"len(image) == {len(data.channels)}",
        "bool(image.isfinite().all())",
    ]
    if data.size_range:
        least, greatest = (literal(side) for side in data.size_range)
        found.append(f"{least} <= min(image.shape[1:]) and max(image.shape[1:]) <= {greatest}")
    if data.spacing_range:
        least, greatest = literal(data.spacing_range[0] - 1e-6), literal(data.spacing_range[1] + 1e-6)
        sides = f"image.pixdim[:{data.dimensions}]"
        found.append(f"{least} <= min({sides}) and max({sides}) <= {greatest}")
    return found


def _darkened() -> str:
    near = literal(NEARLY)
    return (
        "$lambda image: (lambda low, median, high: image if median - low <= high - median + "
        f"{near} * (high - low) else image.max() - image)"
        "(*numpy.percentile(image.numpy().astype(float).mean(0), [1, 50, 99]))"
    )


def _to_grid(read: Reading, data: DataSpec) -> None:
    if data.dimensions == 3:
        read.steps.append({"_target_": "Orientationd", "keys": "image", "axcodes": data.orientation, "labels": None})
    read.moved = data.dimensions == 3 or bool(data.spacing)
    if not data.spacing:
        return
    scale = in_larger_units(np.diag([*data.spacing, *[1.0] * (4 - len(data.spacing))]))
    if scale != 1:
        # MONAI's tolerance is for voxels of about 1 mm.
        read.do("larger", _scaled(scale))
        read.steps[-1]["inv_func"] = "@smaller"
        read.entries |= {"smaller": _scaled(1 / scale), VOXEL_SIZE: list(data.spacing)}
    spacing = [side * scale for side in data.spacing]
    read.steps.append({"_target_": "Spacingd", "keys": "image", "pixdim": spacing, "mode": "bilinear"})


def _scaled(by: float) -> str:
    factors = literal([by, by, by, 1.0])
    return (
        "$lambda image: monai.data.MetaTensor(image, "
        f"affine=torch.diag(torch.tensor({factors}, dtype=torch.float64)).matmul(image.affine), "
        "applied_operations=image.applied_operations)"
    )


def _normalised(data: DataSpec) -> Config:
    found = intensity_range(data)
    if found is None:
        return {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **found, "clip": True}
