"""``oncofed site``: run a site, or an alliance's server."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from oncofed.cli import backup, budget, governance, review
from oncofed.cli.common import ask_password, ended_by_signals, escape, plain_console, require_posix, show_table
from oncofed.cli.terminal import is_terminal
from oncofed.errors import FederationError, SpecError
from oncofed.gpus import GPU, read_gpus
from oncofed.private_files import open_private
from oncofed.processes import LOG_ENCODING
from oncofed.proxy import parse_proxy

if TYPE_CHECKING:
    from oncofed.site.check import Check

app = typer.Typer(
    help="A site of an alliance (or its server): open its startup kit, check the machine, start and stop it.",
    no_args_is_help=True,
)

app.add_typer(governance.policy_app, name="policy")
app.add_typer(governance.audit_app, name="audit")
app.add_typer(budget.budget_app, name="budget")
for _command in (review.review, review.approve, review.reject, review.withdraw):
    app.command()(_command)

Folder = Annotated[Path, typer.Option("--folder", envvar="ONCOFED_SITE", help="The kit's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_START_SECONDS = 30.0


SealedKit = Annotated[Path, typer.Argument(help="The sealed kit that the alliance sent, such as SITE.kit.age.")]
KitPassword = Annotated[
    Path | None,
    typer.Option("--password-file", help="File whose first line is the kit's password; else you are asked."),
]
Identity = Annotated[
    Path | None,
    typer.Option("--identity", help="File with the age key (AGE-SECRET-KEY-...) that the kit was sealed for."),
]
RequestFolder = Annotated[
    Path | None, typer.Option("--request", help="Folder that `oncofed site request` made, which this kit answers.")
]


@app.command("open")
def open_kit(
    file: SealedKit,
    out: Annotated[Path | None, typer.Option(help="Folder to make; by default the kit's name, here.")] = None,
    password_file: KitPassword = None,
    identity: Identity = None,
    request: RequestFolder = None,
) -> None:
    """Open a sealed startup kit. If any byte differs from what the alliance signed, nothing is left of it."""
    from oncofed.alliance.facts import read_facts

    folder = out or Path(file.name.removesuffix(".age").removesuffix(".kit"))
    _opener(file, password_file, identity, request)(folder)
    facts = read_facts(folder)
    console = plain_console()
    console.print(f"{folder}: the kit of {facts.kind} {facts.participant} in {facts.alliance}", markup=False)
    console.print(f"The alliance's fingerprint; compare it with what you were told:\n  {facts.root_fingerprint}")
    person = facts.kind == "person"
    then = f"oncofed job submit JOB --kit {folder}" if person else f"oncofed site doctor --folder {folder}"
    console.print(f"What to do next is in {folder / 'guide.html'}. First: {then}", markup=False)


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="As the alliance knows this site, server or person.")],
    kind: Annotated[str, typer.Option(help="site, server or person")] = "site",
    out: Annotated[Path | None, typer.Option(help="Folder to make; by default NAME.request, here.")] = None,
) -> None:
    """Create a private key that never leaves this machine, and a certificate request for the alliance.

    For a site whose rules forbid that anybody else has its key; else the alliance sends a kit with a key in it.
    """
    from oncofed.alliance.request import REQUEST_FILE, make_request

    if kind not in ("site", "server", "person"):
        raise SpecError(f"--kind {kind}: expected site, server or person")
    folder = out or Path(f"{name}.request")
    made = make_request(name, kind, folder)  # type: ignore[arg-type]  # checked above
    console = plain_console()
    console.print(
        f"Send {folder / REQUEST_FILE} to the alliance; nothing in it is secret. Keep the folder.", markup=False
    )
    console.print(f"Its fingerprint, for them to compare on the telephone:\n  {made.fingerprint}")
    console.print(f"Then: oncofed site open {name}.kit.age --request {folder}", markup=False)


@app.command()
def renew(
    file: SealedKit,
    folder: Folder = Path(),
    password_file: KitPassword = None,
    identity: Identity = None,
    request: RequestFolder = None,
) -> None:
    """Replace the kit in --folder by a newer one, whose certificate is valid for longer.

    It may run meanwhile: no round is missed. It uses the new certificate as soon as no job runs here.
    """
    from oncofed.site.renewal import renew as replace_kit
    from oncofed.site.service import service_state

    until, kept = replace_kit(folder.resolve(), _opener(file, password_file, identity, request))
    console = plain_console()
    console.print(f"{folder}: renewed until {until:%Y-%m-%d}", markup=False)
    if kept:
        console.print(f"Yours, and left as they are: {', '.join(kept)}", markup=False)
    if service_state(folder).running:
        console.print("It runs, and takes the new certificate as soon as no job runs here.")


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Option("--folder", envvar="ONCOFED_SITE", help="The kit's folder; by default this one.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="HOST:PORT; before there is a kit.")] = None,
    proxy: Annotated[
        str | None, typer.Option(help="http://HOST:PORT of the proxy to the server; by default the one in site.yaml.")
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(help="A job of the alliance: check that it can train on this site's data. May be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Check that this machine is ready: packages, GPU, disk, limits, clock, route to the server, kit, datasets.

    Without a kit here and without --server it checks only the machine.

    One line per check; exit status 1 if one fails.
    """
    from oncofed.alliance.facts import KIT_FILE
    from oncofed.job.spec import read_job
    from oncofed.site.doctor import examine

    if folder is None and server is None and (Path() / KIT_FILE).exists():
        folder = Path()
    if proxy:
        try:
            parse_proxy(proxy)
        except ValueError as error:
            raise SpecError(f"--proxy: {error}") from None
    jobs = {name: read_job(name, with_code=True).plan() for name in job or ()}
    checks = examine(folder.resolve() if folder else None, _address(server) if server else None, jobs, proxy)
    if json:
        typer.echo(jsonlib.dumps([check.as_dict() for check in checks], indent=2))
    else:
        _show(checks)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def start(
    folder: Folder = Path(),
    background: Annotated[bool, typer.Option("--background", help="Return once it runs; see site stop.")] = False,
) -> None:
    """Start the kit's site, relay or server. It is restarted when it crashes; Ctrl-C stops it.

    Everything that it writes stays in the kit's folder. A job that is stopped continues from its last checkpoint.
    """
    require_posix()
    if background:
        _start_in_background(folder)
        return
    from oncofed.site.service import LOG_FILE, Service

    console = plain_console()
    service = Service(folder, lambda line: console.print(f"{datetime.now():%H:%M:%S} {line}", markup=False))
    facts = service.facts
    whose = f"{facts.kind} {facts.participant} of {facts.alliance}"
    console.print(f"{whose} runs. Log: {folder / LOG_FILE}. Ctrl-C stops it.", markup=False)
    service.run()


