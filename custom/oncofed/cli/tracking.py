"""``oncofed job track``: a finished run in MLflow or Weights & Biases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.job.curves import Tracker

# Of a run's folder, sent once it has ended.
_FILES = ("job.yaml", "result.json", "report.html", "README.md", "provenance.json")


@contextlib.contextmanager
def tracked(
    names: Sequence[str] | None, folder: Path, job: str, console: Console, goes_on: bool = False
) -> Iterator[list[Tracker]]:
    """Yield the trackers of a run, and send them its files in the end.

    Args:
        names: of the trackers; None: none.
        folder: of the run, which is found again by its name.
        job: name of the job.
        console: for progress.
        goes_on: the run does if this is left early, such as by Ctrl-C.

    Raises:
        SpecError: see ``opened_trackers``.
    """
    if not names:
        yield []
        return
    from oncofed.job.tracking import opened_trackers

    with opened_trackers(names, folder.name, job, console, folder) as trackers:
        try:
            yield trackers
        except BaseException:
            for tracker in trackers:
                tracker.interrupted(goes_on)
            raise
        for tracker in trackers:
            tracker.attach([folder / name for name in _FILES])


def track(
    run: Annotated[Path, typer.Argument(help="Folder of a run, with its events.jsonl.")],
    to: Annotated[list[str], typer.Option("--to", help="mlflow or wandb; give it once for each.")],
) -> None:
    """Send a finished run's curves, settings and report to MLflow, or write Weights & Biases' offline files."""
    from oncofed.job.curves import PointReader
    from oncofed.job.spec import read_job
    from oncofed.rounds.events import EVENTS_FILE, EventReader

    if not (run / EVENTS_FILE).is_file():
        raise SpecError(f"{run} has no {EVENTS_FILE}. Expected the folder of a run, such as workspace/runs/NAME.")
    spec, reader = read_job(run / "job.yaml"), PointReader()
    with tracked(to, run.resolve(), spec.name, plain_console(stderr=True)) as trackers:
        for tracker in trackers:
            tracker.describe(spec.model_dump(mode="json", by_alias=True))
        for event in EventReader(run / EVENTS_FILE).read():
            points = list(reader.points(event))
            for tracker in trackers:
                tracker.write(event, points)
    typer.echo(f"{run.name}: sent to {' and '.join(dict.fromkeys(to))}")
