"""``oncofed export``: a trained model for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from oncofed.cli.common import ended_by_signals, escape, plain_console
from oncofed.cli.terminal import echo_json


class Form(str, Enum):
    """Form of the exported model."""

    bundle = "bundle"
    onnx = "onnx"


def export(
    model: Annotated[Path, typer.Argument(help="A run's folder, a bundle, or a job's folder in a site's kit.")],
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            help="bundle: a MONAI bundle, which predicts with MONAI alone; onnx: the network alone, for ONNX Runtime.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for it, as DIR/bundle or DIR/onnx.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
) -> None:
    """Export a trained model, and check that it gives oncofed's output on an example kept with it.

    The example is noise and shows no patient. A model with another output is not written.
    """
    from json import dumps

    from oncofed.prediction.export.export import export as write
    from oncofed.prediction.model import load_model

    console = plain_console(stderr=json)
    with ended_by_signals():
        done = write(load_model(model), to.value, out, lambda activity: console.print(f"{escape(activity)} …"))
    if json:
        echo_json(dumps(done.as_json(), indent=2))
        return
    console.print(f"{escape(str(done.folder))}: {done.agreement}")
    console.print(f"weights {done.digest[:12]}…; for research only")