@app.command()
def stop(
    folder: Folder = Path(),
    after_round: Annotated[
        bool, typer.Option("--after-round", help="Let the site finish this round first; Ctrl-C: do not stop.")
    ] = False,
) -> None:
    """Stop the kit's site, relay or server, and its processes. Its jobs continue when it is started again.

    A round that is interrupted continues from its last checkpoint, which is at most a minute old.
    """
    from oncofed.site.service import machine_facts, stop_service

    facts = machine_facts(folder.resolve())
    if after_round:
        _wait_for_round(folder.resolve())
    if stop_service(folder.resolve()):
        typer.echo(f"{facts.participant} is stopped")
    else:
        typer.echo(f"{facts.participant} was not running")


@app.command()
def status(folder: Folder = Path(), json: Json = False) -> None:
    """Show whether it runs and is connected, its job, and what left today. Exit status 1: it does not run."""
    from oncofed.client.status_file import read_report
    from oncofed.site.auditing import bytes_left
    from oncofed.site.service import is_connected, machine_facts, service_state

    folder = folder.resolve()
    facts, state = machine_facts(folder), service_state(folder)
    today = datetime.now(timezone.utc).date().isoformat()
    gpus: list[GPU] = []
    with contextlib.suppress(FederationError):  # the doctor reports a broken driver
        gpus = read_gpus() if facts.kind == "site" else []
    shown: dict[str, Any] = {
        "participant": facts.participant,
        "kind": facts.kind,
        "alliance": facts.alliance,
        "running": state.running,
        "connected": is_connected(folder) if facts.kind != "server" else None,
        "since": _time(state.since) if state.since else None,
        "restarts": state.restarts,
        "trouble": state.trouble or None,
        "job": read_report(folder) or None,
        "gpus": [asdict(gpu) for gpu in gpus],
        "left_today": {"day": today, "bytes_by_job": bytes_left(folder).get(today, {})},
    }
    if json:
        typer.echo(jsonlib.dumps(shown, indent=2))
    else:
        _show_status(shown)
    if not state.running:
        raise typer.Exit(1)


