"""The ``data`` section of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from oncofed.data.covariates import Covariate
from oncofed.data.label_names import name_key
from oncofed.data.manifest import SPLITS, Split
from oncofed.data.stain.columns import BUFFER, Template
from oncofed.data.stain.spec import StainSpec
from oncofed.settings import SettingError, StrictModel

Millimetres = Annotated[float, Field(gt=0, le=20)]
Voxels = Annotated[int, Field(ge=8, le=2048)]
Modality = Literal["mri", "ct", "pet", "xray", "microscopy"]

# DICOM's codes (PS3.3, section C.7.3.1.1.1) and what other layouts write, by the modality of a job.
MODALITY_NAMES: dict[str, tuple[str, ...]] = {
    "mri": ("mr", "mri"),
    "ct": ("ct",),
    "pet": ("pt", "pet"),
    "xray": ("cr", "dx", "mg", "rg", "xa", "rf", "xray", "x-ray"),
    "microscopy": ("sm", "gm", "xc", "microscopy", "histology", "pathology", "fluorescence"),
}


class SplitSpec(StrictModel):
    """How patients are split into validation and test.

    Used where the dataset does not list them.
    """

    validation: float = Field(0.15, ge=0, lt=1, description="share of the patients that chooses the best round")
    test: float = Field(0.2, ge=0, lt=1, description="share of the patients held out until the end")


class DataSpec(StrictModel):
    """A job's contract with each site's dataset.

    Which dataset it reads, what that must be like, and the grid on which the network sees it.
    """

    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name under which every site registers its folder"
    )
    modality: Modality = Field("mri", description="what the images are; decides the intensity normalisation")
    channels: tuple[str, ...] = Field(
        ("image",), min_length=1, max_length=16, description="what each channel shows, such as [red, green, blue]"
    )
    window: tuple[float, float] | None = Field(
        None, description="CT: Hounsfield units that become 0 to 1; null: -1000 to 1000 become -1 to 1"
    )
    background: Literal["as_is", "dark"] = Field(
        "as_is", description="dark: images whose background is bright are inverted, so that stains look alike"
    )
    orientation: Literal["RAS", "LPS"] = Field("RAS", description="axis order of the working grid of volumes")
    spacing: tuple[Millimetres, ...] | None = Field(
        None, description="voxel size of the working grid in mm; null keeps each image's own"
    )
    patch: tuple[Voxels, ...] = Field(
        (32, 32, 32), min_length=2, max_length=3, description="training patch in voxels; two sides: flat images"
    )
    split: SplitSpec = SplitSpec()
    splits: tuple[Split, ...] = Field(SPLITS, min_length=1, description="lists of dataset.json that the job may use")
    spacing_range: tuple[Millimetres, Millimetres] | None = Field(
        None, description="smallest and largest voxel side in mm that an image may have"
    )
    size_range: tuple[int, int] | None = Field(
        None, description="fewest and most voxels that an image may have along an axis"
    )
    minimum_cases: int = Field(2, ge=2, description="fewest usable cases of a site")
    max_bad_share: float = Field(
        0.05, ge=0, le=1, description="share of a site's cases that may be set aside as unusable; more stops the site"
    )
    cache: Literal["auto", "gpu", "memory", "disk"] = Field(
        "auto",
        description="where prepared training cases are held; auto: on the GPU where they fit, else in memory, else on "
        "disk. Each is also kept on disk for the next run",
    )

    covariates: tuple[Covariate, ...] = Field(
        (), max_length=64, description="columns of the dataset's table that the network sees too, such as age"
    )

    stain: StainSpec = Field(StainSpec(), description="how stains that differ are made alike; microscopy in colours")

    _template: Template | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _stain_is_of_microscopy(self) -> DataSpec:
        if self.stain.is_used and (self.modality != "microscopy" or len(self.channels) != 3 or self.dimensions != 2):
            raise SettingError(
                f"is for microscopy of red, green and blue, found {self.modality} of {len(self.channels)} channels and "
                f"{self.dimensions} axes: leave data.stain out",
                "stain",
            )
        if self.stain.augment != "none" and self.background == "dark":
            raise SettingError(
                f"found {self.stain.augment} with data.background: dark, which inverts images before: glass would be "
                "taken for the thickest stain. Leave one of them out",
                "stain.augment",
            )
        return self

    @model_validator(mode="after")
    def _columns_have_names_of_their_own(self) -> DataSpec:
        keys = [name_key(column.name) for column in self.covariates]
        twice = [column.name for column in self.covariates if keys.count(name_key(column.name)) > 1]
        if twice:
            raise ValueError(f"two covariates are called {twice[0]}; name each column once")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> DataSpec:
        if self.spacing and len(self.spacing) != len(self.patch):
            raise SettingError(
                f"has {len(self.spacing)} sides and patch {len(self.patch)}, expected as many", "spacing"
            )
        if self.window and self.modality != "ct":
            raise SettingError(f"is for modality ct, the job's is {self.modality}", "window")
        for name in ("spacing_range", "size_range", "window"):
            pair = getattr(self, name)
            if pair and pair[0] >= pair[1] and (pair[0] > pair[1] or name == "window"):
                raise SettingError(f"found {pair[0]:g} to {pair[1]:g}, expected the smaller number first", name)
        return self

    @property
    def agreed_columns(self) -> tuple[Covariate, ...]:
        """Numbers whose mean and spread the sites agree on before the first round."""
        return (*self.covariates, *self.stain.columns)

    @property
    def template(self) -> Template | None:
        """What slides are made to look like; None: nobody has agreed on it yet, or no job needs one."""
        return self._template

    def take_template(self, weights: Mapping[str, Tensor]) -> None:
        """Take the template that travels with a model's weights, from now on.

        Args:
            weights: of the job's network.
        """
        if BUFFER in weights and self.stain.columns:
            self._template = Template(self.stain.columns, weights[BUFFER].detach().float().cpu())

    @property
    def may_be_slides(self) -> bool:
        """Whether images may be slides of tissue."""
        return self.modality == "microscopy" and self.dimensions == 2

    @property
    def dimensions(self) -> int:
        """2 for flat images, 3 for volumes."""
        return len(self.patch)
