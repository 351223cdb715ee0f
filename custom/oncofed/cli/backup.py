"""``oncofed alliance|site backup`` and ``restore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from oncofed.cli.common import ended_by_signals
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.alliance.backup import BackedUp

Recipients = Annotated[
    list[str] | None,
    typer.Option("--recipient", help="age recipient (age1...) who can open it; give it once for each."),
]
NewKey = Annotated[
    Path | None,
    typer.Option("--new-key", help="Write a new age key to this file and encrypt for it. Keep it on another machine."),
]
Identity = Annotated[Path, typer.Option("--identity", help="File with the age key (AGE-SECRET-KEY-...) that opens it.")]
Out = Annotated[Path, typer.Argument(help="The file to write, such as 2027-01-31.backup.age.")]
File = Annotated[Path, typer.Argument(help="The backup.")]


def write_backup(folder: Path, out: Path, recipients: list[str] | None, new_key: Path | None) -> None:
    """Back up a folder, and print what was written.

    Raises:
        AllianceError: see ``back_up``.
    """
    from oncofed.alliance import backup

    if new_key and new_key.resolve().is_relative_to(folder.resolve()):
        raise SpecError(f"--new-key {new_key} lies in what is backed up: keep it elsewhere, best on another machine")
    keys = [*(recipients or []), *([backup.new_key(new_key)] if new_key else [])]
    try:
        with ended_by_signals():
            made = backup.back_up(folder.resolve(), out, keys)
    except BaseException:
        if new_key:  # it opens nothing, and another try makes it anew
            new_key.unlink(missing_ok=True)
        raise
    typer.echo(f"{out}: {_shown(made)}, {decimal(out.stat().st_size)} encrypted")
    if new_key:
        typer.echo(
            f"{new_key} opens it. Without this key nobody does: keep it on another machine.\nRecipient: {keys[-1]}"
        )


def put_back(file: Path, folder: Path, identity: Path) -> BackedUp:
    """Restore a backup, and print what was put back.

    Raises:
        AllianceError: see ``restore``.
    """
    from oncofed.alliance import backup

    with ended_by_signals():
        made = backup.restore(file, folder, identity)
    typer.echo(f"{folder}: {_shown(made)}, as it was on {made.made.replace('T', ' at ')}")
    return made


def _shown(made: BackedUp) -> str:
    what = "the alliance's folder" if made.kind == "alliance" else f"the {made.kind} {made.participant}"
    return f"{what}, {made.files} files, {decimal(made.bytes)}"
