"""``oncofed job contribution``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    progress_console,
    require_posix,
    show_table,
)
from oncofed.cli.run_options import Backend, Rounds, named_sites, parse_seeds
from oncofed.cli.terminal import echo_json

if TYPE_CHECKING:
    from oncofed.job.contribution import SiteContribution


def contribution(
    job: Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")],
    site: Annotated[
        list[str], typer.Option("--site", help="NAME=DATASET, once for each site, of which there are three or more.")
    ],
    seeds: Annotated[str, typer.Option(help="Comma-separated; each federation runs once with each.")] = "1,2,3",
    rounds: Rounds = None,
    backend: Backend = "simulate",
    out: Annotated[
        Path | None, typer.Option(help="Folder; complete runs in it are not repeated. By default a new one.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print contribution.json to stdout, progress to stderr.")
    ] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Run a job with all sites and without each of them: what does each bring to the others' patients?"""
    keep_caches_in(workspace)
    from oncofed.job.contribution import LeaveOneOut
    from oncofed.job.spec import read_job

    require_posix()
    spec = read_job(job, with_code=True)
    spec = spec.with_rounds(rounds) if rounds else spec
    numbers = parse_seeds(seeds) or [spec.seed]
    folder = out or new_run_folder(workspace, f"{spec.name}-contribution")
    with ended_by_signals():
        found = LeaveOneOut(
            spec=spec,
            sites=named_sites(site, workspace),
            seeds=numbers,
            backend=backend,
            folder=folder,
            console=progress_console(json),
        ).execute()
    if json:
        echo_json(found.model_dump_json(indent=2))
        return
    table = Table(title=f"{spec.title}: {found.metric_name} that each site brings to the others", title_justify="left")
    for heading in ("site", "training cases", "brings", "95 % interval", "most to", "least to"):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    for row in found.sites:
        table.add_row(row.site, str(row.train_cases), *_figures(row))
    show_table(table)
    if len(numbers) == 1:
        typer.echo("One seed: no interval. Name more, such as --seeds 1,2,3.")
    typer.echo(f"Result: {folder / 'contribution.json'}")


def _figures(row: SiteContribution) -> list[str]:
    if row.mean is None:
        return ["–"] * 4
    ends = f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}" if row.interval else "–"
    ordered = sorted(row.by_site.items(), key=lambda item: item[1])
    (least, low), (most, high) = ordered[0], ordered[-1]
    return [f"{row.mean:+.3f}", ends, f"{most} {high:+.3f}", f"{least} {low:+.3f}"]
