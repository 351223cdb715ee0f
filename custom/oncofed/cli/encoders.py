"""``oncofed data encoders``: encoders of tiles, and the weights that a site has."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from oncofed.cli.common import DEFAULT_WORKSPACE, Workspace, keep_caches_in, plain_console, show_table

if TYPE_CHECKING:
    from oncofed.models.encoders import Checked, EncoderEntry, LoadedEncoder

app = typer.Typer(help="Encoders of slides' tiles: which there are, and which weights are at hand here.")

Name = Annotated[str, typer.Argument(help="Of the encoder, as oncofed data encoders lists it.")]
File = Annotated[
    Path, typer.Argument(help="The maker's weights: .safetensors, or .bin, .pt, .pth read as tensors alone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SHORT = 12


@app.callback(invoke_without_command=True)
def listed(context: typer.Context, json: Json = False) -> None:
    """List the encoders: licence, where to get the weights, and what is at hand."""
    if context.invoked_subcommand:
        return
    from oncofed.models.encoders import catalogue, encoders_folder, kept_digest

    rows = [_values(entry, kept_digest(entry)) for entry in catalogue().values()]
    if json:
        typer.echo(jsonlib.dumps({"folder": str(encoders_folder()), "encoders": rows}, indent=2))
        return
    table = Table()
    for heading in ("name", "features", "tiles", "at hand", "licence", "weights"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cut = f"{row['tile']} px, {row['mpp']:g} µm" if row["tile"] else "any"
        at_hand = row["at_hand"][:_SHORT] if row["at_hand"] else ("needs none" if not row["source"] else "-")
        request = ", on request" if row["gated"] else ""
        table.add_row(row["name"], str(row["features"]), cut, at_hand, row["licence"], f"{row['source']}{request}")
    show_table(table)
    console = plain_console()
    console.print(f"At hand: digests of weights in {encoders_folder()}", markup=False)
    console.print("Next:    oncofed data encoders add NAME FILE", markup=False)


@app.command()
def check(name: Name, file: File, json: Json = False, workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Load weights, encode a known tile, and compare digest and features with the catalogue's.

    Where the catalogue has no reference, sites compare what is printed with each other. Exit status 3: the features are
    not those of this encoder.
    """
    keep_caches_in(workspace)
    entry, loaded, found = _checked(name, file)
    if json:
        values = {"name": entry.name, "digest": found.digest, "features": found.features, "same": found.same}
        typer.echo(jsonlib.dumps({**values, "verdict": found.verdict, "notes": loaded.notes}, indent=2))
    else:
        _show(entry, loaded, found)
    if found.same is False:
        raise typer.Exit(3)


@app.command()
def add(name: Name, file: File, json: Json = False, workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Check weights as check does, and keep them here as safetensors, for the jobs that name this encoder.

    Exit status 3: the features are not those of this encoder, and nothing is kept.
    """
    keep_caches_in(workspace)
    from oncofed.models.encoders import keep_weights

    entry, loaded, found = _checked(name, file)
    path = keep_weights(entry, loaded) if found.same is not False else None
    if json:
        values = {"name": entry.name, "digest": found.digest, "file": str(path) if path else None}
        typer.echo(jsonlib.dumps({**values, "verdict": found.verdict}, indent=2))
    else:
        _show(entry, loaded, found)
        console = plain_console()
        if path:
            console.print(f"Kept:     {path}", markup=False)
            console.print(f"In a job: encoder: {{network: {entry.name}, digest: {found.digest}}}", markup=False)
    if path is None:
        raise typer.Exit(3)


def _checked(name: str, file: Path) -> tuple[EncoderEntry, LoadedEncoder, Checked]:
    from oncofed.errors import SpecError
    from oncofed.models.encoders import check_encoder, find_entry, load_encoder

    entry = find_entry(name)
    if not entry.has_weights:
        raise SpecError(f"{name} has no weights: nothing to check or to keep")
    loaded = load_encoder(entry, file.expanduser(), may_be_pickle=True)
    return entry, loaded, check_encoder(entry, loaded)


def _show(entry: EncoderEntry, loaded: LoadedEncoder, found: Checked) -> None:
    console = plain_console()
    millions = sum(value.numel() for value in loaded.weights.values()) / 1e6
    console.print(f"{entry.name}: {entry.title}; {millions:,.1f} million weights", markup=False)
    for note in loaded.notes:
        console.print(f"file:     {note}", markup=False)
    console.print(f"digest:   {found.digest}", markup=False)
    console.print(f"features: {', '.join(f'{value:.4f}' for value in found.features)} … of a known tile", markup=False)
    console.print(f"verdict:  {found.verdict}", markup=False)


def _values(entry: EncoderEntry, digest: str | None) -> dict[str, Any]:
    shown = ("name", "title", "features", "pixels", "tile", "mpp", "licence", "source", "gated", "digest")
    return {**{field: getattr(entry, field) for field in shown}, "at_hand": digest}
