"""``oncofed job convert``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError


def convert(
    job: Annotated[str, typer.Argument(help="The job that starts from it: its name, its folder, or its job.yaml.")],
    checkpoint: Annotated[Path, typer.Argument(help="nnU-Net's fold_N/checkpoint_final.pth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write; it must not exist.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Convert a checkpoint of nnU-Net into weights from which a job starts (--model).

    The job needs the checkpoint's network: oncofed job plan JOB --from-nnunet nnUNetPlans.json writes it. No code in
    the checkpoint is run. Outputs for other classes than the job's start anew.
    """
    from safetensors.torch import save

    from oncofed.atomic import write_whole
    from oncofed.job.nnunet import axes_of
    from oncofed.job.spec import read_job
    from oncofed.models.nnunet import dynunet_weights, read_checkpoint
    from oncofed.models.weights import weights_of

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: expected a name that ends with .safetensors")
    if out.exists():
        raise SpecError(f"{out} exists. Name another file with --out.")
    spec = read_job(job)
    if spec.model.network != "dynunet" or not spec.model.arguments.get("trans_bias"):
        raise SpecError(
            f"{spec.name} trains a {spec.model.network}, expected nnU-Net's network. Write such a job with: oncofed "
            f"job plan {shlex.quote(job)} --from-nnunet nnUNetPlans.json --out NEW.yaml"
        )
    found = read_checkpoint(checkpoint)
    axes = axes_of((found.plans or {}).get("transpose_backward", (0, 1, 2)), spec.data.dimensions, checkpoint)
    weights, stayed = dynunet_weights(found, axes, weights_of(spec.plan().build_network()))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save({name: values.contiguous() for name, values in weights.items()}))
    if json:
        typer.echo(jsonlib.dumps({"written": str(out), "converted": len(weights) - len(stayed), "initial": stayed}))
        return
    console = plain_console()
    console.print(f"{len(weights) - len(stayed)} of {len(weights)} tensors converted: {out}", soft_wrap=True)
    if stayed:
        console.print(f"Outputs for other classes start anew: {', '.join(stayed)}.", soft_wrap=True)
    if found.plans is None:
        console.print("Note: the checkpoint holds no plans; its axes are taken as not transposed.", soft_wrap=True)
    run = shlex.join(["oncofed", "job", "run", job, "--model", str(out)])
    console.print(f"Start from it: {run} --site NAME=DATASET ...", soft_wrap=True, highlight=False)
