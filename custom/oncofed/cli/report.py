"""``oncofed report``: facts about a run's model."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from oncofed.cli.common import escape, plain_console, show_table
from oncofed.cli.terminal import is_terminal
from oncofed.errors import SpecError

app = typer.Typer(help="A run's model: where it comes from.", no_args_is_help=True)


@app.command()
def verify(
    model: Annotated[
        Path, typer.Argument(help="A run's folder, or its model.safetensors with provenance.json near it.")
    ],
    kit: Annotated[Path, typer.Option("--kit", help="Your startup kit, which holds the alliance's certificate.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which sites, data, rounds and versions made a model, and whether the alliance's server signed it.

    Exit status 0 if it did, 3 if not.
    """
    from cryptography import x509

    from oncofed.alliance.facts import read_facts
    from oncofed.artifacts.provenance import problems_of, read_provenance

    weights, provenance = _files(model)
    root = kit / "startup" / "rootCA.pem"
    if not root.is_file():
        raise SpecError(f"{root} is missing: expected a startup kit of the alliance")
    signed = read_provenance(provenance)
    alliance = x509.load_pem_x509_certificate(root.read_bytes())
    problems = problems_of(signed, weights, alliance, read_facts(kit).server)
    if json:
        typer.echo(jsonlib.dumps({**signed["provenance"], "verified": not problems, "problems": problems}, indent=2))
    else:
        _show(signed["provenance"], problems)
    if problems:
        raise typer.Exit(3)


def _files(model: Path) -> tuple[Path, Path]:
    from oncofed.artifacts.provenance import PROVENANCE_FILE

    weights = model / "model" / "model.safetensors" if model.is_dir() else model
    places = [folder / PROVENANCE_FILE for folder in (weights.parent, weights.parent.parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SpecError(f"{weights}: no {PROVENANCE_FILE} beside it or in the folder above. Expected a fetched run")
    return weights, found


def _show(provenance: dict[str, object], problems: list[str]) -> None:
    console = plain_console()
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    for name, value in provenance.items():
        if name not in ("schema", "sites"):
            table.add_row(name, escape(str(value) if not isinstance(value, dict) else _joined(value)))
    show_table(table, console)
    sites = provenance.get("sites")
    if isinstance(sites, dict) and sites:
        longest = 20 if is_terminal(console.file) else None  # of a digest
        columns = list(dict.fromkeys(key for facts in sites.values() for key in facts))
        table = Table("site", *columns, box=SIMPLE, pad_edge=False)
        for site, facts in sites.items():
            table.add_row(site, *(escape(str(facts.get(key, ""))[:longest]) for key in columns))
        show_table(table, console)
    for problem in problems:
        console.print(f"[red]not verified:[/] {escape(problem)}")
    if not problems:
        console.print("[green]verified:[/] the alliance's server signed it, and the weights are these")


def _joined(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
