"""``oncofed job convert``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.job.spec import JobSpec
    from oncofed.models.nnunet import NnunetCheckpoint


def convert(
    job: Annotated[str, typer.Argument(help="The job that starts from it: its name, its folder, or its job.yaml.")],
    checkpoint: Annotated[Path, typer.Argument(help="nnU-Net's fold_N/checkpoint_final.pth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write; it must not exist.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Convert a checkpoint of nnU-Net into weights from which a job starts (--model).

    The job needs the checkpoint's network: oncofed job plan JOB --from-nnunet nnUNetPlans.json writes it. No code in
    the checkpoint is run. Outputs are matched by the names of classes; those for others start anew.
    """
    from safetensors.torch import save

    from oncofed.atomic import write_whole
    from oncofed.job.nnunet import axes_of
    from oncofed.job.spec import read_job
    from oncofed.models.nnunet import dynunet_weights, outputs_of, read_checkpoint
    from oncofed.models.weights import weights_of

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: expected a name that ends with .safetensors")
    if out.exists():
        raise SpecError(f"{out} exists. Name another file with --out.")
    spec = read_job(job)
    norm_is_other = spec.model.norm not in {None, "instance"}
    if spec.model.network != "dynunet" or not spec.model.arguments.get("trans_bias") or norm_is_other:
        raise SpecError(
            f"{spec.name} trains another {spec.model.network}, expected nnU-Net's. Write such a job with: "
            f"oncofed job plan {shlex.quote(job)} --from-nnunet nnUNetPlans.json --out NEW.yaml"
        )
    found = read_checkpoint(checkpoint)
    axes = axes_of((found.plans or {}).get("transpose_backward", (0, 1, 2)), spec.data.dimensions, checkpoint)
    classes = getattr(spec.task, "classes", {})
    weights, stayed = dynunet_weights(found, axes, outputs_of(found, classes), weights_of(spec.plan().build_network()))
    notes = _notes(found, spec, checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save({name: values.contiguous() for name, values in weights.items()}))
    if json:
        typer.echo(
            jsonlib.dumps(
                {"written": str(out), "converted": len(weights) - len(stayed), "initial": stayed, "notes": notes}
            )
        )
        return
    console = plain_console()
    console.print(f"{len(weights) - len(stayed)} of {len(weights)} tensors converted: {out}", soft_wrap=True)
    if stayed:
        known = ", ".join(found.labels) or "none named"
        console.print(f"Outputs start anew: the checkpoint's classes are {known}.", soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}.", soft_wrap=True)
    run = shlex.join(["oncofed", "job", "run", job, "--model", str(out)])
    console.print(f"Start from it: {run} --site NAME=DATASET ...", soft_wrap=True, highlight=False)


def _notes(found: NnunetCheckpoint, spec: JobSpec, path: Path) -> list[str]:
    """Return in what the job's images differ from those that the checkpoint was trained on."""
    from oncofed.job.nnunet import nnunet_plan

    if found.plans is None:
        return ["the checkpoint holds no plans: its axes are taken as not transposed, its images as the job's"]
    plan = nnunet_plan(found.plans, found.configuration or "3d_fullres", path)
    trained, own = plan.settings["data"], spec.data.model_dump(mode="json")
    different = [
        f"trained with {name} {trained[name]}, the job has {own[name]}: data.{name}"
        for name in ("spacing", "modality", "window")
        if name in trained and trained[name] != own[name]
    ]
    return [*different, *plan.remarks]
