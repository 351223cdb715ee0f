"""A site's own shift and scale, for a model whose values were made alike between sites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oncofed.data.case import Case
from oncofed.data.harmonization.of_cases import patient_values
from oncofed.data.prepared import prepare_one
from oncofed.data.register_options import Progress
from oncofed.errors import SpecError
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.sources import gather

_OPTION = "--reference"


def take_reference(
    model: TrainedModel, reference: str, out: Path, datasets: Path, progress: Progress | None = None
) -> None:
    """Have a model tell this site's shift and scale from a dataset of the site, from now on.

    Its labels are not looked at.

    Args:
        model: that predicts.
        reference: name or folder of a dataset, or a folder of images.
        out: folder of the predictions, in which images that nobody registered are.
        datasets: folder of the registered datasets.
        progress: called with (step, number done, total).

    Raises:
        SpecError: the model makes nothing alike, so a dataset is of no use.
        DataError: it has fewer than five patients of whom everything is known.
    """
    if not model.job.data.harmonization.groups:
        raise SpecError(
            f"{_OPTION}: the job {model.job.name} makes no values of sites alike (data.harmonization). Leave it out"
        )
    sources = gather([reference], out, model.job, datasets, progress=progress)
    use_patients(model, [source.case for source in sources.cases])


def use_patients(model: TrainedModel, cases: Sequence[Case]) -> None:
    """Have a model tell a site's shift and scale from its cases.

    Raises:
        DataError: of fewer than five patients everything is known.
    """
    task, data = model.task, model.task.data
    preparation = task.inference_preparation()
    values = patient_values(cases, data, lambda case: prepare_one(case, preparation, keep=preparation.costly)["bags"])
    data.take_patients(values)
    _ = data.harmonizer  # raises where they are too few


def reference_notes(model: TrainedModel) -> list[str]:
    """Return what a person should know where a site's own shift is not known."""
    data = model.task.data
    if not data.harmonization.groups or data.harmonizer is not None:
        return []
    note = (
        "this site's shift and scale are not known (data.harmonization): values are taken as if the average site had "
        f"measured them. Name a dataset of this site with five patients or more: {_OPTION}"
    )
    return [note]