@app.command()
def ui(
    folder: Folder = Path(),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serve the site admin's page on this machine only: status, code to approve, policy, what left, audit.

    Only the printed address gives access. From another machine: ssh -L PORT:127.0.0.1:PORT THIS-MACHINE.
    """
    from oncofed.site.admin import admin_server

    with admin_server(folder.resolve(), port) as (address, server):
        plain_console().print(f"{address}\nCtrl-C ends it.", markup=False)
        sys.stdout.flush()
        server.serve_forever()  # until Ctrl-C


@app.command("backup")
def back_up(
    out: backup.Out,
    folder: Folder = Path(),
    recipient: backup.Recipients = None,
    new_key: backup.NewKey = None,
) -> None:
    """Write the kit with its state into one file, encrypted with age: it may run meanwhile. Datasets are not in it."""
    from oncofed.site.service import machine_facts

    machine_facts(folder.resolve())
    backup.write_backup(folder, out, recipient, new_key)


@app.command()
def restore(
    file: backup.File,
    identity: backup.Identity,
    out: Annotated[Path, typer.Option("--out", help="Folder for the kit; missing or empty.")],
) -> None:
    """Put a backup of a kit back, into a new folder, on this machine or another. Jobs go on from where it was made."""
    from oncofed.privacy.ledger import Ledger

    made = backup.put_back(file, out, identity)
    if Ledger(out).restored():
        typer.echo(
            "What patients spent after that is not known: no job with differential privacy runs before\n"
            f"  oncofed site budget confirm --folder {out} --anchors FILE"
        )
    typer.echo(
        f"Then: oncofed site doctor --folder {out}\nNever start it while the old one of {made.participant} runs."
    )


@app.command()
def metrics(
    folder: Folder = Path(),
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Serve them at this port of 127.0.0.1, until Ctrl-C.")
    ] = None,
) -> None:
    """Print this machine's state as Prometheus metrics, or serve them: service, job, GPUs, disk, audit, budget."""
    try:
        from oncofed.site.metrics import metrics_server, metrics_text
    except ModuleNotFoundError:
        raise SpecError("metrics need Prometheus' client: pip install 'oncofed[metrics]'") from None

    if port is None:
        typer.echo(metrics_text(folder.resolve()), nl=False)
        return
    with ended_by_signals(), metrics_server(folder.resolve(), port) as address:
        plain_console().print(f"{address}\nCtrl-C ends it.", markup=False)
        sys.stdout.flush()
        threading.Event().wait()


@app.command()
def logs(
    folder: Folder = Path(),
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Number of lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new lines; Ctrl-C ends it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="FLARE's log, one JSON object per line.")] = False,
) -> None:
    """Show the site's log. It stays at the site."""
    from oncofed.site.service import LOG_FILE, machine_facts

    folder = folder.resolve()
    machine_facts(folder)
    path = folder / ("log.json" if json else LOG_FILE)
    if not path.is_file():
        raise FederationError(f"{path} is not there: nothing was started from {folder} yet")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, lines):
            typer.echo(line.rstrip())
        try:
            while follow:
                line = file.readline()
                if line:
                    typer.echo(line.rstrip())
                elif not path.exists() or path.stat().st_size < file.tell():
                    file.seek(0)  # rotated, and a new one begun
                else:
                    time.sleep(0.3)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _opener(
    file: Path, password_file: Path | None, identity: Path | None, request: Path | None
) -> Callable[[Path], object]:
    """Return a function that opens a sealed kit.

    By password, key or request folder.
    """
    from oncofed.alliance.request import open_answer
    from oncofed.alliance.sealing import unseal

    if sum(way is not None for way in (password_file, identity, request)) > 1:
        raise SpecError("give one of --password-file, --identity and --request: found several")
    if request:
        return lambda folder: open_answer(file, folder, request)
    password = None if identity else ask_password(file.name, password_file).strip().upper()
    return lambda folder: unseal(file, folder, password, identity)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SpecError(f"--server {text}: expected HOST:PORT, such as federation.example.org:8002")
    return host, int(port)


