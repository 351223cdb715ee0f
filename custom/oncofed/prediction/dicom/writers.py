"""Predictions of DICOM images as DICOM objects beside the case's other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oncofed.data.dicom.projections import is_of_detector
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.case_rows import case_rows
from oncofed.prediction.sources import Source
from oncofed.tasks.codes import ClassCode
from oncofed.tasks.inferred import LabelMap

# highdicom takes a second to import: the writers' own modules wait until they are called.


def write_dicom(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_seg.dcm`` and, with its measurements, ``NAME_sr.dcm``, and return them.

    Raises:
        DataError: the labels do not lie on the image's files.
    """
    from oncofed.prediction.dicom.report import write_report  # noqa: PLC0415
    from oncofed.prediction.dicom.segmentation import write_segmentation  # noqa: PLC0415

    found, source, classes = prediction.found, prediction.source, model.task.classes
    assert isinstance(found, LabelMap)
    identity = ModelIdentity.of(model)
    seg, report = folder / f"{source.name}_seg.dcm", folder / f"{source.name}_sr.dcm"
    values = found.values.cpu().numpy()
    write_segmentation(values, source.series, found.affine, classes, _codes(model), identity, seg)
    # A report's lengths are taken for the patient's.
    rows = [] if is_of_detector(source.entry.notes) else case_rows(prediction, model)
    figures: dict[int, dict[str, Any]] = {value: {} for value in classes} | {row["value"]: row for row in rows}
    write_report(seg, classes, figures, identity, report, source.entry.modality or "")
    return [seg, report]


def write_structure_set(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_rtstruct.dcm`` and return it.

    Raises:
        DataError: the image is flat, or the labels do not lie on its files.
    """
    from oncofed.prediction.dicom.structures import write_structures  # noqa: PLC0415

    found, source = prediction.found, prediction.source
    assert isinstance(found, LabelMap)
    path = folder / f"{source.name}_rtstruct.dcm"
    values, identity = found.values.cpu().numpy(), ModelIdentity.of(model)
    write_structures(values, source.series, found.affine, model.task.classes, _codes(model), identity, path)
    return [path]


def coding_notes(model: TrainedModel, sources: Iterable[Source]) -> list[str]:
    """Return what is to be said once of the DICOM objects that are written of cases."""
    if getattr(model.job.task, "type", "") != "segmentation" or not any(source.series for source in sources):
        return []
    from oncofed.prediction.dicom.segmentation import private_notes  # noqa: PLC0415

    return private_notes(model.task.classes, _codes(model))


def _codes(model: TrainedModel) -> Mapping[int, ClassCode]:
    """Return the coded terms that the job names; a task of a pack may have none."""
    found: Mapping[int, ClassCode] = getattr(model.job.task, "codes", {})
    return found
