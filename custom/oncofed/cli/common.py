"""Shared by commands: workspace, consoles, results, errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import TaskID
from rich.syntax import Syntax
from rich.table import Table

from oncofed.cli.terminal import echo_json, is_terminal
from oncofed.errors import OncofedError, SpecError
from oncofed.processes import not_ignored

if TYPE_CHECKING:
    from oncofed.report.result import Result

DEFAULT_WORKSPACE = Path("workspace")
_SHORTEST_PASSWORD = 12
_BREAKS = re.compile(r"\s*[\t\r\n\v\f]\s*")


@dataclass
class Options:
    """Global options, and the workspace as typed."""

    debug: bool = False
    workspace: Path | None = None  # None: not typed


options = Options()


def _workspace(context: typer.Context, value: Path) -> Path:
    source = context.get_parameter_source("workspace")
    options.workspace = value if source and source.name == "COMMANDLINE" else None
    return value


Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace",
        envvar="ONCOFED_WORKSPACE",
        callback=_workspace,
        help="Folder for runs, datasets and caches.",
    ),
]


def fail(error: OncofedError) -> int:
    """Print an error, and return its exit status."""
    plain_console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
    return error.exit_code


def plain_console(stderr: bool = False) -> Console:
    """Return a console that does not wrap lines."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def show_table(table: Table, console: Console | None = None) -> None:
    """Print a table; without a terminal, lines of tab-separated cells.

    Title and headings are lines too. Cells are never cut, have no colours, and line breaks and tabs in them become
    spaces.
    """
    console = console or plain_console()
    if is_terminal(console.file):
        console.print(table, soft_wrap=False)
        return
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    if table.show_header:
        rows.insert(0, tuple(column.header for column in table.columns))
    lines = [[table.title]] if table.title else []
    for line in [*lines, *rows]:
        console.file.write("\t".join(_cell_text(cell, console) for cell in line) + "\n")
    console.file.flush()


def show_text(text: str, language: str, console: Console) -> None:
    """Print a file's text, highlighted on a terminal."""
    if is_terminal(console.file):
        console.print(Syntax(text, language, theme="ansi_light", background_color="default"))
    else:
        console.file.write(text.rstrip("\n") + "\n")


def _cell_text(cell: object, console: Console) -> str:
    text = console.render_str(cell) if isinstance(cell, str) else cell
    return _BREAKS.sub(" ", str(text)).strip()


def progress_console(json: bool) -> Console:
    """Return the console for progress.

    It is stderr if stdout is for JSON.
    """
    return plain_console(stderr=json)


