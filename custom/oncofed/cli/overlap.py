"""``oncofed data overlap``: patients that sites share, counted without naming them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from oncofed.cli.common import DEFAULT_WORKSPACE, Workspace, dataset_named, plain_console, show_table
from oncofed.errors import SpecError

app = typer.Typer(
    help="Count patients that sites share: who is in training at one and in test at another makes scores too good.",
    no_args_is_help=True,
)

Key = Annotated[
    Path, typer.Option(help="File with the key that the sites share; no server and no coordinator gets it.")
]


@app.command()
def key(out: Annotated[Path, typer.Argument(help="New file for the key.")]) -> None:
    """Make a key, to be handed from site to site, and to nobody else."""
    from oncofed.private_files import random_secret

    if out.exists():
        raise SpecError(f"{out}: is there already. Name a new file; who has the old key cannot compare with a new one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    random_secret(out)
    typer.echo(f"{out}: hand it to the other sites' data managers, encrypted or in person, and to nobody who compares.")


@app.command()
def write(
    dataset: Annotated[str, typer.Argument(help="A registered dataset's name, or its folder with dataset.json.")],
    key: Key,
    site: Annotated[
        Path,
        typer.Option(envvar="ONCOFED_SITE", help="The site's kit: its policy has to let it, and its log tells it."),
    ],
    out: Annotated[Path, typer.Option(help="File of fingerprints, to be handed to whoever compares.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Write fingerprints of a dataset's patients, for whoever compares and does not have the key.

    The policy's leaves.patient_overlap has to be true. With the key, fingerprints could be tested against names: never
    hand a file to somebody who has it.
    """
    from oncofed.data.grouping import counted
    from oncofed.site.overlap import write_fingerprints

    if not key.is_file():
        raise SpecError(f"{key}: no such file. Ask the other sites for it, or make one: oncofed data overlap key")
    count = write_fingerprints(site, site.resolve().name, dataset_named(dataset, workspace), key, out)
    typer.echo(
        f"{out}: fingerprints of {counted(count, 'patient')}. Hand it to whoever compares, who must not have the key."
    )


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="The sites' files of fingerprints.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how many patients sites share, by ID or by image; nothing of fewer than five."""
    from oncofed.data.overlap import read_site_patients, shared_patients

    shared = shared_patients([read_site_patients(path) for path in files])
    if json:
        values = [{"of": one, "also_at": other, "patients": count} for (one, other), count in shared.items()]
        typer.echo(jsonlib.dumps(values, indent=2))
        return
    table = Table()
    for heading in ("patients of", "also at", "how many"):
        table.add_column(heading)
    for (one, other), count in shared.items():
        table.add_row(one, other, "fewer than 5, or all but fewer than 5" if count is None else f"{count:,}")
    show_table(table, plain_console())
