"""Weights of another model from which a job starts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.models.adapters import for_network, is_adapter
from oncofed.models.foreign import bundle_weights, fitting_weights
from oncofed.models.weights import Weights

RUN_MODEL = Path("model") / "model.safetensors"


@dataclass(frozen=True)
class WarmStart:
    """Weights of a job's network, most of them another model's.

    Attributes:
        weights: all of the network's, by name.
        stayed: names of those that the job's seed gives, since the other model has none of their name and shape.
        unused: names of the other model's that the network does not have so.
    """

    weights: Weights
    stayed: list[str]
    unused: list[str]


def warm_start(source: Path, spec: JobSpec) -> WarmStart:
    """Return a job's initial weights, taken from another model by name and shape.

    Args:
        source: a file of weights (safetensors), a run's folder, or that of a MONAI bundle.
        spec: the job that starts from it.

    Raises:
        SpecError: it is none of these, cannot be read, or fewer than half of the network's tensors fit; or weights that
            adapters fix are among those that it lacks.
    """
    own = spec.plan().initial_weights()
    stored = for_network(_stored(source), own)
    fitting = fitting_weights(stored, own, source)
    weights = {name: fitting.get(name, value).to(value.dtype) for name, value in own.items()}
    if random := _fixed_at_random(spec, own.keys() - fitting.keys()):
        trained = [name for name in spec.plan().layout().trained if not is_adapter(name)]
        patterns = sorted({f"{name.partition('.')[0]}.*" for name in (*random, *trained)})
        raise SpecError(
            f"{source} has nothing for {len(random)} weights ({', '.join(random[:3])}{', …' if random[3:] else ''}), "
            "which model.adapter would fix at random values; expected them in the model, or trained: "
            f"training: {{trainable: {json.dumps(patterns)}}} trains them beside the adapters"
        )
    return WarmStart(weights, sorted(own.keys() - fitting.keys()), sorted(stored.keys() - fitting.keys()))


def require_start(spec: JobSpec, model: Path | None) -> None:
    """Refuse adapters on weights that no model gave.

    Args:
        spec: of the job.
        model: its initial weights; None: drawn from the seed.

    Raises:
        SpecError: adapters would be trained on weights that are random, and stay so.
    """
    random = [] if model else _fixed_at_random(spec, spec.plan().layout().weights if spec.model.adapter else ())
    if random:
        raise SpecError(
            f"model.adapter fixes {len(random)} weights of {spec.model.network} ({', '.join(random[:3])}, …), and "
            "without a model to start from they are random: expected --model FILE. oncofed job convert JOB OTHER --out "
            "FILE makes it of a run, a bundle or a file of weights; to train from scratch, leave model.adapter out"
        )


def _fixed_at_random(spec: JobSpec, names: Iterable[str]) -> list[str]:
    """Return which of the named weights adapters fix at random values, in the network's order.

    Constants, such as positions of sines or a bias of zero, are the same with every seed.
    """
    layout, missing = spec.plan().layout(), set(names) if spec.model.adapter else set()
    fixed = [
        name
        for name, value in layout.weights.items()
        if name in missing and value.is_floating_point() and name not in layout.trained
    ]
    if not fixed:
        return []
    one, other = (spec.plan().model_copy(update={"seed": seed}).initial_weights() for seed in (0, 1))
    return [name for name in fixed if not torch.equal(one[name], other[name])]


def _stored(source: Path) -> Weights:
    if source.is_dir() and not (source / RUN_MODEL).is_file():
        found = bundle_weights(source)
        if found is None:
            raise SpecError(
                f"{source}: found neither {RUN_MODEL}, as a run's folder has it, nor models/model.pt of a MONAI bundle"
            )
        return found
    path = source / RUN_MODEL if source.is_dir() else source
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{path}: no weights as safetensors ({type(error).__name__})") from None
