"""What is written of each case: one table, by what a task finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from oncofed.errors import SpecError
from oncofed.prediction.labels import write_labels
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.predicted import Predicted, Writer
from oncofed.prediction.volumes import measure
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
    LabelMap: (Output("labels", write_labels),),
    ObjectMap: (),
    SlideScores: (),
    ClassScores: (),
}


def outputs_of(found: Inferred, chosen: Iterable[str]) -> list[Output]:
    """Return what is written of one case."""
    wanted = set(chosen)
    return [output for output in _kind(OUTPUTS, found) if output.name in wanted]


def chosen_outputs(more: Iterable[str] = (), less: Iterable[str] = ()) -> tuple[str, ...]:
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


def figures_of(predicted: Predicted, model: TrainedModel) -> list[dict[str, Any]]:
    """Return what is to be said of one case in numbers: a row for each class, as ``measurements.csv`` has it."""
    return _kind(_FIGURES, predicted.found)(predicted, model)


def _sizes(predicted: Predicted, model: TrainedModel) -> list[dict[str, Any]]:
    found, case = predicted.found, predicted.source.case
    assert isinstance(found, LabelMap)
    calibrated = predicted.source.entry.spacing is not None or case.spacing is not None or found.values.ndim == 3
    sizes = measure(found.values.cpu().numpy(), found.affine, model.task.classes, calibrated)
    return [size.figures() for size in sizes]


def _count(predicted: Predicted, model: TrainedModel) -> list[dict[str, Any]]:
    assert isinstance(predicted.found, ObjectMap)
    return [{"value": 1, "name": model.task.classes[1], "objects": int(predicted.found.numbers.max(initial=0))}]


def _probabilities(predicted: Predicted, model: TrainedModel) -> list[dict[str, Any]]:
    assert predicted.probabilities is not None
    shares = zip(model.task.classes.items(), predicted.probabilities.tolist(), strict=True)
    return [{"value": value, "name": name, "probability": share} for (value, name), share in shares]


_FIGURES: dict[type[Inferred], Callable[[Predicted, TrainedModel], list[dict[str, Any]]]] = {
    LabelMap: _sizes,
    ObjectMap: _count,
    ClassScores: _probabilities,
}


def _kind(table: dict[type[Inferred], Any], found: Inferred) -> Any:
    return next(value for kind, value in table.items() if isinstance(found, kind))
