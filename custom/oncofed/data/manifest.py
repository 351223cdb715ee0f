"""``dataset.json``: a site's cases and their facts.

It extends the layout of the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 2022), so that
MONAI's ``load_decathlon_datalist`` reads it: lists ``training``, ``validation`` and ``test``, each entry with ``image``
and ``label`` as paths inside the manifest's folder. A file that somebody wrote by hand needs no more than that; what
``oncofed data register`` adds is described at each field.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.data.boxes import Box
from oncofed.data.label_names import named_values
from oncofed.data.targets import DatasetTarget, TargetValue
from oncofed.errors import DataError

MANIFEST_FILE = "dataset.json"
SALT_FILE = ".salt"  # of the patients' hashes; it also marks a folder as a registered dataset's
# What a value should be, by the type of pydantic's finding.
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "value_error": "a number",
    "list_type": "a list",
    "dict_type": "names with their values",
}
Task = Literal["segmentation", "classification", "slides"]
Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")


class _Part(BaseModel):
    # A manifest may come from elsewhere: unknown keys are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Intensity(_Part):
    """Intensities of an image's foreground.

    Labelled voxels, or those that are not zero.
    """

    low: float = Field(description="0.5th percentile")
    median: float
    high: float = Field(description="99.5th percentile")
    mean: float
    std: float


def _require_number(text: str) -> str:
    float(text)
    return text


_LabelValue = Annotated[str, AfterValidator(_require_number)]
_Channels = Annotated[list[str], Field(min_length=1)]


class FeatureFacts(_Part):
    """A slide's features, as an encoder made them.

    ``tiles`` is the number of vectors: 1 for an encoder of whole slides.
    """

    file: str = Field(description="path inside the folder")
    encoder: str = Field(description="name of the encoder, as oncofed data encoders lists it, or its maker's")
    digest: str | None = Field(None, description="of the encoder's weights (see oncofed data encoders); null: unknown")
    recipe: str | None = Field(
        None, description="digest of how the encoder was built and fed, of features made by oncofed; null: unknown"
    )
    level: Literal["tile", "slide"] = Field("tile", description="what a vector describes")
    size: int = Field(ge=1, description="numbers of a vector")
    tiles: int = Field(ge=1)
    tile: int | None = Field(None, description="pixels a side of a tile, as the encoder saw it; null: unknown")
    mpp: float | None = Field(None, description="microns per pixel of a tile; null: unknown")


class Entry(_Part):
    """One case."""

    image: str | _Channels = Field(description="path inside the folder; a list holds one file a channel")
    label: str | int | None = Field(None, description="path of the mask, or number of the class; null: none")
    name: str | None = Field(None, description="unique in the dataset")
    patient: str | None = Field(None, description="salted hash; entries with the same key are one patient")
    study: str | None = Field(None, description="salted hash; entries with the same key are of one DICOM study")
    modality: str | None = Field(None, description="DICOM's code, such as MR, CT, DX, SM; or what the layout says")
    spacing: list[float] | None = Field(None, description="mm along each stored axis; null: the file does not say")
    shape: list[int] | None = Field(None, description="size along each stored axis, without channels")
    channels: int | None = None
    affine: list[list[float]] | None = Field(None, description="of a volume: from voxels to RAS+ in mm, 4x4")
    orientation: str | None = Field(None, description='of a volume\'s axes, such as "RAS"')
    dtype: str | None = Field(None, description="type in the file")
    vendor: str | None = Field(None, description="manufacturer of the scanner")
    split: Split | None = Field(None, description="where the layout says it; null: dealt by each job")
    checksum: str | None = Field(None, description="SHA-256 of the image's file or files")
    stamp: str | None = Field(None, description="sizes and times of the files when they were read")
    intensity: Intensity | None = None
    image_intensity: Intensity | None = Field(None, description="the same where the image is not zero, if labelled")
    stain: list[float] | None = Field(None, description="of a colour image: mean optical density of red, green, blue")
    colours: str | None = Field(
        None,
        description="colours of pixels of tissue, base64; those of all images of a slide tell its stain",
    )
    finite: bool | None = Field(None, description="no NaN and no infinity")
    label_values: dict[_LabelValue, int] | None = Field(None, description="label value -> voxels, background too")
    instances: int | None = Field(None, description="objects in a mask that numbers them")
    label_digest: str | None = Field(
        None, description="BLAKE3 of the mask's values; of numbered objects: where any lies"
    )
    label_colours: dict[str, str] | None = Field(None, description='of a palette: number -> "#rrggbb"')
    label_by_colour: bool | None = Field(None, description="label values are the palette's colours, not its numbers")
    label_named: list[int] | None = Field(None, description="label values that had names when the mask was read")
    label_problem: str | None = Field(None, description="why the label does not lie on the image")
    nothing_there: bool = Field(
        False, description="a person has said that its mask is rightly empty (oncofed data resolve --empty-label)"
    )
    thumbnail: str | None = Field(None, description="8x8x8 or 16x16 means, base64: finds copies of the same image")
    tiles: str | None = Field(None, description="path of a slide's tiles (npz)")
    tile_quality: dict[str, int] | None = Field(
        None,
        description="of a slide: tiles with tissue, and those with pen, fold, blur, bubble; null: not looked for",
    )
    features: FeatureFacts | None = Field(None, description="of a slide that brings features instead of tiles")
    targets: dict[str, TargetValue] = Field(
        default_factory=dict, description="target -> what the case states of it; a target left out is unknown"
    )
    unread: dict[str, str] = Field(
        default_factory=dict,
        description='target -> why what the table says of it is not used; "": the same of its row',
    )
    boxes: list[Box] | None = Field(
        None, description="objects of the case, instead of those of its mask; empty: none was found; null: not stated"
    )
    looked_for: list[str] | None = Field(
        None, description="names of the mask's classes that were looked for; null: all that the dataset names"
    )
    tags: dict[str, str] = Field(default_factory=dict, description="other columns of a table")
    notes: list[str] = Field(default_factory=list, description="what was seen while reading")
    source: str | None = Field(None, description="where it lies in the registered folder; stays at the site")
    unlabelled: str | None = Field(None, description="why it has no label, where it has none")

    @property
    def is_read(self) -> bool:
        """Whether its image or its features were read."""
        return bool(self.shape or self.features)

    @property
    def images(self) -> list[str]:
        """The image's files."""
        return [self.image] if isinstance(self.image, str) else self.image


