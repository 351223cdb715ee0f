"""``oncofed alliance``: participants and their startup kits."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from oncofed.cli.backup import File, Identity, NewKey, Out, Recipients, put_back, write_backup
from oncofed.cli.common import ask_password, escape, plain_console, progress_console, show_table
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.alliance.issued import SealedKit

app = typer.Typer(
    help="An alliance: its participants, their sealed startup kits, and until when those are valid.",
    no_args_is_help=True,
)

DEFAULT_HOME = Path("workspace/alliance")

Home = Annotated[
    Path, typer.Option("--home", envvar="ONCOFED_ALLIANCE", help="The alliance's folder: root key, sealed kits.")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", help="File whose first line is the root's password; else you are asked."),
]
SpecFile = Annotated[Path, typer.Argument(help="The alliance's file; an example is provisioning/alliance.yaml.")]
Passwords = Annotated[
    Path | None, typer.Option("--passwords", help="Write the kits' passwords to this file (0600), not the terminal.")
]
Recipient = Annotated[
    str | None, typer.Option("--recipient", help="age recipient (age1...) that the kit is sealed for; else a password.")
]
OwnKey = Annotated[
    bool,
    typer.Option("--own-key", help="Make no kit: they create their own private key; see oncofed site request."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")]


@app.command("backup")
def back_up(out: Out, home: Home = DEFAULT_HOME, recipient: Recipients = None, new_key: NewKey = None) -> None:
    """Write the alliance's folder into one file, encrypted with age: root key, sealed kits, issued certificates."""
    write_backup(home, out, recipient, new_key)


@app.command()
def restore(file: File, identity: Identity, home: Home = DEFAULT_HOME) -> None:
    """Put a backup of the alliance's folder back, into a new folder."""
    made = put_back(file, home, identity)
    typer.echo(f"Certificates that were given out or revoked after {made.made[:10]} are not in its list: compare it.")


@app.command()
def provision(
    file: SpecFile,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
    passwords: Passwords = None,
    json: Json = False,
) -> None:
    """Make a sealed startup kit for every participant in alliance.yaml without one. Existing kits stay unchanged.

    The first time it also creates the alliance's root key, encrypted with a password that you choose. Each kit is
    sealed with a password of its own, shown once, or for the age recipient in alliance.yaml. Send kits and passwords
    by different ways.
    """
    from oncofed.alliance.issued import Alliance
    from oncofed.alliance.spec import read_alliance

    spec, alliance, console = read_alliance(file), Alliance(home), progress_console(json)
    new = alliance.without_kit(spec)
    if not new:
        console.print(f"Everybody in {file} has a kit already; nothing was changed.", markup=False)
        if json:
            typer.echo("[]")
        return
    password = ask_password("the alliance's root", password_file, new=not alliance.exists)
    _make(alliance.issue(spec, password), len(new), passwords, console, json)
    console.print(f"The alliance's fingerprint, for who opens a kit: {alliance.issued().root_fingerprint}")


@app.command("add-site")
def add_site(
    file: SpecFile,
    name: Annotated[str, typer.Argument(help="Of the site: letters, digits, _ and -.")],
    organisation: Annotated[str, typer.Option(help="Letters, digits and _.")],
    contact: Annotated[str | None, typer.Option(help="Who answers there.")] = None,
    recipient: Recipient = None,
    own_key: OwnKey = False,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
    passwords: Passwords = None,
    json: Json = False,
) -> None:
    """Add a site to alliance.yaml, whose comments stay, and make its kit. Nobody else's kit changes."""
    entry = {"organisation": organisation, "contact": contact, "recipient": recipient, "own_key": own_key or None}
    _add(file, "sites", name, entry, json)
    if not own_key:
        provision(file, home, password_file, passwords, json)


@app.command("add-user")
def add_user(
    file: SpecFile,
    name: Annotated[str, typer.Argument(help="E-mail address.")],
    organisation: Annotated[str, typer.Option(help="Letters, digits and _.")],
    role: Annotated[
        str, typer.Option(help="project_admin, org_admin (of a site), lead (submits jobs) or member (looks).")
    ] = "lead",
    recipient: Recipient = None,
    own_key: OwnKey = False,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
    passwords: Passwords = None,
    json: Json = False,
) -> None:
    """Add a person to alliance.yaml, whose comments stay, and make their kit. Nobody else's kit changes."""
    entry = {"role": role, "organisation": organisation, "recipient": recipient, "own_key": own_key or None}
    _add(file, "people", name, entry, json)
    if not own_key:
        provision(file, home, password_file, passwords, json)


