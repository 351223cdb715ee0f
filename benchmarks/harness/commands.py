"""``oncofed bench``: speed against baselines and limits."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.status import Status
from rich.table import Table

from oncofed.cli.common import ended_by_signals, escape, plain_console, progress_console, show_table
from oncofed.cli.terminal import echo_json
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from .results import SuiteResult

app = typer.Typer(
    help="Measure speed: each figure next to a baseline in the same run, and to the machine's limit.",
    no_args_is_help=True,
)

_RESULTS = "results"

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")]
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder of results; by default benchmarks/results of the suites.")
]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the suites."""
    from .suites import list_suites, suites_folder

    suites = list_suites(suites_folder())
    if json:
        typer.echo(jsonlib.dumps([{"name": suite.name, "title": suite.title} for suite in suites], indent=2))
        return
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    for suite in suites:
        table.add_row(f"[bold]{suite.name}[/]", escape(suite.title))
    show_table(table)


@app.command()
def run(
    suites: Annotated[list[str], typer.Argument(help="Suites by name, or all; oncofed bench list shows them.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Little work, a minute or less each: checks that suites run.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Samples of each program (7; with --quick 2).")
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None, typer.Option("--device", help="By default CUDA where there is a GPU.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also a trace for Perfetto, and the ten largest kernels and gaps.")
    ] = False,
    first_use: Annotated[
        bool,
        typer.Option("--first-use", help="Also first calls, such as compiling, as separate figures."),
    ] = False,
    results: Results = None,
    json: Json = False,
) -> None:
    """Run suites one after the other; keep all samples in benchmarks/results/TIME-COMMIT.json.

    The file is written after each figure: Ctrl-C or a suite that fails loses none.
    """
    from .suites import Options, choose, new_run, run_suite, suites_folder

    _require_device(device)
    folder = suites_folder()
    chosen = choose(suites, folder)
    results = results or folder / _RESULTS
    this = new_run(quick, folder)
    traces = results / "profiles" / this.id if profile else None
    options = Options(quick, repeats, device, first_use, traces)
    console = progress_console(json)
    try:
        with ended_by_signals():
            for number, suite in enumerate(chosen, 1):
                where = f"[{number}/{len(chosen)}] {suite.name}"
                with console.status(escape(where)) as status:

                    def progress(what: str, where: str = where, status: Status = status) -> None:
                        status.update(escape(f"{where}: {what}"))

                    done = run_suite(suite, this, options, results, progress)
                _show_suite(console, done)
    finally:
        if json:
            echo_json(this.model_dump_json(indent=2, by_alias=True))
        if this.suites:
            console.print(f"Results: {results / this.id}.json", soft_wrap=True)
    for trace in sorted(traces.glob("*.txt")) if traces and traces.is_dir() else ():
        console.print(f"\n[bold]{trace.stem}[/]\n{escape(trace.read_text(encoding='utf-8'))}", soft_wrap=True)
        console.print(f"Trace: {trace.with_suffix('.trace.json')} (open it in https://ui.perfetto.dev)", soft_wrap=True)
    failed = [result for result in this.suites if result.status != "complete"]
    for result in failed:  # again: the first of them may be pages above
        _show_failure(console, result)
    if failed:
        raise typer.Exit(1)


@app.command()
def compare(
    before: Annotated[
        str, typer.Argument(help="A run: its file, the beginning of its id or commit, last or previous.")
    ],
    after: Annotated[str, typer.Argument(help="Another run, compared with the first.")],
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above", min=1.0, help="Exit with 1 if a figure is certainly slower by more than this factor."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs of different machines too, or a quick one with a full one.")
    ] = False,
    results: Results = None,
    json: Json = False,
) -> None:
    """Compare the figures of two runs: is the second faster, slower, or no different?

    Ratios are of times (or of memory): above one is slower. A star marks ratios of figures relative to their baselines,
    which do not depend on the speed of the machine as a whole.
    """
    from . import comparison
    from .results import find_run
    from .tables import CHANGE_HEADINGS, change_row

    folder = results or _default_results()
    one, two = find_run(before, folder), find_run(after, folder)
    changes = comparison.compare(one, two, force)
    failing = comparison.slower_than(changes, fail_above) if fail_above else []
    if json:
        typer.echo(
            jsonlib.dumps(
                {
                    "before": one.id,
                    "after": two.id,
                    "changes": [asdict(change) for change in changes],
                    "fail_above": fail_above,
                    "failed": [f"{change.suite}: {change.figure}" for change in failing],
                },
                indent=2,
            )
        )
    else:
        console = plain_console()
        show_table(_table(CHANGE_HEADINGS, map(change_row, changes)), console)
        console.print(f"{one.id} to {two.id}", soft_wrap=True)
    if failing:
        names = ", ".join(f"{change.suite}: {change.figure} (× {change.ratio:.2f})" for change in failing)
        typer.echo(f"slower than × {fail_above}: {names}", err=True)
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs, as for compare; by default all.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("workspace/benchmarks.html"),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the latest figures as Markdown tables instead.")
    ] = False,
    results: Results = None,
) -> None:
    """Write one HTML page: tables, bars with baseline and limit, and history over commits."""
    from .page import write_page
    from .results import find_run, read_runs
    from .tables import markdown as as_markdown

    folder = results or _default_results()
    chosen = [find_run(name, folder) for name in runs] if runs else read_runs(folder)
    if not chosen:
        raise SpecError(f"{folder} holds no results. Run `oncofed bench run all` first")
    if markdown:
        typer.echo(as_markdown(chosen))
        return
    write_page(chosen, out)
    plain_console().print(f"Report: {out}", soft_wrap=True)


def _default_results() -> Path:
    from .suites import suites_folder

    return suites_folder() / _RESULTS


def _require_device(device: str | None) -> None:
    """Refuse an absent GPU before anything is started."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            build = torch.__version__
            raise SpecError(
                f"--device cuda: torch {build} finds no CUDA GPU here. See nvidia-smi; without a GPU leave --device out"
            )


def _show_suite(console: Console, suite: SuiteResult) -> None:
    from .tables import SHORT_HEADINGS, short_row

    console.print(f"[bold]{suite.name}[/], {suite.seconds:.0f} s")
    for what in suite.disturbed_by:
        console.print(f"[yellow]as it began, {escape(what)}: mind the figures[/]")
    if suite.figures:
        show_table(_table(SHORT_HEADINGS, map(short_row, suite.figures)), console)
    for figure in suite.figures:
        if figure.note:
            console.print(escape(f"{figure.name}: {figure.note}."), soft_wrap=True)
    if suite.status == "failed":
        _show_failure(console, suite)


def _show_failure(console: Console, suite: SuiteResult) -> None:
    console.print(f"[red]{suite.name} {suite.status}:[/] {escape(suite.error)}", soft_wrap=True)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell.replace("**", "")) for cell in row))
    return table