class Quarantined(_Part):
    """A case that cannot be used, and why.

    ``files`` counts the folder's files that were left out with it.
    """

    name: str
    reason: str
    source: str | None = None
    files: int = 0
    case: Entry | None = Field(None, description="of an empty mask: used once a person says that nothing is there")


class Decision(_Part):
    """A person's decision about findings of one kind.

    ``oncofed data resolve`` writes it.
    """

    finding: str = Field(description="what it answers, as the command names it, such as copies")
    action: str = Field(description="what is done, such as keep-one")
    groups: list[list[str]] = Field(description="names of the cases; together those that are about one another")
    content: dict[str, str] = Field(
        default_factory=dict,
        description="case -> start of its image's checksum, or why it was set aside: what changed is asked about anew",
    )
    who: str
    time: str = Field(description="in UTC, ISO 8601")
    why: str = ""


class Manifest(_Part):
    """A dataset."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this format")
    name: str = ""
    description: str = ""
    task: Task = "segmentation"
    modality: dict[str, str] = Field(default_factory=dict, description="channel -> what it shows")
    labels: dict[str, str] = Field(default_factory=dict, description="label value -> name; a number is no name")
    label_kind: Literal["classes", "instances"] = Field(
        "classes", description="instances: each object has a number of its own, and all are label 1"
    )
    codes: dict[str, str] = Field(
        default_factory=dict, description="label value -> what DICOM codes it as, such as SCT:10200004"
    )
    label_map: dict[str, str | None] = Field(
        default_factory=dict, description="this site's label name -> the job's; null: background. Written by hand"
    )
    targets: dict[str, DatasetTarget] = Field(
        default_factory=dict, description="outcomes, findings, grades and values that cases may state"
    )
    patient_from: Literal["id", "study", "series", "folder"] = Field(
        "id", description="what tells DICOM patients apart; registering again keeps it"
    )
    told_apart: str = Field("", description="changes when an image that is registered again has another patient's key")
    reviewed: list[str] = Field(default_factory=list, description="findings on PHI that a person has looked at")
    training: list[Entry]
    validation: list[Entry] = []
    test: list[Entry | str] = Field([], description="bare paths are the Decathlon's unlabelled images")
    quarantine: list[Quarantined] = []
    decisions: list[Decision] = Field([], description="what a person decided about findings; in force at each reading")
    remarks: list[str] = Field([], description="what was seen of the folder as a whole while it was read")
    files: dict[str, int] = Field(default_factory=dict, description="image, label, table ... or left out -> how many")
    left_out: dict[str, int] = Field(default_factory=dict, description="files that are no case: why -> how many")

    @property
    def entries(self) -> list[Entry]:
        """Every case, of whichever list."""
        return [e for _, e in self.by_split()]

    def reading(self, entry: Entry) -> tuple[bool, tuple[int, ...]]:
        """Return how to read an entry's mask.

        Whether by colour, and which of its values have names; see ``read_mask``.

        What nobody registered has the names of the whole list.
        """
        names = entry.label_named or []
        if entry.shape is None and not names:
            names = [int(v) for v, name in self.labels.items() if not name.isdigit() and not name.startswith("#")]
        return bool(entry.label_by_colour), tuple(names)

    def by_split(self) -> Iterator[tuple[Split, Entry]]:
        """Yield each case with its list."""
        for split in SPLITS:
            for entry in getattr(self, split):
                if isinstance(entry, Entry):
                    yield split, entry


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/dataset.json``.

    Raises:
        DataError: there is none, or it is no manifest; the message says where it differs.
    """
    path = manifest_path(folder)
    return manifest_of(manifest_values(path), path)