@app.command()
def renew(
    file: SpecFile,
    names: Annotated[list[str] | None, typer.Argument(help="Participants; without any, see --within.")] = None,
    within: Annotated[
        int, typer.Option(min=1, help="Without names: everybody whose certificate expires within so many days.")
    ] = 60,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
    passwords: Passwords = None,
    json: Json = False,
) -> None:
    """Make kits with new certificates before the old ones expire. Until then both are valid.

    A participant installs the new kit with `oncofed site renew FILE`, even while it runs. One with its own private key
    sends a new request instead; see `oncofed alliance approve`.
    """
    from oncofed.alliance.issued import Alliance
    from oncofed.alliance.spec import read_alliance

    spec, alliance, console = read_alliance(file), Alliance(home), progress_console(json)
    chosen = list(dict.fromkeys(names)) if names else alliance.expiring(spec, within)
    if not chosen:
        console.print(f"No certificate ends within {within} days; nothing was changed.")
        if json:
            typer.echo("[]")
        return
    password = ask_password("the alliance's root", password_file)
    _make(alliance.renew(spec, chosen, password), len(chosen), passwords, console, json)
    console.print("They put it in place with: oncofed site renew FILE --folder KIT")


@app.command()
def approve(
    file: SpecFile,
    request: Annotated[Path, typer.Argument(help="The request.json that a participant sent.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The request's, as its sender gave it by another way; without it you are asked.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--renew", help="The participant has a kit; make a second certificate.")
    ] = False,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Answer a participant who created its own private key: a kit without a key, which only that participant can open.

    alliance.yaml must name the participant. Anybody could have written the request's file: compare the fingerprint with
    its sender by telephone.
    """
    from oncofed.alliance.issued import Alliance
    from oncofed.alliance.request import read_request
    from oncofed.alliance.spec import read_alliance

    spec, received, console = read_alliance(file), read_request(request), progress_console(json)
    console.print(
        f"{received.kind} {received.participant} asks. Fingerprint of the request:\n  {received.fingerprint}",
        markup=False,
    )
    if fingerprint is not None and fingerprint.strip().upper() != received.fingerprint:
        raise SpecError("--fingerprint is not that of the request: it comes from somebody else, or was changed")
    if fingerprint is None:
        if not sys.stdin.isatty():
            raise SpecError("the fingerprint is confirmed at a terminal; here give --fingerprint")
        typer.confirm(f"Did {received.participant} tell you the same one?", abort=True)
    made = Alliance(home).approve(spec, received, ask_password("the alliance's root", password_file), again)
    then = "renew" if again else "open"
    if json:
        typer.echo(jsonlib.dumps({"name": made.name, "kind": made.kind, "kit": str(made.file)}))
    console.print(f"Send {made.file}. They open it with: oncofed site {then} FILE --request FOLDER", markup=False)


@app.command()
def status(
    home: Home = DEFAULT_HOME,
    kit: Annotated[
        Path | None, typer.Option(help="A person's open kit: also ask the running server which sites are connected.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the participants, their roles and certificates, and which sites are connected."""
    from oncofed.alliance.authority import EXPIRES_SOON_DAYS
    from oncofed.alliance.issued import Alliance

    issued = Alliance(home).issued()
    last_seen = _last_seen(kit) if kit else None
    if json:
        shown = jsonlib.loads(issued.model_dump_json(by_alias=True))
        shown["connected"] = None if last_seen is None else {name: at.isoformat() for name, at in last_seen.items()}
        typer.echo(jsonlib.dumps(shown, indent=2))
        return
    table = Table(title=f"{issued.name}: server {issued.server}, port {issued.port}", title_justify="left", box=SIMPLE)
    table.add_column("participant", no_wrap=True)
    for heading in ("kind or role", "organisation", "kit"):
        table.add_column(heading, overflow="fold")
    for heading in ("until", *(["heard of"] if last_seen is not None else [])):
        table.add_column(heading, no_wrap=True)
    now = datetime.now(timezone.utc)
    for name, participant in issued.participants.items():
        until = participant.certificates[-1].until
        left = (until - now).days
        colour = "red" if left < 0 else "yellow" if left < EXPIRES_SOON_DAYS else "default"
        validity = f"{until:%Y-%m-%d}, " + ("[bold]expired[/]" if left < 0 else f"{left} days")
        if participant.revoked:
            colour, validity = "red", f"[bold]revoked[/] on {participant.revoked:%Y-%m-%d}"
        row = [
            escape(name),
            participant.role or participant.kind,
            participant.organisation,
            participant.certificates[-1].oncofed,
        ]
        row.append(f"[{colour}]{validity}[/]")
        if last_seen is not None:
            row.append(_ago(last_seen.get(name)) if participant.kind == "site" else "")
        table.add_row(*row)
    console = plain_console()
    show_table(table, console)
    console.print(f"Fingerprint of the root: {issued.root_fingerprint}", soft_wrap=True)
    sites = {name: one for name, one in issued.participants.items() if one.kind == "site" and not one.revoked}
    if sites:
        console.print("Fingerprints of sites' certificates, for a policy's leaves.peers:", soft_wrap=True)
    for name, participant in sites.items():
        console.print(f"  {escape(name)}: {participant.certificates[-1].fingerprint}", soft_wrap=True)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Site, relay or person, as `oncofed alliance status` names them.")],
    server_kit: Annotated[
        Path | None, typer.Option(help="The server's open kit, if it is on this machine: the list is written into it.")
    ] = None,
    home: Home = DEFAULT_HOME,
    password_file: PasswordFile = None,
) -> None:
    """Revoke a participant. The running server obeys within seconds, without a restart.

    The alliance signs the list of revoked participants, so it may reach the server by any way. A revoked name cannot be
    used again: to come back, take another one.
    """
    from oncofed.alliance.facts import read_facts
    from oncofed.alliance.issued import Alliance
    from oncofed.private_files import write_private

    alliance = Alliance(home)
    if server_kit:
        facts, issued = read_facts(server_kit), alliance.issued()
        if facts.kind != "server" or facts.root_fingerprint != issued.root_fingerprint:
            raise SpecError(f"--server-kit {server_kit}: expected the kit of {issued.server}, the server of {home}")
    elif name not in alliance.issued().participants:
        raise SpecError(f"nobody is called {name}; there are {', '.join(alliance.issued().participants)}")
    file = alliance.revoke(name, ask_password("the alliance's root", password_file))
    if server_kit:
        write_private(server_kit / "local" / file.name, file.read_bytes())
        typer.echo(f"{name} is revoked, and the server of {server_kit} keeps it out")
    else:
        typer.echo(f"{name} is revoked once the server has the list. Put {file} into the folder local/ of its kit.")


