"""Writes the DICOM outputs of a case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oncofed.data.dicom.projections import is_of_detector
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.case_rows import case_rows
from oncofed.prediction.sources import Source
from oncofed.tasks.codes import ClassCode
from oncofed.tasks.inferred import LabelMap

if TYPE_CHECKING:
    from oncofed.prediction.dicom.labelled_series import LabelledSeries

# Writers are imported when called, since highdicom takes a second to import.


def write_dicom(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_seg.dcm`` and ``NAME_sr.dcm``.

    Raises:
        DataError: the labels do not fit the image's files.
    """
    from oncofed.prediction.dicom.report import write_report  # noqa: PLC0415
    from oncofed.prediction.dicom.segmentation import write_segmentation  # noqa: PLC0415

    labelled, source, classes = _labelled(prediction, model), prediction.source, model.task.classes
    seg, report = folder / f"{source.name}_seg.dcm", folder / f"{source.name}_sr.dcm"
    write_segmentation(labelled, seg)
    # Readers take a report's lengths for those in the patient.
    rows = [] if is_of_detector(source.entry.notes) else case_rows(prediction, model)
    figures: dict[int, dict[str, Any]] = {value: {} for value in classes} | {
        row["value"]: row
        for row in rows
        if "value" in row  # a target beside the mask has none
    }
    write_report(seg, classes, figures, labelled.model, report, source.entry.modality or "")
    return [seg, report]


def write_structure_set(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_rtstruct.dcm``.

    Raises:
        DataError: the image is flat, or the labels do not fit its files.
    """
    from oncofed.prediction.dicom.structures import write_structures  # noqa: PLC0415

    path = folder / f"{prediction.source.name}_rtstruct.dcm"
    write_structures(_labelled(prediction, model), path)
    return [path]


def coding_notes(model: TrainedModel, sources: Iterable[Source]) -> list[str]:
    """Return notes about classes without a standard code."""
    if getattr(model.job.task, "type", "") != "segmentation" or not any(source.series for source in sources):
        return []
    from oncofed.prediction.dicom.segmentation import private_notes  # noqa: PLC0415

    return private_notes(model.task.classes, _codes(model))


def _codes(model: TrainedModel) -> Mapping[int, ClassCode]:
    """Return the job's coded terms; packs may have none."""
    found: Mapping[int, ClassCode] = getattr(model.job.task, "codes", {})
    return found


def _labelled(prediction: CasePrediction, model: TrainedModel) -> LabelledSeries:
    from oncofed.prediction.dicom.labelled_series import LabelledSeries  # noqa: PLC0415

    found = prediction.found
    assert isinstance(found, LabelMap)
    return LabelledSeries(
        labels=found.values.cpu().numpy(),
        files=prediction.source.series,
        affine=found.affine,
        classes=model.task.classes,
        codes=_codes(model),
        model=ModelIdentity.of(model),
    )
