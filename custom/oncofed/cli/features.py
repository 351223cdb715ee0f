"""``oncofed data features``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    typed_workspace,
)
from oncofed.errors import DataError, SpecError

if TYPE_CHECKING:
    from oncofed.tasks.encoder import EncoderSpec
    from oncofed.tasks.extraction.dataset import Extracted

_MOST_SHOWN = 20


def features(
    dataset: Annotated[str, typer.Argument(help="A registered dataset of slides: its name, or its folder.")],
    encoder: Annotated[
        str, typer.Option(help="Network that makes a tile's features: a name that oncofed data encoders lists.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="File of its weights (safetensors); by default what the site has at hand.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda (all GPUs), or some: cuda:0,cuda:1. By default the GPUs, else the CPU."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for one HDF5 file a slide; by default features/ENCODER of the dataset.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="On a CPU: processes that share its cores; on GPUs there is one a GPU.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Compute the features of all slides of a dataset, once: one HDF5 file a slide, as TRIDENT writes it.

    Started again after it was stopped or killed, it goes on where it was, also within a slide. Slides that cannot be
    read are set aside with their reason, and tried again the next time. features.json in the folder lists what was
    done; training on this dataset with the same encoder reads it instead of the slides.

    Exit status: 0 all done, 3 slides were set aside.
    """
    keep_caches_in(workspace)
    from oncofed.data.features.kept import FEATURES_FOLDER
    from oncofed.tasks.extraction import ExtractionRequest, extract_dataset

    folder = dataset_named(dataset, workspace)
    spec = _spec(encoder, weights)
    target = out or folder / FEATURES_FOLDER / spec.network
    request = ExtractionRequest(folder, spec, target, device, workers)
    with ended_by_signals(), progress_bars(progress_console(json), shows_rate=True) as advance:
        found = extract_dataset(request, advance)
    _show(found, target, json)
    if not json:
        plain_console().print(f"Next:     {_following(dataset, out)}", markup=False, soft_wrap=True)
    aside = found.kept.set_aside
    if aside:
        raise DataError(f"{len(aside)} of {len(aside) + len(found.kept.slides)} slides have no features; see above")


def _spec(encoder: str, weights: Path | None) -> EncoderSpec:
    from pydantic import ValidationError

    from oncofed.models.encoders import find_entry
    from oncofed.tasks.encoder import EncoderSpec

    name = find_entry(encoder).name
    try:
        return EncoderSpec.model_validate({"network": name, "weights": str(weights.absolute()) if weights else None})
    except ValidationError as error:
        raise SpecError(f"--encoder {encoder}: {error.errors()[0]['msg']}") from None


def _following(dataset: str, out: Path | None) -> str:
    """Return the command that takes the features further."""
    if out is None:
        return shlex.join(["oncofed", "data", "check", "JOB", dataset, *typed_workspace()])
    from oncofed.data.features.kept import TABLE_FILE
    from oncofed.tasks.extraction.table import TARGETS_FILE

    targets = ["--targets", out / TARGETS_FILE] if (out / TARGETS_FILE).exists() else []
    words = ["oncofed", "data", "register", out, "--features", "--labels", out / TABLE_FILE, *targets]
    return shlex.join([*map(str, words), *typed_workspace()])


def _show(found: Extracted, target: Path, json: bool) -> None:
    from oncofed.models.encoders import unusual_tiles

    kept = found.kept
    notes = unusual_tiles(kept.encoder, [(slide.tile, slide.mpp) for slide in kept.slides.values()])
    if json:
        values = {
            "folder": str(target),
            "slides_done": found.slides,
            "tiles_done": found.tiles,
            "seconds": found.seconds,
            "tiles_per_second": found.tiles / found.seconds if found.tiles else None,
            "processes": found.processes,
            "notes": notes,
        }
        typer.echo(jsonlib.dumps({**values, **kept.model_dump(mode="json", by_alias=True)}, indent=2))
        return
    console = plain_console()
    rate = f", {found.tiles / found.seconds:.3g} tiles a second" if found.tiles else ""
    tiles = sum(slide.tiles for slide in kept.slides.values())
    console.print(
        f"{target}: {len(kept.slides)} slides, {tiles:,} tiles, {kept.size} numbers a tile by {kept.encoder}",
        soft_wrap=True,
    )
    console.print(f"of these done now: {found.slides} slides, {found.tiles:,} tiles{rate}")
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for name, reason in list(kept.set_aside.items())[:_MOST_SHOWN]:
        console.print(f"[yellow]set aside[/] {escape(name)}: {escape(reason)}", soft_wrap=True)
    if len(kept.set_aside) > _MOST_SHOWN:
        console.print(f"… and {len(kept.set_aside) - _MOST_SHOWN} more; features.json lists them all")
