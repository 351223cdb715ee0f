"""Registry of output files by kind of prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from oncofed.errors import SpecError
from oncofed.prediction.case_prediction import Writer
from oncofed.prediction.dicom.writers import write_dicom, write_structure_set
from oncofed.prediction.outputs.boxes import write_box_labels, write_boxes
from oncofed.prediction.outputs.classes import write_classes, write_saliency
from oncofed.prediction.outputs.labels import write_labels
from oncofed.prediction.outputs.objects import write_objects
from oncofed.prediction.outputs.slide_boxes import write_slide_boxes
from oncofed.prediction.outputs.slide_maps import write_slide_objects, write_slide_regions
from oncofed.prediction.outputs.slides import write_slide
from oncofed.prediction.outputs.targets import write_targets
from oncofed.tasks.inferred import (
    ClassScores,
    FoundBoxes,
    Inferred,
    LabelMap,
    LabelMapWithScores,
    ObjectMap,
    ObjectMapWithScores,
    SlideBoxes,
    SlideScores,
    SlideTargetScores,
    TargetScores,
)
from oncofed.tasks.slide_strips import SlideObjectMap, SlideRegions


@dataclass(frozen=True)
class Output:
    """One kind of output.

    Attributes:
        name: as in options and ``predictions.json``.
        write: writes all of its files or none.
        default: written unless deselected.
        of_dicom: written only for images from DICOM, on their series.
    """

    name: str
    write: Writer
    default: bool = True
    of_dicom: bool = False


_MAP = (
    Output("labels", write_labels),
    Output("dicom", write_dicom, of_dicom=True),
    Output("structures", write_structure_set, default=False, of_dicom=True),
)
# A slide's scores and boxes are scores and boxes too: the first matching kind counts.
OUTPUTS: dict[type[Inferred], tuple[Output, ...]] = {
    LabelMapWithScores: (*_MAP, Output("targets", write_targets)),
    LabelMap: _MAP,
    ObjectMapWithScores: (Output("objects", write_objects), Output("targets", write_targets)),
    ObjectMap: (Output("objects", write_objects),),
    SlideRegions: (Output("regions", write_slide_regions),),
    SlideObjectMap: (Output("objects", write_slide_objects),),
    SlideBoxes: (Output("boxes", write_slide_boxes),),
    FoundBoxes: (Output("boxes", write_boxes), Output("labels", write_box_labels)),
    SlideScores: (Output("classes", write_classes), Output("slide", write_slide)),
    ClassScores: (Output("classes", write_classes), Output("evidence", write_saliency)),
    SlideTargetScores: (Output("targets", write_targets), Output("slide", write_slide)),
    TargetScores: (Output("targets", write_targets),),
}


def outputs_for(found: Inferred, chosen: Iterable[str]) -> list[Output]:
    """Return the selected outputs of one case."""
    wanted = set(chosen)
    outputs = next(outputs for kind, outputs in OUTPUTS.items() if isinstance(found, kind))
    return [output for output in outputs if output.name in wanted]


def select_outputs(more: Iterable[str] = (), less: Iterable[str] = ()) -> tuple[str, ...]:
    """Return output names: the defaults, plus and minus some.

    Raises:
        SpecError: there is no such output.
    """
    known = {output.name: output for outputs in OUTPUTS.values() for output in outputs}
    for name in (*more, *less):
        if name not in known:
            raise SpecError(f"{name}: no such output. Known: {', '.join(sorted(known))}")
    usual = {name for name, output in known.items() if output.default}
    return tuple(sorted((usual | set(more)) - set(less)))
