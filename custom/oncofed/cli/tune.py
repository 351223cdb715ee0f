"""``oncofed job tune``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    plain_console,
    progress_console,
    require_posix,
    show_table,
)
from oncofed.cli.run_options import Model, Rounds, named_sites, require_model
from oncofed.cli.terminal import echo_json
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.job.tune.record import Record, Row


def tune(
    job: Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")],
    over: Annotated[
        str,
        typer.Option(
            help="Settings to try, with commas: learning_rate=1e-4..1e-2:log,strategy.mu=0|0.01|0.1. Without values: "
            "all of a short list, or a range around the job's own value."
        ),
    ],
    budget: Annotated[int, typer.Option(min=1, help="Number of trials; those ended early and failed ones count.")],
    site: Annotated[
        list[str] | None, typer.Option("--site", help="NAME=DATASET, once for each site: trials run on this machine.")
    ] = None,
    kit: Annotated[
        Path | None, typer.Option("--kit", help="Instead of --site: your startup kit; trials run in its alliance.")
    ] = None,
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        typer.Option(help="Which trials end early. median: those below the median of the others at a round."),
    ] = "median",
    rounds: Rounds = None,
    model: Model = None,
    backend: Annotated[
        Literal["simulate", "federation"],
        typer.Option(help="simulate: FLARE's simulator; federation: real server and sites on this machine."),
    ] = "simulate",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; the same command goes on in it. By default a new one.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print tune.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Search a job's settings with Optuna, by validation scores alone; test the best model once, at the end.

    The first trial has the job's own settings. best.yaml is the best job, for `oncofed job run`. A search that was
    stopped goes on where it was with the same command and --out. A job with differential privacy is refused: each
    trial would be charged to every patient.
    """
    keep_caches_in(workspace)
    from oncofed.job.checks import check_sites
    from oncofed.job.site_data import checked_sites
    from oncofed.job.spec import read_job
    from oncofed.job.tune.search import Search, require_searchable
    from oncofed.job.tune.space import read_space
    from oncofed.job.tune.trials import AllianceTrials, LocalTrials, Trials
    from oncofed.job.warm_start import require_start, warm_start

    require_posix()
    spec = read_job(job, with_code=True)
    spec = spec.with_rounds(rounds) if rounds else spec
    require_searchable(spec)
    require_model(model, evaluate_only=False)
    if model:
        warm_start(model, spec)  # refuses one that does not fit, before any trial
    else:
        require_start(spec, model)
    space = read_space(over, spec)
    if bool(site) == bool(kit):
        raise SpecError("expected either --site NAME=DATASET, once for each site, or --kit KIT of an alliance")
    folder = out or new_run_folder(workspace, f"{spec.name}-tune")
    console = progress_console(json)
    with ended_by_signals(), contextlib.ExitStack() as stack:
        trials: Trials
        if kit:
            from oncofed.alliance.session import EngineerSession

            trials = AllianceTrials(stack.enter_context(EngineerSession(kit)), console, model)
        else:
            sites = named_sites(site or [], workspace)
            check_sites(spec, len(sites))
            checked_sites(spec, sites, console)
            trials = LocalTrials(sites, backend, console, model)
        try:
            found = Search(spec, space, trials, budget, folder, console, pruner).execute()
        except KeyboardInterrupt:
            console.print(f"to go on: the same command with --out {folder}", markup=False, soft_wrap=True)
            raise
    if json:
        echo_json(found.model_dump_json(indent=2))
        return
    _show(found, folder, model)


def _show(found: Record, folder: Path, model: Path | None) -> None:
    from oncofed.job.tune.space import short_names, shown

    names = short_names(list(found.rows[0].settings))
    table = Table(title=f"{found.metric_name} on validation patients", title_justify="left")
    for heading in ("trial", *names.values(), "validation", "round", "s", "state"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for row in found.ranked:
        values = [shown(row.settings.get(name)) for name in names]
        score = "–" if row.score is None else f"{row.score:.4f}"
        best_round = "–" if row.best_round is None else str(row.best_round)
        style = "bold" if row is found.best else None
        table.add_row(str(row.trial), *values, score, best_round, f"{row.seconds:.0f}", _state(row, found), style=style)
    console = plain_console()
    show_table(table, console)
    if found.test is not None and found.best:
        sites = ", ".join(f"{name} {score:.3f}" for name, score in found.test_sites.items() if score is not None)
        of_sites = f" ({sites})" if sites else ""
        console.print(
            f"trial {found.best.trial} on test patients, who had no part in the choice: {found.test:.3f}{of_sites}"
        )
    console.print("The best of many validation scores is partly luck: expect less of it on other patients.")
    start = f", which starts from --model {model}" if model else ""
    console.print(f"Best job: {folder / 'best.yaml'}{start}\nTable:    {folder / 'trials.csv'}", soft_wrap=True)
    console.print(f"Curves:   tensorboard --logdir {folder / 'tensorboard'}", soft_wrap=True)


def _state(row: Row, found: Record) -> str:
    if row.state == "failed":
        return f"failed: {row.why}"
    state = f"ended early, round {row.rounds}" if row.state == "pruned" else "complete"
    return f"{state}, the job's own" if row.trial == found.own else state