@contextlib.contextmanager
def progress_bars(console: Console, shows_rate: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that updates a bar per activity.

    Its arguments are (activity, done, total).
    """
    from oncofed.job.watch import progress_bar

    with progress_bar(console, shows_rate) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield advance


def keep_caches_in(workspace: Path) -> None:
    """Put caches of libraries into the workspace.

    Call it before the libraries are imported.
    """
    caches = workspace.absolute() / ".cache"
    for variable, library in (("MPLCONFIGDIR", "matplotlib"), ("TORCHINDUCTOR_CACHE_DIR", "torchinductor")):
        # PyTorch runs compiled code from it: nobody else may write there.
        (caches / library).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault(variable, str(caches / library))


def typed_workspace() -> list[str]:
    """Return ``--workspace`` as typed, for a suggested command.

    It is empty if not typed.
    """
    return ["--workspace", str(options.workspace)] if options.workspace else []


def datasets_folder(workspace: Path) -> Path:
    """Return the folder of registered datasets."""
    return workspace / "datasets"


def dataset_named(name_or_folder: str | Path, workspace: Path) -> Path:
    """Return a dataset's folder.

    A note on stderr says which one is taken where both a folder and a registered dataset have the name.

    Raises:
        DataError: no such dataset.
    """
    from oncofed.data.register import dataset_folder, which_is_taken

    registered = datasets_folder(workspace)
    folder = dataset_folder(name_or_folder, registered)
    if note := which_is_taken(name_or_folder, registered):
        plain_console(stderr=True).print(f"[yellow]note[/] {escape(note)}")
    return folder


def new_run_folder(workspace: Path, job: str) -> Path:
    """Return a new folder ``workspace/runs/TIME-JOB``."""
    runs = workspace / "runs"
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{job}"
    candidates = [name, *(f"{name}-{n}" for n in range(2, 100))]
    return next(runs / candidate for candidate in candidates if not (runs / candidate).exists())


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End a run on SIGTERM and SIGHUP as on Ctrl-C.

    All its processes end with it. Under ``nohup`` SIGHUP stays ignored.

    Raises:
        typer.Exit: with 130, a shell's status for an interrupted program.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in not_ignored(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; nothing that was started is left running", err=True)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_posix() -> None:
    """Refuse systems without FLARE's start scripts.

    Raises:
        SpecError: this is Windows.
    """
    if sys.platform == "win32":
        raise SpecError("FLARE's start scripts need a POSIX system; on Windows use WSL.")


def _parts(model: Path) -> list[str]:
    """Return the forms of a run's model."""
    return ["model.safetensors", *(["MONAI bundle"] if (model / "bundle").is_dir() else [])]


def show_result(result: Result, folder: Path, json: bool) -> None:
    """Print a finished run, as a table or as JSON."""
    if json:
        echo_json(result.model_dump_json(indent=2, by_alias=True))
        return
    from oncofed.report.remarks import remarks

    console = plain_console()
    show_table(result_table(result), console)
    for line in (*remarks(result), *_over_sites(result)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    timing = result.timing
    overhead = timing.overhead_s_per_round
    console.print(
        f"{timing.total_s:.0f} s from the check of the data to the result, "
        f"{timing.startup_s:.0f} s until the sites were ready"
        + (f", {overhead:.2f} s overhead a round" if overhead is not None else "")
    )
    if result.data_note:
        console.print(result.data_note, soft_wrap=True)
    console.print(f"Report:  {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Result:  {folder / 'result.json'}", soft_wrap=True)
    console.print(f"Model:   {folder / 'model'} ({', '.join(_parts(folder / 'model'))})", soft_wrap=True)
    console.print(f"Curves:  tensorboard --logdir {folder / 'tensorboard'}", soft_wrap=True)


def _over_sites(result: Result) -> list[str]:
    """Return lines about the patients of all sites together."""
    lines = []
    pooled, pair, known = result.pooled_test, result.paired_test, result.calibration
    if pooled:
        figures: list[tuple[str, float, tuple[float, float] | None]] = [
            (n, found.auroc, found.interval) for n, found in pooled.classes.items()
        ]
        figures += [(n, found.mean, found.interval) for n, found in pooled.figures.items()]
        figures += [
            (f"{n}, {one.title}", one.value, one.interval)
            for n, target in pooled.targets.items()
            for one in list(target.figures.values())[:1]
        ]
        figures += [(one.title, one.value, one.interval) for one in (pooled.mean,) if one]
        values = ", ".join(_figure(*one) for one in figures)
        lines.append(f"all sites together, {pooled.patients} patients: {values or 'too few of any class'}")
    if known and known.temperature is not None:
        errors = [f"{found.calibration_error:.3f}" for found in (known.before, known.after) if found]
        change = f"; calibration error {' without it, '.join(errors)} with it" if len(errors) == 2 else ""
        lines.append(f"temperature {known.temperature:.2f}, of {known.patients} validation patients{change}")
    if pair:
        low, high = pair.interval
        lines.append(
            f"less the other model's, {pair.patients} patients: {pair.difference:+.3f} ({low:+.3f} to {high:+.3f})"
            + (
                ""
                if pair.margin is None
                else f"; {'' if pair.not_inferior else 'not shown to be '}no worse by {pair.margin:g}"
            )
        )
    return lines


def _figure(name: str, value: float, interval: tuple[float, float] | None) -> str:
    """Return a figure in words, with its 95 % interval where there is one."""
    return f"{name} {value:.3f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def result_table(result: Result) -> Table:
    """Return a result's table.

    A row is a site, a column a model.
    """
    models = result.models
    table = Table(title=f"{result.title}: {result.metric_name} on held-out patients", title_justify="left")
    table.add_column("site")
    headings = [model.replace("_", " ") for model in models]
    for heading in ("train", "test", *headings, *(["gain"] if "alone" in models else [])):
        table.add_column(heading, justify="right")
    for name, site in sorted(result.sites.items()):
        values = [getattr(site, model) for model in models]
        row = [name, str(site.train_cases), str(site.test_cases), *map(_score, values)]
        table.add_row(*row, *_gain(models, site.alone, site.federated))
    table.add_section()
    means = [_score(getattr(result.mean, model)) for model in models]
    table.add_row("mean", "", "", *means, *_gain(models, result.mean.alone, result.mean.federated), style="bold")
    return table


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _gain(models: list[str], alone: float | None, federated: float | None) -> list[str]:
    if "alone" not in models:
        return []
    if alone is None or federated is None:
        return ["–"]
    colour = "green" if federated >= alone else "yellow"
    return [f"[{colour}]{federated - alone:+.3f}[/]"]


def escape(text: str) -> str:
    """Escape brackets, which are Rich's markup."""
    return text.replace("[", r"\[")


def ask_password(what: str, file: Path | None, new: bool = False) -> str:
    """Return a password from a file, or ask for it.

    There is no option for it: other users of a machine see command lines.

    Args:
        what: the password opens.
        file: with the password on its first line; None: ask.
        new: ask twice, and refuse a short one.

    Raises:
        SpecError: the file cannot be read, there is no terminal, or the password is too short.
    """
    if file is not None:
        try:
            password = file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except OSError as error:
            raise SpecError(f"{file}: {error.strerror}. Expected a file whose first line is the password.") from None
    elif not sys.stdin.isatty():
        raise SpecError(f"the password of {what} is asked for at a terminal; here give --password-file FILE")
    else:
        password = str(typer.prompt(f"Password of {what}", hide_input=True, confirmation_prompt=new))
    if new and len(password) < _SHORTEST_PASSWORD:
        raise SpecError(f"the password of {what} has {len(password)} characters, expected {_SHORTEST_PASSWORD} or more")
    return password
