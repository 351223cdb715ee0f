"""``oncofed job submit|watch|stop|fetch``: jobs that an alliance's machines run."""

from __future__ import annotations

import json as jsonlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    plain_console,
    progress_console,
    show_result,
)
from oncofed.cli.run_options import Against, EvaluateOnly, Model, Track, require_model
from oncofed.cli.tracking import tracked
from oncofed.errors import FederationError, SpecError

if TYPE_CHECKING:
    from oncofed.alliance.session import EngineerSession
    from oncofed.job.spec import AnyJob

app = typer.Typer()

Kit = Annotated[
    Path, typer.Option("--kit", envvar="ONCOFED_KIT", help="Your startup kit: the folder that holds startup/.")
]
JobId = Annotated[str, typer.Argument(help="What `oncofed job submit` printed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")]


@app.command()
def submit(
    job: Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")],
    kit: Kit,
    model: Model = None,
    evaluate_only: EvaluateOnly = False,
    against: Against = None,
    wait_for: Annotated[
        str | None,
        typer.Option(help="Sites, such as east,west: submit once all of them are connected. Ctrl-C: do not."),
    ] = None,
    follow: Annotated[bool, typer.Option("--watch/--no-watch", help="Watch it then.")] = False,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Submit a job to an alliance. It runs there: this machine may be switched off."""
    keep_caches_in(workspace)
    from oncofed.alliance.session import EngineerSession
    from oncofed.job.flare import export_job
    from oncofed.job.spec import read_any_job

    spec = read_any_job(job, with_code=True)
    require_model(model, evaluate_only, against)
    with tempfile.TemporaryDirectory() as temporary, EngineerSession(kit) as engineer:
        exported = export_job(
            spec, Path(temporary) / spec.name, model=model, evaluate_only=evaluate_only, against=against
        )
        _show_sites(engineer, kit, spec, _names(wait_for), progress_console(json))
        job_id = engineer.submit(exported)
    if json:
        typer.echo(jsonlib.dumps({"job": spec.name, "id": job_id}))
    else:
        typer.echo(f"{spec.name} is submitted: {job_id}\nWatch it with: oncofed job watch {job_id}")
    if follow:
        watch(job_id, kit, json=json, workspace=workspace)


def _names(text: str | None) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else []
    if "" in names:
        raise SpecError(f"--wait-for {text}: expected names of sites, such as east,west")
    return names


def _show_sites(engineer: EngineerSession, kit: Path, spec: AnyJob, wait_for: list[str], console: Console) -> None:
    """Show which sites will take part, and await named ones."""
    from oncofed.alliance.facts import sites_of
    from oncofed.job.spec import JobSpec

    sites = sites_of(kit)
    unknown = sorted(set(wait_for) - set(sites)) if sites else []
    if unknown:
        # The list lacks sites that joined after this kit was made.
        console.print(f"not in this kit's list of sites, which may be older: {', '.join(unknown)}", markup=False)
    engineer.wait_for(wait_for, lambda missing: console.print(f"waiting for {', '.join(missing)}", markup=False))
    connected = sorted(engineer.connected())
    console.print(f"connected: {', '.join(connected) if connected else 'no site'}", markup=False)
    absent = sorted(set(sites) - set(connected))
    if absent:
        console.print(f"not connected: {', '.join(absent)}. They take part from when they are.", markup=False)
    needed = spec.rounds.quorum if isinstance(spec, JobSpec) else spec.min_sites
    if needed and len(connected) < needed:
        console.print(f"It waits until {needed} sites are there.")


@app.command()
def watch(
    job_id: JobId, kit: Kit, track: Track = None, json: Json = False, workspace: Workspace = DEFAULT_WORKSPACE
) -> None:
    """Watch a job of an alliance until it ends. Ctrl-C stops only the watching; watch again at any time."""
    keep_caches_in(workspace)
    from oncofed.alliance.session import EngineerSession
    from oncofed.job.remote import watch as follow

    console = progress_console(json)
    curves = workspace / "runs" / job_id / "tensorboard"
    try:
        folder = workspace / "runs" / job_id
        with (
            EngineerSession(kit) as engineer,
            tracked(track, folder, engineer.name_of(job_id) if track else "", console, goes_on=True) as trackers,
        ):
            ended = follow(engineer, job_id, console, curves, trackers)
    except KeyboardInterrupt:
        console.print(f"The job runs on. Watch it again with: oncofed job watch {job_id}")
        raise typer.Exit(130) from None
    if json:
        typer.echo(jsonlib.dumps({"id": job_id, "ended": ended}))
    else:
        console.print(f"{ended}. Fetch its result with: oncofed job fetch {job_id}")
    if ended != "COMPLETED":
        raise typer.Exit(1)


@app.command()
def stop(job_id: JobId, kit: Kit) -> None:
    """Stop a job of an alliance at the server and all sites. Its results so far can still be fetched."""
    from oncofed.alliance.session import EngineerSession

    with EngineerSession(kit) as engineer:
        status = engineer.status(job_id)
        if status.startswith("FINISHED"):
            raise FederationError(f"job {job_id} has ended already: {status.removeprefix('FINISHED:')}")
        engineer.stop(job_id)
    typer.echo(f"{job_id} is stopped")


@app.command()
def fetch(
    job_id: JobId,
    kit: Kit,
    out: Annotated[Path | None, typer.Option(help="Folder; by default the job's own in the workspace.")] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Fetch a finished job's results: model, MONAI bundle, result, report and curves."""
    keep_caches_in(workspace)
    from oncofed.alliance.session import EngineerSession
    from oncofed.job.remote import fetch as download

    folder = out or workspace / "runs" / job_id
    if (folder / "result.json").exists():
        raise SpecError(f"{folder} holds a result already. Name another folder with --out.")
    with ended_by_signals(), EngineerSession(kit) as engineer:
        result = download(engineer, job_id, folder)
    show_result(result, folder, json)
    if result.status != "completed":
        plain_console(stderr=True).print(f"The run is not complete: {result.error}", markup=False)
        raise typer.Exit(1)
