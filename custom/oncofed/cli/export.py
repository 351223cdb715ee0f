"""``oncofed export``: a trained model for others' programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from oncofed.cli.common import ended_by_signals, escape, plain_console
from oncofed.cli.terminal import echo_json


class Form(str, Enum):
    """What a model is exported as."""

    bundle = "bundle"
    onnx = "onnx"


def export(
    model: Annotated[Path, typer.Argument(help="A run's folder, a bundle, or a folder of what a site keeps of a job.")],
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            help="bundle: a MONAI bundle, which predicts with MONAI alone; onnx: the network alone, for ONNX Runtime.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder in which it comes, as DIR/bundle or DIR/onnx.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
) -> None:
    """Hand a trained model on, checked to answer as oncofed does on an example that is kept beside it.

    The example is noise and shows nobody. What answers otherwise is not written.
    """
    from json import dumps

    from oncofed.prediction.export.export import export as write
    from oncofed.prediction.model import load_model

    console = plain_console(stderr=json)
    with ended_by_signals():
        done = write(load_model(model), to.value, out, lambda said: console.print(f"{escape(said)} …"))
    if json:
        echo_json(dumps(done.as_json(), indent=2))
        return
    console.print(f"{escape(str(done.folder))}: {done.agreement}")
    console.print(f"weights {done.digest[:12]}…; for research only")