def manifest_values(path: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: not JSON from {where} on. Repair the file or write it again.") from None
    except (UnicodeDecodeError, OSError):
        raise DataError(f"{path}: cannot be read as text in UTF-8. Repair the file or write it again.") from None


def manifest_of(values: Any, path: Path) -> Manifest:
    """Return the manifest that a file's values are.

    Raises:
        DataError: they are none; the message says where they differ.
    """
    if not isinstance(values, dict) or not isinstance(values.get("training"), list):
        raise DataError(f'{path}: no list "training". Expected {{"training": [{{"image": ..., "label": ...}}, ...]}}.')
    try:
        return Manifest.model_validate(_old_spellings(values, path))
    except ValidationError as error:
        raise DataError(f"{path}: {_explain(error, values)}") from None


def manifest_path(folder: Path) -> Path:
    """Return the manifest of a dataset's folder.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Expected a folder with dataset.json, imagesTr and labelsTr.")
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: no dataset.json. Expected the Decathlon layout: dataset.json, imagesTr, labelsTr. "
            f"Any other layout becomes one by: oncofed data register {shlex.quote(str(folder))} --dataset NAME"
        )
    return path


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``folder/dataset.json`` in one step, and return it."""
    values = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    values["numTraining"] = len(manifest.training)
    values["numTest"] = len(manifest.test)
    path = folder / MANIFEST_FILE
    write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return path


def inside(folder: Path, relative: str) -> Path:
    """Return a manifest's path as a path of this machine.

    It is compared by its letters on purpose: a site may link files into its folder, a manifest may not point out of it.

    Raises:
        DataError: it lies outside the folder.
    """
    path = Path(os.path.normpath(folder / relative))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise DataError(f"{folder / MANIFEST_FILE}: {relative!r} lies outside the folder. Expected a path inside it.")
    return path


def _old_spellings(values: dict[str, Any], path: Path) -> dict[str, Any]:
    # nnU-Net writes {"background": 0, "tumour": 1} and "channel_names"; some manifests give a version of their own.
    values = dict(values)
    labels = named_values(values.pop("labels", None), path)
    if labels is not None:
        values["labels"] = labels
    if "channel_names" in values and "modality" not in values:
        values["modality"] = values["channel_names"]
    for key in ("modality", "label_map"):
        if not isinstance(values.get(key, {}), dict):
            del values[key]
    for key in ("name", "description"):
        if not isinstance(values.get(key, ""), str):
            del values[key]
    if values.get("task") not in {"segmentation", "classification", "slides"}:
        values.pop("task", None)
    return values


def _explain(error: ValidationError, values: dict[str, Any]) -> str:
    problem = error.errors()[0]
    where = [str(part) for part in problem["loc"]]
    if len(where) > 1 and where[0] in SPLITS:
        entry = values[where[0]][int(where[1])]
        if where[2:3] == ["targets"] and len(where) > 3:
            return (
                f'entry {where[1]} of "{where[0]}" states {json.dumps(entry["targets"][where[3]])[:80]} of target '
                f'{where[3]}, expected a name, a number, {{"finding": true}}, or {{"time": 12.5, "event": true}}.'
            )
        return (
            f'entry {where[1]} of "{where[0]}" is {json.dumps(entry)[:80]}, '
            'expected {"image": "imagesTr/NAME.nii.gz", "label": "labelsTr/NAME.nii.gz"}.'
        )
    found = json.dumps(problem["input"], default=str)[:80]
    expected = _EXPECTED.get(problem["type"], "what data/README.md of oncofed says of it")
    if "expected" in problem.get("ctx", {}):
        expected = problem["ctx"]["expected"]
    return f"{'.'.join(where)} is {found}, expected {expected}. Repair the file or write it again."
