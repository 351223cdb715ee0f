"""``oncofed evaluate``: scores of a model on a labelled dataset."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    datasets_folder,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    show_table,
)
from oncofed.cli.terminal import echo_json
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.prediction.evaluation.evaluate import EvaluationResult
    from oncofed.prediction.evaluation.subgroups import Subgroups
    from oncofed.tasks.comparison import Comparison


class Split(str, Enum):
    """Patients of a dataset."""

    test = "test"
    validation = "validation"
    training = "training"
    all = "all"


class Device(str, Enum):
    """Device to compute on."""

    cpu = "cpu"
    cuda = "cuda"


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run's folder, a job's in a site's kit, or a bundle of oncofed's.")],
    dataset: Annotated[str, typer.Argument(help="A registered dataset's name, or its folder with dataset.json.")],
    split: Annotated[
        Split,
        typer.Option(
            help="Patients to score, as the job deals them by its seed: test are those held out, also of a dataset "
            "used for training; all is for a dataset that nobody trained on."
        ),
    ] = Split.test,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns for subgroups, such as sex,age:0-40,40-60,60-. Known without a table: vendor, modality, "
            "slices, colour, size, volume_ml or area_mm2 of the labelled region, and the columns of the registered "
            "table. By default all but size and the table's. Numbers without ranges are split into quarters."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV or TSV with further columns; a column case, image, study or patient names the row."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Dataset of this site, by name or folder, from which a model with data.harmonization tells how the "
            "site measures: five patients or more."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model's folder, to compare on the same patients.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Largest difference to --against that counts as not inferior."),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, max=200, help="Number of worst cases to show.")] = 6,
    card: Annotated[
        bool, typer.Option("--card", help="Also keep evaluation.json with the run's model, and add it to its card.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the output; by default evaluations/JOB-DATASET in the workspace.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="By default the GPU where there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print evaluation.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Score a model on labelled cases: intervals over patients, subgroups, comparison with another model.

    Writes evaluation.json, which may be shared: it has no groups of fewer than five patients and no names of cases.
    evaluation.html (worst cases with pictures) and cases.csv (each case's figures) stay at the site.
    """
    keep_caches_in(workspace)
    from oncofed.devices import training_device
    from oncofed.job.card import write_cards
    from oncofed.prediction.evaluation.evaluate import EvaluationRequest, write_cases
    from oncofed.prediction.evaluation.evaluate import evaluate as score
    from oncofed.prediction.evaluation.page import write_page
    from oncofed.prediction.evaluation.subgroup_columns import parse_column_choices
    from oncofed.prediction.harmonization import reference_notes, take_reference
    from oncofed.prediction.model import load_model
    from oncofed.prediction.permissions import make_private
    from oncofed.report.result import read_result

    wanted = tuple(parse_column_choices(by or []))
    folder = dataset_named(dataset, workspace)
    other = load_model(against) if against else None
    if card and not (model / "result.json").is_file():
        raise SpecError(f"--card: {model} holds no result.json, from which the card follows. Name a run's folder")
    request = EvaluationRequest(
        model=load_model(model),
        folder=folder,
        split=split.value,
        by=wanted,
        table=table,
        against=other,
        margin=margin,
    )
    target = out or workspace / "evaluations" / f"{request.model.job.name}-{folder.resolve().name}"
    where = training_device(device.value if device else None)
    make_private(target)
    if reference:
        take_reference(request.model, reference, target, datasets_folder(workspace))
        if other and other.job.data.harmonization.groups:
            take_reference(other, reference, target, datasets_folder(workspace))
    for note in reference_notes(request.model):
        progress_console(json).print(note, markup=False)
    with ended_by_signals(), progress_bars(progress_console(json)) as advance:
        found = score(request, where, advance)
        page = write_page(found, request.model, where, target, worst, advance)
    cases = write_cases(found, target)
    written = found.record.write(target)
    if card:
        found.record.write(model / "model")
        write_cards(request.model.job, read_result(model), model)
    if json:
        echo_json(found.record.to_json())
        return
    _show(found)
    console = plain_console()
    console.print(f"Numbers: {written} (may be handed on)", markup=False)
    console.print(f"Page:    {page} (stays at the site)", markup=False)
    console.print(f"Cases:   {cases} (stays at the site)", markup=False)


def _show(found: EvaluationResult) -> None:
    console, record = plain_console(), found.record
    for problem in _set_aside(found):
        console.print(f"[yellow]set aside[/] {escape(problem)}")
    table = Table(title=escape(f"{record.title}: {record.metric_name}, {record.split}"), title_justify="left")
    for heading in ("", "patients", record.metric_name, "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("all", str(found.patients), _number(found.scores.mean), _range(found.interval))
    for name, value in found.scores.by_class.items():
        known = _range(found.intervals.get(name)) if found.intervals else ""
        table.add_row(escape(name), "", _number(value), known)
    show_table(table, console)
    for column in found.subgroups:
        show_table(_groups(column, record.metric_name), console)
    if found.comparison:
        console.print(_compared(found.comparison), markup=False)
    for remark in record.remarks:
        console.print(f"[yellow]note[/] {escape(remark)}")
    more = [name for name in found.columns if name not in {column.column for column in found.subgroups}]
    if more:
        console.print(f"Further columns for --by: {', '.join(more)}", markup=False)


def _set_aside(found: EvaluationResult) -> list[str]:
    from oncofed.data.grouping import finding_lines

    return finding_lines((problem.case, problem.what) for problem in found.set_aside)


def _groups(column: Subgroups, metric: str) -> Table:
    table = Table(title=escape(column.column), title_justify="left")
    for heading in ("group", "patients", metric, "95 % interval", "difference", "its interval"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    differences = {difference.group: difference for difference in column.differences}
    for group in column.groups:
        if group.scores is None:
            table.add_row(escape(group.name), str(group.patients), f"withheld: {group.reason}", "", "", "")
            continue
        away = differences.get(group.name)
        cells = (f"{away.difference:+.3f}", _range(away.interval)) if away else ("", "")
        scores = (_number(group.scores.mean), _range(group.interval))
        table.add_row(escape(group.name), str(group.patients), *scores, *cells)
    return table


def _compared(found: Comparison) -> str:
    difference = "–" if found.difference is None else f"{found.difference:+.3f}"
    scores = f"{_number(found.first)} beside {_number(found.second)} of the other model on the same {found.patients}"
    words = f"{scores} patients: difference {difference}, 95 % interval {_range(found.interval)}"
    if found.not_inferior is None:
        return words
    verdict = "not inferior" if found.not_inferior else "not shown to be not inferior"
    return f"{words}: {verdict} by a margin of {found.margin:g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "too few to tell" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