def _last_seen(kit: Path) -> dict[str, datetime]:
    from oncofed.alliance.session import EngineerSession

    with EngineerSession(kit) as engineer:
        return engineer.connected()


def _ago(at: datetime | None) -> str:
    if at is None:
        return "[yellow]not connected[/]"
    return f"{max((datetime.now(timezone.utc) - at).total_seconds(), 0):.0f} s ago"


def _add(
    file: Path, group: Literal["sites", "people"], name: str, entry: Mapping[str, str | bool | None], json: bool
) -> None:
    from oncofed.alliance.edit import add_participant

    add_participant(file, group, name, entry)
    progress_console(json).print(f"{name} is in {file}", markup=False)


def _make(kits: Iterator[SealedKit], count: int, passwords: Path | None, console: Console, json: bool) -> None:
    """Make kits and show their passwords, even when interrupted.

    A password that is not shown is lost.
    """
    made: list[SealedKit] = []
    try:
        made.extend(track(kits, "Sealed kits", count, console=console, transient=True))
    finally:
        _show_kits(made, passwords, console, json)


def _show_kits(made: list[SealedKit], file: Path | None, console: Console, json: bool) -> None:
    """Print kits and passwords, or write passwords to a file."""
    if not made:
        return
    from oncofed.alliance.issued import KIT_SUFFIX
    from oncofed.private_files import write_private

    if file:
        lines = "".join(f"{kit.name}\t{kit.password}\n" for kit in made if kit.password)
        write_private(file, lines.encode())
    if json:
        shown = [
            {"name": kit.name, "kind": kit.kind, "kit": str(kit.file), **({} if file else {"password": kit.password})}
            for kit in made
        ]
        typer.echo(jsonlib.dumps(shown, indent=2))
        return
    table = Table(title="Sealed kits", title_justify="left")
    table.add_column("participant", overflow="fold")
    table.add_column("kind")
    table.add_column("password" if file else "password, shown once", no_wrap=True)
    for kit in made:
        opened_by = "(their age key)" if kit.password is None else "(in the file)" if file else kit.password
        table.add_row(escape(kit.name), kit.kind, escape(opened_by))
    show_table(table, console)
    console.print(f"The files: {made[0].file.parent}{os.sep}PARTICIPANT{KIT_SUFFIX}", markup=False)
    console.print("Send each kit, and by another way its password. They open it with: oncofed site open FILE")
