"""The ``data`` section of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.agreed import Agreed, Columns, Harmonizer, PatientValues
from oncofed.data.harmonization.landmarks import INTENSITY, IntensityColumn, intensity_columns
from oncofed.data.harmonization.spec import HarmonizationSpec
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
    harmonization: HarmonizationSpec = Field(
        HarmonizationSpec(), description="how what sites measure differently is made alike"
    )

    _template: Template | None = PrivateAttr(None)
    _intensities: Tensor | None = PrivateAttr(None)
    _agreed: Agreed | None = PrivateAttr(None)
    _patients: PatientValues | None = PrivateAttr(None)
    _harmonizer: Harmonizer | None = PrivateAttr(None)

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
    def _intensities_have_no_unit(self) -> DataSpec:
        if self.harmonization.intensity != "none" and self.modality not in ("mri", "xray"):
            raise SettingError(
                f"is for images whose values have no unit (modality mri or xray), found {self.modality}: leave it out",
                "harmonization.intensity",
            )
        return self

    @model_validator(mode="after")
    def _harmonized_columns_are_numbers(self) -> DataSpec:
        known = {name_key(column.name): column for column in self.covariates}
        for field in ("columns", "preserve"):
            for name in getattr(self.harmonization, field):
                column = known.get(name_key(name))
                if column is None:
                    raise SettingError(
                        f"found {name}, expected the name of a column in data.covariates", f"harmonization.{field}"
                    )
                if field == "columns" and not column.range:
                    raise SettingError(
                        f"found {name}, which has categories, expected a number: categories have no scale",
                        "harmonization.columns",
                    )
        moved, kept = (
            {name_key(name) for name in names} for names in (self.harmonization.columns, self.harmonization.preserve)
        )
        if moved & kept:
            raise SettingError(
                f"found {sorted(moved & kept)[0]} in columns as well: what is preserved is taken as it is",
                "harmonization.preserve",
            )
        if kept and not self.harmonization.groups:
            raise SettingError(
                "is for features or columns by ComBat, and the job has neither", "harmonization.preserve"
            )
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
        return (*self.covariates, *self.template_columns)

    @property
    def template_columns(self) -> tuple[Covariate, ...]:
        """Those of the templates that images are mapped to, which are known only once the sites agreed."""
        return (*self.stain.columns, *self.intensity_columns)

    @property
    def intensity_columns(self) -> tuple[IntensityColumn, ...]:
        """Landmarks of the template of intensities; none where images keep their own."""
        return intensity_columns(self.channels) if self.harmonization.intensity != "none" else ()

    @property
    def intensities(self) -> Tensor | None:
        """The template that intensities are mapped to, (landmark,); None: they are only standardised."""
        return self._intensities

    @property
    def template(self) -> Template | None:
        """What slides are made to look like; None: nobody has agreed on it yet, or no job needs one."""
        return self._template

    def take_agreed(self, weights: Mapping[str, Tensor]) -> None:
        """Take what the sites agreed on, which travels with a model's weights, from now on.

        Args:
            weights: of the job's network.
        """
        if BUFFER in weights and self.stain.columns:
            self._template = Template(self.stain.columns, weights[BUFFER].detach().float().cpu())
        if INTENSITY in weights and self.intensity_columns and weights[INTENSITY].any():
            self._intensities = weights[INTENSITY].detach().float().cpu()
        agreed = Agreed.of(weights, self.harmonization.groups)
        if agreed and (self._agreed is None or self._agreed.key != agreed.key):
            self._agreed, self._harmonizer = agreed, None

    @property
    def combat_columns(self) -> Columns:
        """The table's columns as ComBat takes them."""
        return Columns(self.covariates, self.harmonization)

    @property
    def lacks_patients(self) -> bool:
        """Whether a site's own patients are to tell its shift, and nobody named them yet."""
        return bool(self.harmonization.groups) and self._agreed is not None and self._patients is None

    def take_patients(self, patients: PatientValues) -> None:
        """Take a site's own patients, of which ComBat tells its shift and scale.

        Args:
            patients: for training, or of a site where a trained model predicts.
        """
        self._patients, self._harmonizer = patients, None

    @property
    def harmonizer(self) -> Harmonizer | None:
        """What makes this site's batches alike to others'; None: nothing does, and values are taken as they are.

        Raises:
            DataError: of fewer than five of the site's patients everything is known.
        """
        if self._harmonizer is None and self._agreed and self._patients:
            self._harmonizer = Harmonizer(self._agreed, self._patients, self.combat_columns)
        return self._harmonizer

    @property
    def may_be_slides(self) -> bool:
        """Whether images may be slides of tissue."""
        return self.modality == "microscopy" and self.dimensions == 2

    @property
    def dimensions(self) -> int:
        """2 for flat images, 3 for volumes."""
        return len(self.patch)
