"""``oncofed job``: look at jobs, check them, export them, run them here."""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    progress_console,
    require_posix,
    show_result,
)
from oncofed.cli.demo import Backend
from oncofed.errors import SpecError

app = typer.Typer(help="Jobs as data: list, show, check, export, run.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the jobs in ./jobs and those that come with oncofed."""
    from oncofed.job.spec import list_jobs, parse_job

    specs = [(entry, parse_job(entry.file)) for entry in list_jobs()]
    if json:
        rows = [{"name": e.name, "title": s.title, "dataset": s.data.dataset, "file": str(e.file)} for e, s in specs]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    table = Table()
    for heading in ("job", "what it learns", "dataset", "network"):
        table.add_column(heading)
    for entry, spec in specs:
        table.add_row(entry.name, spec.title, spec.data.dataset, spec.model.network)
    Console().print(table)


@app.command()
def show(job: Job, json: Json = False) -> None:
    """Show a job with every default written out."""
    from oncofed.job.spec import read_job

    spec = read_job(job)
    typer.echo(spec.model_dump_json(indent=2, by_alias=True) if json else spec.to_yaml().rstrip())


@app.command()
def check(job: Job, json: Json = False) -> None:
    """Check a job.yaml: settings, their values, and that its network can be built."""
    from oncofed.job.spec import find_job, read_job

    spec = read_job(job)
    network = spec.plan().build_network()
    parameters = sum(p.numel() for p in network.parameters())
    megabytes = sum(v.numel() * v.element_size() for v in network.state_dict().values()) / 1e6
    if json:
        typer.echo(jsonlib.dumps({"job": spec.name, "ok": True, "parameters": parameters, "exchange_mb": megabytes}))
        return
    steps = spec.plan().total_steps
    typer.echo(
        f"{find_job(job)}: ok. {spec.model.network} with {parameters:,} parameters, {megabytes:.1f} MB each way a "
        f"round, {spec.federation.rounds} rounds, {steps} steps at each site."
    )


@app.command()
def export(
    job: Job,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; its name becomes FLARE's job name.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a job folder exported before.")] = False,
) -> None:
    """Write a job as a plain FLARE job folder: JSON only, for `nvflare job submit`."""
    from oncofed.job.flare import export_job
    from oncofed.job.spec import read_job

    folder = export_job(read_job(job), out, force)
    typer.echo(f"{folder}: written. Submit it with: nvflare job submit -j {folder}")


@app.command()
def run(
    job: Job,
    site: Annotated[
        list[str], typer.Option("--site", help="NAME=FOLDER, once for each site: a folder in Decathlon layout.")
    ],
    backend: Annotated[
        Backend,
        typer.Option(
            help="federation: real server and sites from startup kits, mutual TLS; simulate: FLARE's simulator."
        ),
    ] = Backend.federation,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; by default as many as the job says.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one in the workspace.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the server; by default a free one.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also train each site alone, and all data pooled.")
    ] = True,
    max_bad_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of a site's cases that may be set aside; by default the job's own."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep startup kits and FLARE's own files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print result.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Run a job on this machine over your own folders, each folder one site."""
    keep_caches_in(workspace)
    from oncofed.job.run import Run
    from oncofed.job.spec import read_job

    require_posix()
    spec = read_job(job)
    if rounds:
        spec = spec.with_rounds(rounds)
    if max_bad_share is not None:
        spec = spec.changed({"data": {"max_bad_share": max_bad_share}})
    sites = parse_sites(site)
    needed = spec.federation.min_sites or 1
    if len(sites) < needed:
        raise SpecError(
            f"the job needs {needed} sites (federation.min_sites), found {len(sites)}: {', '.join(sites)}. "
            "Add --site NAME=FOLDER."
        )
    folder = out or new_run_folder(workspace, spec.name)
    if folder.exists() and any(folder.iterdir()):
        raise SpecError(f"{folder} is not empty. Name a new folder with --out, or leave --out away.")
    with ended_by_signals():
        console = progress_console(json)
        result = Run(spec, sites, backend.value, folder, console, port, keep, baselines).execute()
    show_result(result, folder, json)


def parse_sites(values: list[str]) -> dict[str, Path]:
    """Return site name -> folder of ``NAME=FOLDER`` arguments.

    Raises:
        SpecError: one is not of that form, or a name is given twice or is none that a certificate can carry.
    """
    sites: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise SpecError(
                f"--site {value}: expected NAME=FOLDER, with letters, digits, - and _ in NAME, "
                "for example --site fred-hutch=/data/hippocampus"
            )
        if name in sites:
            raise SpecError(f"--site {name} is given twice. Give each site a name of its own.")
        if name in ("server", "localhost", _POOLED):
            raise SpecError(f"--site {name}: this name is taken. Give the site another one.")
        sites[name] = Path(folder).expanduser()
    return sites


_POOLED = "pooled"
