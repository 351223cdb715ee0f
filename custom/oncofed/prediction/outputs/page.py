"""Page with pictures of the predictions, for the site."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from oncofed.data.register_options import Progress
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.case_rows import display_table, short_rows
from oncofed.prediction.outputs.heatmap import css_gradient
from oncofed.prediction.predictions import Predictions, describe_source
from oncofed.prediction.results_folder import CASES_FOLDER, RESEARCH_ONLY
from oncofed.prediction.sources import Source, Sources
from oncofed.prediction.trust.summary import VERDICTS, common_warnings
from oncofed.private_files import write_private
from oncofed.report.pages import render
from oncofed.report.planes import FLAT_SIDE, Drawing, Drawn, draw_all, legend

PAGE_FILE = "predictions.html"
_MOST_SHOWN = 100
_MOST_PIXELS = 640  # along a side of a picture
# Fewest cases that are drawn by several processes.
_FEWEST_FOR_PROCESSES = 8
# Pictures of a slide's attention, after the case's name.
_OF_SLIDE = re.compile(r"(?:_(?P<slide>.+))?_(?:attention|tile_(?P<rank>\d+))")


@dataclass(frozen=True)
class _Shown:
    """One case on the page."""

    record: Mapping[str, Any]
    drawn: Drawn | None
    images: Sequence[Mapping[str, Any]]
    verdict: str
    series: str
    legend: Sequence[tuple[str, str, str]]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    reasons: Sequence[str]


def write_page(
    found: Predictions,
    sources: Sources,
    model: TrainedModel,
    out: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the page atomically.

    Args:
        found: the predictions.
        sources: their sources.
        model: model that predicted.
        out: folder of the predictions.
        workers: drawing processes; None: one per core.
        progress: called with (step, number done, total).

    Raises:
        OSError: the page is not writable.
    """
    by_name = {source.name: source for source in sources.cases}
    records = sorted(found.now, key=lambda record: (-_doubt(record), record["name"]))[:_MOST_SHOWN]
    drawings = [_drawing(by_name[record["name"]], record, model, out) for record in records]
    drawn = draw_all(drawings, workers, _FEWEST_FOR_PROCESSES, progress)
    html = render(
        "predictions.html",
        job=model.job,
        digest=model.digest,
        research_only=RESEARCH_ONLY,
        count=len(found.now),
        unseen=len(found.now) - len(records),
        volumes=model.job.data.dimensions == 3,
        common_warnings=common_warnings(found.now),
        heat=css_gradient(),
        set_aside=found.set_aside,
        cases=[_shown(record, drawn.get(record["name"]), model, out) for record in records],
    )
    path = out / PAGE_FILE
    write_private(path, html.encode())
    return path


def _doubt(record: Mapping[str, Any]) -> float:
    """Return how little to trust a prediction; 0 if unknown."""
    trust = record["trust"] or {}
    return {"outside": 2.0, "look": 1.0}.get(trust.get("verdict", "ok"), 0.0) + float(trust.get("entropy") or 0.0)


def _drawing(source: Source, record: Mapping[str, Any], model: TrainedModel, out: Path) -> Drawing:
    """Return a case's image with the written labels."""
    labels = record["files"].get("labels")
    is_ct = model.job.data.modality == "ct"
    if not labels:
        return Drawing(replace(source.case, name=source.name, label=0), is_ct)
    case = replace(
        source.case,
        name=source.name,
        label=out / CASES_FOLDER / source.name / labels[0],
        label_values=None,
        reading=(False, tuple(model.task.classes)),
        instances=False,
    )
    return Drawing(case, is_ct, most=True)


def _shown(record: Mapping[str, Any], drawn: Drawn | None, model: TrainedModel, out: Path) -> _Shown:
    headings, rows = display_table(short_rows(record))
    trust = record["trust"] or {}
    folder = out / CASES_FOLDER / record["name"]
    return _Shown(
        record=record,
        drawn=drawn,
        images=list(_images(record, folder)),
        verdict=VERDICTS.get(trust.get("verdict", ""), ""),
        series=describe_source(record),
        legend=legend(drawn.values if drawn else (), model.task.classes),
        headings=headings,
        rows=rows,
        reasons=trust.get("reasons") or (),
    )


def _images(record: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the pictures in a case's folder."""
    for output, names in record["files"].items():
        for name in names if output != "labels" else ():
            if name.lower().endswith(".png"):
                encoded, width = _small(folder / name)
                caption = _caption(output, folder / name, record["name"])
                href = f"data:image/png;base64,{encoded}"
                yield {"name": output, "href": href, "width": width, "caption": caption, "heat": output == "evidence"}


def _caption(output: str, picture: Path, case: str) -> str:
    """Return a picture's caption; of a patient's slides it says which."""
    if output == "evidence":
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
            return f"what spoke for {record['name']} ({record['method']})"
    if told := _OF_SLIDE.fullmatch(picture.stem.removeprefix(case)):
        what = f"tile {int(told['rank'])} by attention" if told["rank"] else "attention"
        return f"{what}, {told['slide']}" if told["slide"] else what
    return picture.stem.rpartition("_")[2] or output


def _small(path: Path) -> tuple[str, int]:
    """Return a picture as base64 PNG, and its display width.

    It is drawn as large as the case's image next to it, or at its own size if it shows a part of it.
    """
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        enlarged = FLAT_SIDE / max(picture.size) if path.stem.endswith("_evidence") else 1.0
        width = round(picture.width * enlarged)
        picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BOX)
        picture.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode(), width
