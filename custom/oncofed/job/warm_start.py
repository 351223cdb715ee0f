"""Weights of another model from which a job starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.models.adapters import for_network
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
        SpecError: it is none of these, cannot be read, or fewer than half of the network's tensors fit.
    """
    own = spec.plan().initial_weights()
    stored = for_network(_stored(source), own)
    fitting = fitting_weights(stored, own, source)
    weights = {name: fitting.get(name, value).to(value.dtype) for name, value in own.items()}
    return WarmStart(weights, sorted(own.keys() - fitting.keys()), sorted(stored.keys() - fitting.keys()))


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