def _show(checks: list[Check]) -> None:
    console = plain_console()
    if not is_terminal(console.file):
        table = Table("state", "check", "found", "what to do")
        for check in checks:
            table.add_row(check.state, *map(escape, (check.name, check.found, check.advice)))
        show_table(table, console)
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        colour = _COLOURS[check.state]
        console.print(f"[{colour}]{check.state:>4}[/]  {check.name:<{width}}  {escape(check.found)}")
        if check.advice:
            console.print(f"      {'':<{width}}  -> {escape(check.advice)}")
    count = {state: sum(check.state == state for check in checks) for state in _COLOURS}
    console.print(", ".join(f"{number} {state}" for state, number in count.items() if number))


def _show_status(shown: dict[str, Any]) -> None:
    console = plain_console()
    running = "[green]running[/]" if shown["running"] else "[red]not running[/]"
    since = f" since {shown['since']}" if shown["since"] and shown["running"] else ""
    console.print(f"{shown['kind']} {escape(shown['participant'])} of {shown['alliance']}: {running}{since}")
    if shown["running"] and shown["connected"] is not None:
        console.print("connected to the server" if shown["connected"] else "[yellow]not connected to the server[/]")
    if shown["restarts"]:
        console.print(f"started again {shown['restarts']} times")
    if shown["trouble"]:
        console.print(f"[red]{escape(shown['trouble'])}[/]")
    job = shown["job"]
    if job:
        step = f", step {job['step']} of {job['steps']}" if "step" in job else ""
        number = f", round {job['round']}" if job.get("round") else ""
        ago = max(time.time() - job["at"], 0)
        console.print(f"job {job['job']}: {job.get('phase', '')}{number}{step} ({ago:.0f} s ago)", markup=False)
    for gpu in shown["gpus"]:
        busy = f"{gpu['busy_percent']} % busy, " if gpu["busy_percent"] is not None else ""
        memory = f"{gpu['total_gib'] - gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB in use"
        console.print(f"GPU {gpu['number']}, {gpu['name']}: {busy}{memory}", markup=False)
    for job_id, size in shown["left_today"]["bytes_by_job"].items():
        console.print(f"left today for job {job_id}: {size / 1e6:.1f} MB of weights and numbers", markup=False)


def _wait_for_round(folder: Path) -> None:
    """Wait until the site's job has submitted this round's result."""
    from oncofed.client.status_file import ENDED, WAITING, read_report
    from oncofed.site.service import runs_job

    with Console(stderr=True).status("") as shown:
        while runs_job(folder):
            now = read_report(folder)
            if now.get("phase") in (WAITING, ENDED):
                return
            step = f", step {now['step']} of {now['steps']}" if "step" in now else ""
            shown.update(f"its job finishes this round: {now.get('phase', 'starting')}{step}")
            time.sleep(0.2)


def _start_in_background(folder: Path) -> None:
    """Start ``oncofed site start`` as a separate process.

    Returns once it has locked the folder.

    Raises:
        FederationError: it ended at once.
    """
    from oncofed.site.service import LOG_FILE, machine_facts, require_unchanged, service_state

    folder = folder.resolve()
    facts = machine_facts(folder)
    require_unchanged(folder)
    if service_state(folder).running:
        raise FederationError(f"{folder} runs already. Stop it with: oncofed site stop --folder {folder}")
    command = [sys.executable, "-m", "oncofed.cli.main", "site", "start", "--folder", str(folder)]
    with open(folder / "service.log", "ab", opener=open_private) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "PYTHONIOENCODING": LOG_ENCODING},
        )
    deadline = time.monotonic() + _START_SECONDS
    while not (service_state(folder).running and service_state(folder).since):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = (folder / "service.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise FederationError(f"{facts.participant} did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.1)
    typer.echo(f"{facts.participant} runs in the background (process {process.pid}). Log: {folder / LOG_FILE}")
