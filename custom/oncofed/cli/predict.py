"""``oncofed predict``: predictions of a trained model."""

from __future__ import annotations

import contextlib
import errno
import json as jsonlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    datasets_folder,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    show_table,
)
from oncofed.cli.watching import (
    AE_TITLE,
    SETTLE_SECONDS,
    AETitle,
    Callers,
    Listen,
    Once,
    SendTo,
    Settle,
    WatchFolder,
    watching,
    work_off,
)
from oncofed.errors import DataError, OncofedError, SpecError

if TYPE_CHECKING:
    from oncofed.data.target_columns import TableTargets
    from oncofed.prediction.model import TrainedModel
    from oncofed.prediction.predictions import Predictions

_MOST_SHOWN = 20
_INPUTS = "Files, folders of any layout, unsorted DICOM, or registered datasets by name or folder. They are only read."


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run's folder (workspace/runs/TIME-JOB), a job in a site's kit (KIT/oncofed/ID), or a bundle.",
        ),
    ],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="INPUT", help=_INPUTS)] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the predictions; with the same folder a run resumes.")],
    device: Annotated[
        Literal["cuda", "cpu"] | None, typer.Option(help="By default a CUDA GPU where there is one.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Batch size of classifications; by default that of scoring."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only cases whose name, or path in INPUT, matches a pattern such as 'liver_1*'. May be repeated."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV or TSV with the covariates of a model that reads them, by case, image or patient."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND:COLUMN|FILE",
            help="What columns of --table state, as oncofed data register has it: shown beside the answers.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Dataset of this site, by name or folder, from which a model with data.harmonization tells how the "
            "site measures: five patients or more."
        ),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(help="If the run kept other models (of its sites, folds), report how far they differ."),
    ] = True,
    refuse_outside: Annotated[
        bool,
        typer.Option("--refuse-outside", help="Set aside images unlike those of the training, for a person to read."),
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Skip an output: boxes, classes, dicom, evidence, labels, objects, regions, slide, structures or "
            "targets; evidence takes long on a CPU for some networks. May be repeated."
        ),
    ] = None,
    structures: Annotated[
        bool, typer.Option(help="Also write contours of DICOM volumes, as a structure set (RT-STRUCT).")
    ] = False,
    page: Annotated[bool, typer.Option(help="Write predictions.html, with a picture of each case.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Reader processes; by default one a core.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
    watch: WatchFolder = None,
    listen: Listen = None,
    ae_title: AETitle = AE_TITLE,
    callers: Callers = None,
    send_to: SendTo = None,
    settle: Settle = SETTLE_SECONDS,
    once: Once = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Predict images with a trained model: labels on each image's grid, sizes, probabilities, pictures.

    Images first pass the checks of `oncofed data register` and of the job's data contract; a case that fails is set
    aside with its reason (set_aside.csv). Each case has a folder cases/NAME in --out, which appears once it is
    complete: the same command resumes after an interruption, and predicts changed images again. predictions.json
    has all in one file; all files are described in custom/oncofed/prediction/README.md.

    Each prediction says when not to trust it: images unlike those of the training, an uncertain network, models of
    the run that differ.

    With --watch or --listen instead of INPUT it predicts arriving images, into results/NAME.

    Research only: a person decides.

    Exit status: 0 every case was predicted; 3 some were set aside, a requested output is missing, or there was none to
    predict; 2 MODEL, an option or --out cannot be used; 1 the work failed, for instance on a full disk: the same
    command resumes; 130 interrupted.
    """
    keep_caches_in(workspace)
    from oncofed.data.grouping import counted
    from oncofed.devices import training_device
    from oncofed.prediction.covariate_table import TableReading, table_notes, with_table
    from oncofed.prediction.dicom.writers import coding_notes
    from oncofed.prediction.harmonization import reference_notes
    from oncofed.prediction.outputs.page import write_page
    from oncofed.prediction.outputs.registry import select_outputs
    from oncofed.prediction.results_folder import RESEARCH_ONLY
    from oncofed.prediction.run import Options
    from oncofed.prediction.run import predict as predict_all
    from oncofed.prediction.sources import gather
    from oncofed.prediction.trust.ensemble import ensemble_members
    from oncofed.prediction.watching.predictor import Predictor

    watched = watching(out, watch, listen, ae_title, callers, send_to, settle, once)
    if bool(inputs) == bool(watched):
        raise SpecError("expected INPUT, or --watch FOLDER or --listen PORT in its place: exactly one of them")
    if watched and (only or table):
        name = "--only" if only else "--table"
        raise SpecError(f"{name}: of use with INPUT alone. Leave it out: what arrives is predicted")
    said = _said_of(table, targets or ())
    outputs = select_outputs(["structures"] if structures else (), without or ())
    trained = _loaded(model, reference, out, workspace)
    if ensemble and (members := ensemble_members(trained)):
        progress_console(json).print(
            f"{len(members)} other models of the run predict too ({', '.join(members)}): {len(members) + 1} times the "
            "work. --no-ensemble leaves them out",
            markup=False,
        )
    options = Options(outputs, batch=batch, ensemble=ensemble, refuse_outside=refuse_outside)
    if watched:
        predictor = Predictor(trained, out, datasets_folder(workspace), training_device(device), options, workers, page)
        console = progress_console(json)
        raise typer.Exit(work_off(watched, out, predictor, console, RESEARCH_ONLY, trained.digest, json))
    assert inputs is not None
    with _explained_full_disk(out), ended_by_signals(), progress_bars(progress_console(json)) as advance:
        sources = gather(inputs, out, trained.job, datasets_folder(workspace), only or (), workers, advance)
        if table:
            reading = TableReading(trained.job.data.covariates, said, trained.job.plan().supervision())
            sources = with_table(sources, table, reading)
        sources.notes += table_notes(sources, trained.job.data.covariates)
        sources.notes += coding_notes(trained, sources.cases) + reference_notes(trained)
        found = predict_all(
            trained,
            sources,
            out,
            training_device(device),
            options,
            lambda *counts: advance("predicting", *counts),
            advance,
        )
        written = write_page(found, sources, trained, out, workers, advance) if page else None
    if json:
        typer.echo(jsonlib.dumps(_values(found, written), indent=2))
    else:
        _show(found, written)
    if not found.made and not found.kept:
        cases = counted(len(found.set_aside), "case")
        raise DataError(f"{', '.join(inputs)}: none of the {cases} can be predicted; each has its reason")
    if found.set_aside or any(record["missing"] for record in found.now):
        raise typer.Exit(3)


def _loaded(folder: Path, reference: str | None, out: Path, workspace: Path) -> TrainedModel:
    """Return a model, which knows how this site measures where a dataset of it is named."""
    from oncofed.prediction.harmonization import take_reference
    from oncofed.prediction.model import load_model

    model = load_model(folder)
    if reference:
        take_reference(model, reference, out, datasets_folder(workspace))
    return model


def _said_of(table: Path | None, options: Sequence[str]) -> TableTargets | None:
    """Return what the user says of a table's columns.

    Raises:
        SpecError: there is no table, or an option is none of ``oncofed data register --targets``.
    """
    from oncofed.data.target_columns import parse_targets

    if options and not table:
        raise SpecError("--targets: says what columns of a table state, and there is none. Add --table FILE")
    return parse_targets(options)


@contextlib.contextmanager
def _explained_full_disk(out: Path) -> Iterator[None]:
    """Explain a full disk: finished cases stay, rerunning resumes.

    Raises:
        OncofedError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        words = f"{out}: {error.strerror}. Free space and give the command again: it goes on"
        raise OncofedError(words) from error


def _values(found: Predictions, page: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    from oncofed.prediction.predictions import PREDICTIONS_FILE

    return {
        "folder": str(found.folder),
        "predictions": str(found.folder / PREDICTIONS_FILE),
        "page": str(page) if page else None,
        "predicted": found.made,
        "there_before": found.kept,
        "set_aside": [asdict(bad) for bad in found.set_aside],
        "notes": found.notes,
        "cases": found.done,
    }


def _show(found: Predictions, page: Path | None) -> None:
    from oncofed.data.grouping import finding_lines
    from oncofed.prediction.outputs.case_rows import display_table, short_rows
    from oncofed.prediction.predictions import MEASUREMENTS_FILE, PREDICTIONS_FILE, SET_ASIDE_FILE, describe_source
    from oncofed.prediction.trust.summary import warning_lines

    console = plain_console()
    records = found.now
    shown = records[:_MOST_SHOWN]
    rows = [(record, number, row) for record in shown for number, row in enumerate(short_rows(record))]
    headings, cells = display_table(row for *_, row in rows)
    names = [record["name"] if number == 0 else "" for record, number, _ in rows]
    table = Table(title=f"{len(records)} of {len(records) + len(found.set_aside)} cases", title_justify="left")
    sources = [describe_source(record) for record, *_ in rows]
    more = ["source"] if any(record.get("series") for record in shown) else []
    for number, heading in enumerate(["case", *headings, *more]):
        right = 1 < number <= len(headings)
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for name, row, source in zip(names, cells, sources, strict=True):
        table.add_row(escape(name), *map(escape, row), *([escape(source)] if more else []))
    show_table(table, console)
    if len(records) > _MOST_SHOWN:
        console.print(f"… and {len(records) - _MOST_SHOWN} more in {found.folder / MEASUREMENTS_FILE}")
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    for record in records:
        for output, reason in record["missing"].items():
            console.print(f"[yellow]no {output}[/] of {escape(record['name'])}: {escape(reason)}")
    for what, line in warning_lines(records):
        console.print(f"[yellow]{what}[/]: {escape(line)}")
    for line in finding_lines((bad.name, bad.reason) for bad in found.set_aside):
        console.print(f"[yellow]set aside[/] {escape(line)}")
    before = f", {len(found.kept)} of them before" if found.kept else ""
    aside = f"; {len(found.set_aside)} set aside ({found.folder / SET_ASIDE_FILE})" if found.set_aside else ""
    console.print(f"{len(records)} predicted{before}{aside}")
    console.print(f"Files:  {found.folder / 'cases'}; all in one: {found.folder / PREDICTIONS_FILE}")
    if page:
        console.print(f"Look:   {page}")
    console.print("Research only: a person decides.")
