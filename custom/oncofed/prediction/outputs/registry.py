"""What is written of each case: one table, by what a task finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from oncofed.errors import SpecError
from oncofed.prediction.case_prediction import Writer
from oncofed.prediction.dicom.writers import write_dicom, write_structure_set
from oncofed.prediction.outputs.classes import write_classes, write_saliency
from oncofed.prediction.outputs.labels import write_labels
from oncofed.prediction.outputs.objects import write_objects
from oncofed.prediction.outputs.slides import write_slide
from oncofed.tasks.inferred import ClassScores, Inferred, LabelMap, ObjectMap, SlideScores


@dataclass(frozen=True)
class Output:
    """One kind of file.

    Attributes:
        name: of the option that chooses it, and in ``predictions.json``.
        write: writes all of its files or none.
        default: it is written unless it is chosen not to be.
        of_dicom: it lies on the series of the image, and is written of images that came from DICOM alone.
    """

    name: str
    write: Writer
    default: bool = True
    of_dicom: bool = False


# A slide's scores are a classification's with more to say: the first kind that fits counts.
OUTPUTS: dict[type[Inferred], tuple[Output, ...]] = {
    LabelMap: (
        Output("labels", write_labels),
        Output("dicom", write_dicom, of_dicom=True),
        Output("structures", write_structure_set, default=False, of_dicom=True),
    ),
    ObjectMap: (Output("objects", write_objects),),
    SlideScores: (Output("classes", write_classes), Output("slide", write_slide)),
    ClassScores: (Output("classes", write_classes), Output("evidence", write_saliency)),
}


def outputs_for(found: Inferred, chosen: Iterable[str]) -> list[Output]:
    """Return what is written of one case."""
    wanted = set(chosen)
    outputs = next(outputs for kind, outputs in OUTPUTS.items() if isinstance(found, kind))
    return [output for output in outputs if output.name in wanted]


def select_outputs(more: Iterable[str] = (), less: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of what is written: all that is by default, more, and less.

    Raises:
        SpecError: there is no such output.
    """
    known = {output.name: output for outputs in OUTPUTS.values() for output in outputs}
    for name in (*more, *less):
        if name not in known:
            raise SpecError(f"{name}: no such output. Known: {', '.join(sorted(known))}")
    usual = {name for name, output in known.items() if output.default}
    return tuple(sorted((usual | set(more)) - set(less)))
