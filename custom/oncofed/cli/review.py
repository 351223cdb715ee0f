"""``oncofed site review | approve | reject | withdraw``."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from oncofed.cli.common import escape, plain_console, show_table, show_text

Folder = Annotated[Path, typer.Option("--folder", envvar="ONCOFED_SITE", help="The kit's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Digest = Annotated[str, typer.Argument(help="The pack's digest, or the beginning of it.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Why, for the audit log: a sentence that an auditor understands.")
]


def review(
    digest: Annotated[
        str | None, typer.Argument(help="The pack's digest, or the beginning of it; or a pack's file. None: list all.")
    ] = None,
    folder: Folder = Path(),
    json: Json = False,
) -> None:
    """Show code to decide about: files, imports, changes since the last approved version, findings."""
    from oncofed.site import packs

    if digest is None:
        _list(folder, json)
        return
    if Path(digest).is_file():
        digest = packs.import_pack(folder, Path(digest)).digest
    found = packs.review(folder, digest)
    pack = found.pack
    if json:
        typer.echo(
            jsonlib.dumps(
                {
                    "digest": pack.digest,
                    "name": pack.name,
                    "by": found.by,
                    "signature": found.problems or "holds",
                    "state": found.decision.state if found.decision else "waits",
                    "files": {path: len(content) for path, content in pack.files.items()},
                    "imports": found.imports,
                    "findings": [vars(finding) for finding in found.findings],
                    "before": found.before.digest if found.before else None,
                    "changes": found.changes,
                },
                indent=2,
            )
        )
        return
    console = plain_console()
    console.print(f"{pack.name} {pack.digest}", markup=False)
    console.print(f"signed by {found.by}: {'; '.join(found.problems) or 'the signature holds'}", markup=False)
    state = f"{found.decision.state} by {found.decision.by}: {found.decision.reason}" if found.decision else "waits"
    console.print(f"{state}\nimports {', '.join(found.imports) or 'nothing'}\n", markup=False)
    since = (
        f"since {found.before.digest[:12]}, approved before" if found.before else "all of it: none was approved before"
    )
    console.print(f"Changes, {since}:", markup=False)
    show_text(found.changes, "diff", console)
    table = Table(box=SIMPLE, pad_edge=False, title="Look at these first", title_justify="left")
    for heading in ("file", "line", "about", "text"):
        table.add_column(heading, overflow="fold")
    for finding in found.findings:
        table.add_row(*map(escape, (finding.file, str(finding.line), finding.what, finding.text)))
    if found.findings:
        show_table(table, console)
    else:
        console.print("The static check found nothing to look at first; it proves nothing.")
    console.print(f"Then: oncofed site approve {pack.digest[:12]} --reason … (or reject)", markup=False)


def approve(digest: Digest, reason: Reason, folder: Folder = Path()) -> None:
    """Let exactly this code run here in future jobs, without network, on the job's data only."""
    _decide(folder, digest, "approved", reason)


def reject(digest: Digest, reason: Reason, folder: Folder = Path()) -> None:
    """Refuse this code permanently; the engineer sees that it was rejected, not why."""
    _decide(folder, digest, "rejected", reason)


def withdraw(digest: Digest, reason: Reason, folder: Folder = Path()) -> None:
    """Withdraw an approval, for future jobs."""
    _decide(folder, digest, "withdrawn", reason)


def _decide(folder: Path, digest: str, state: str, reason: str) -> None:
    from oncofed.site.packs import decide

    pack = decide(folder, digest, state, reason)  # type: ignore[arg-type]  # one of the three above
    plain_console().print(f"{pack.name} {pack.digest} is {state}", markup=False)


def _list(folder: Path, json: bool) -> None:
    from oncofed.packs.approvals import made_by
    from oncofed.site.packs import list_packs

    found = list_packs(folder)
    if json:
        rows = [
            {"digest": p.digest, "name": p.name, "by": made_by(p), "state": d.state if d else "waits"} for p, d in found
        ]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("digest", "name", "signed by", "state", "reason"):
        table.add_column(heading, overflow="fold")
    for pack, decision in found:
        cells = (pack.digest[:12], pack.name, made_by(pack), decision.state if decision else "waits")
        table.add_row(*map(escape, (*cells, decision.reason if decision else "")))
    if found:
        show_table(table)
    else:
        typer.echo("no code was brought here")
