"""What to register, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oncofed.data.dicom.patients import PatientFrom
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.manifest import Task
from oncofed.data.masks import name_of_rest, value_of
from oncofed.data.slides import TileSpec
from oncofed.data.target_columns import TableTargets
from oncofed.errors import DataError

# Called with (step, number done, number in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RegisterOptions:
    """What to register, and how.

    Attributes:
        source: the folder.
        name: of the dataset.
        out: the dataset's folder.
        task: "segmentation", "classification" or "slides"; None: as the layout says.
        labels: label value -> name, if the user states it.
        table: CSV or TSV with columns image (or patient, series), label, split; None: as found in the folder.
        tiles: how slides are cut.
        workers: processes; None: one a core.
        patient_from: how to tell DICOM patients apart; None: as when last registered, else by their IDs.
        classes: of a classification whose images need no class: class names that folders may have. None: images lie in
            one folder per class, or in a table with their classes.
        targets: definitions of the table's targets; None: none.
        features: slides bring their features, of which the user states this; None: they do not.
        patients_of: folder of a registered dataset of this site whose salt hashes patients here, too; None: its own.
        slides: a table whose slides are whose patients', beside ``table`` of the patients; None: none.
        only: paths inside the folder that are read; None: all.
    """

    source: Path
    name: str
    out: Path
    task: Task | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    table: Path | None = None
    tiles: TileSpec = field(default_factory=TileSpec)
    workers: int | None = None
    patient_from: PatientFrom | None = None
    classes: tuple[str, ...] | None = None
    targets: TableTargets | None = None
    features: FeatureOptions | None = None
    slides: Path | None = None
    patients_of: Path | None = None
    only: frozenset[str] | None = None


def parse_labels(text: str) -> dict[int, str]:
    """Parse ``1=liver,2=tumour`` or ``liver,tumour``: label value -> name.

    Raises:
        DataError: it is neither.
    """
    labels: dict[int, str] = {}
    for number, part in enumerate((p.strip() for p in text.split(",")), start=1):
        value, equals, name = part.partition("=")
        known = value_of(value) if equals else number
        if known is None or (equals and not name.strip()):
            raise DataError(f"--labels {text}: found {part!r}, expected VALUE=NAME, such as 1=liver,#ff0000=tumour")
        labels[known] = name.strip() if equals else part
    labels.setdefault(0, name_of_rest(labels.values()))
    return dict(sorted(labels.items()))
