"""``oncofed job convert``."""

from __future__ import annotations

import json as jsonlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.job.spec import JobSpec
    from oncofed.models.nnunet import NnunetCheckpoint
    from oncofed.models.weights import Weights

# Tensors that a line names, of many.
_MOST_NAMED = 6


def convert(
    job: Annotated[str, typer.Argument(help="The job that starts from it: its name, its folder, or its job.yaml.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="nnU-Net's fold_N/checkpoint_final.pth, a run's folder, a MONAI bundle's, or a file of weights."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write; it must not exist.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Convert another model into weights from which a job starts (--model).

    Tensors of a run, a MONAI bundle and a .safetensors file are taken where name and shape are the job's network's; the
    others start from the job's seed. Of nnU-Net the job needs the checkpoint's network: oncofed job plan JOB
    --from-nnunet nnUNetPlans.json writes it; outputs are matched by the names of classes. No code of a checkpoint or a
    bundle is run.
    """
    from safetensors.torch import save

    from oncofed.atomic import write_whole
    from oncofed.job.spec import read_job

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: expected a name that ends with .safetensors")
    if out.exists():
        raise SpecError(f"{out} exists. Name another file with --out.")
    spec = read_job(job)
    found = (
        _of_model(spec, source) if source.is_dir() or source.suffix == ".safetensors" else _of_nnunet(spec, source, job)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save({name: values.contiguous() for name, values in found.weights.items()}))
    taken = len(found.weights) - len(found.stayed)
    if json:
        values = {"converted": taken, "initial": found.stayed, "unused": found.unused, "notes": found.notes}
        typer.echo(jsonlib.dumps({"written": str(out), **values}))
        return
    console = plain_console()
    console.print(f"{taken} of {len(found.weights)} tensors converted: {out}", soft_wrap=True)
    for line in found.lines:
        console.print(line, soft_wrap=True)
    for note in found.notes:
        console.print(f"Note: {note}.", soft_wrap=True)
    run = shlex.join(["oncofed", "job", "run", job, "--model", str(out)])
    console.print(f"Start from it: {run} --site NAME=DATASET ...", soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class _Converted:
    """Weights for a job.

    Attributes:
        weights: all of its network's.
        stayed: names of those that start anew.
        unused: names of those that the network does not have.
        lines: what a person should know of both.
        notes: in what the images differ.
    """

    weights: Weights
    stayed: list[str]
    unused: list[str]
    lines: list[str]
    notes: list[str]


def _of_model(spec: JobSpec, source: Path) -> _Converted:
    """Return the weights of a run, a bundle or a file."""
    from oncofed.job.warm_start import warm_start

    found = warm_start(source, spec)
    lines = [f"Start from the job's seed: {_named(found.stayed)}."] if found.stayed else []
    lines += [f"Not the job's network's: {_named(found.unused)}."] if found.unused else []
    return _Converted(found.weights, found.stayed, found.unused, lines, [])


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _of_nnunet(spec: JobSpec, path: Path, job: str) -> _Converted:
    """Return the weights of a checkpoint of nnU-Net."""
    from oncofed.job.nnunet import axes_of
    from oncofed.models.nnunet import converted_weights, outputs_of, read_checkpoint
    from oncofed.models.weights import weights_of

    norm_is_other = spec.model.norm not in {None, "instance"}
    plain = spec.model.network == "dynunet" and spec.model.arguments.get("trans_bias")
    if norm_is_other or not (plain or spec.model.network == "residual_unet"):
        raise SpecError(
            f"{spec.name} trains another {spec.model.network}, expected nnU-Net's. Write such a job with: "
            f"oncofed job plan {shlex.quote(job)} --from-nnunet nnUNetPlans.json --out NEW.yaml"
        )
    found = read_checkpoint(path)
    axes = axes_of((found.plans or {}).get("transpose_backward", (0, 1, 2)), spec.data.dimensions, path)
    classes = getattr(spec.task, "classes", {})
    weights, stayed = converted_weights(
        found, axes, outputs_of(found, classes), weights_of(spec.plan().build_network())
    )
    known = ", ".join(found.labels) or "none named"
    lines = [f"Outputs start anew: the checkpoint's classes are {known}."] if stayed else []
    return _Converted(weights, stayed, [], lines, _notes(found, spec, path))


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
