"""Page of an evaluation, with the worst cases.

It shows patients' images and stays at the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from oncofed.data.grouping import counted
from oncofed.prediction.evaluation.evaluate import EvaluationResult, Progress, ScoredCase
from oncofed.prediction.model import TrainedModel
from oncofed.private_files import write_private
from oncofed.report.attention import deletion_curves
from oncofed.report.html import line_styles, picture_svg, svg
from oncofed.report.pages import render
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.pictures import Picture
from oncofed.tasks.targets import details_of, figure_titles

PAGE_FILE = "evaluation.html"
_LABELS = {metric.name: metric.label for metric in metrics_that_may_leave()}


def write_page(
    evaluated: EvaluationResult,
    model: TrainedModel,
    device: torch.device,
    folder: Path,
    worst: int,
    progress: Progress | None = None,
) -> Path:
    """Write ``evaluation.html`` atomically.

    Args:
        evaluated: result of the evaluation.
        model: evaluated model.
        device: to compute pictures on.
        folder: output folder.
        worst: number of cases to show.
        progress: called with (step, number done, total).
    """
    shown = [one for one in evaluated.scored_cases if one.score is not None][:worst]
    pictures = _pictures(shown, model, device, progress or (lambda what, done, total: None))
    drawn = [picture_svg(picture) for picture in pictures]
    titles = figure_titles(details_of(model.job.task))
    html = render(
        "evaluation.html",
        found=evaluated,
        record=evaluated.record,
        worst=list(zip(shown, drawn, strict=True)),
        contours=any(picture.reference is not None for picture in pictures),
        heat=any(picture.heat is not None for picture in pictures),
        classes=line_styles(list(model.task.classes.values())),
        figure_name=lambda name: titles.get(name) or figure_name(name),
        titles=titles,
        attention_curves=svg(deletion_curves(evaluated.record.attention)) if evaluated.record.attention else "",
        counted=counted,
    )
    path = folder / PAGE_FILE
    write_private(path, html.encode())
    return path


def figure_name(name: str) -> str:
    """Return a metric's readable name.

    Such as "95 % Hausdorff distance (mm), liver" for hd95_mm.liver.
    """
    figure, _, of = name.partition(".")
    return ", ".join(part for part in (_LABELS.get(figure, figure.replace("_", " ")), of) if part)


def _pictures(
    shown: Sequence[ScoredCase], model: TrainedModel, device: torch.device, progress: Progress
) -> list[Picture]:
    if not shown:
        return []
    network, pictures = model.network(device), []
    for number, one in enumerate(shown):
        with torch.no_grad():
            pictures.append(model.task.picture(network, one.case, device))
        progress("drawing", number + 1, len(shown))
    return pictures
