"""Exports a network as ONNX, without pre- and post-processing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from oncofed.errors import SpecError, TrainingError
from oncofed.models.bundle.answer import targets_of
from oncofed.models.bundle.metadata import metadata
from oncofed.prediction.model import TrainedModel
from oncofed.tasks.bundled import answer_of

ONNX_NAME = "onnx"
MODEL_FILE, EXAMPLE_FILE, DESCRIPTION_FILE = "model.onnx", "example.safetensors", "model.json"
# Relative to the largest output: ONNX Runtime's kernels sum in another order.
TOLERANCE = 1e-4
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Limit of a protocol buffer, which an ONNX file is.
_LARGEST = 1 << 31
_LOGITS = "logits: neither temperature nor softmax nor anything after them is part of this file"
_OF_TARGETS = (
    "the outputs of all targets side by side: the steps that make each target's numbers of its outputs (targets, from "
    "the first of outputs up to the one before the last) are not part of this file"
)
_BATCHES, _TILES = 1 << 16, 1 << 20


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        SpecError: they are.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(f"ONNX needs {' and '.join(missing)}: pip install 'oncofed[onnx]'")


def write_onnx(model: TrainedModel, folder: Path, progress: Callable[[str], None]) -> str:
    """Write ``model.onnx``, an example and a description.

    Returns in words how well the outputs agree.

    Args:
        model: model to export.
        folder: existing folder.
        progress: called with the next step.

    Raises:
        SpecError: the network cannot be exported.
        TrainingError: ONNX Runtime and PyTorch disagree.
    """
    task, data = model.task, model.job.data
    network = model.network(torch.device("cpu"))
    if sum(value.nbytes for value in model.weights.values()) >= _LARGEST:
        raise SpecError("the weights are 2 GiB or more, which no file of ONNX holds. Export a bundle")
    bag = task.network_kind == "bag"
    shape = (2, 12, task.in_channels) if bag else (2, task.in_channels, *data.patch)
    inputs = {"bags" if bag else "image": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    if bag:
        inputs["there"] = torch.ones(shape[:2], dtype=torch.bool)
    progress("tracing the network")
    instead = "Hand on the run's folder" if model.job.plan().bundle_lacks else "Export a bundle"
    _trace(network, inputs, folder / MODEL_FILE, bag, instead)
    progress("answering for the example with ONNX Runtime")
    with torch.no_grad():
        output = network(*inputs.values()).numpy()
    apart = _apart(network, inputs, folder / MODEL_FILE)
    limit = TOLERANCE * max(1.0, float(np.abs(output).max()))
    if not apart <= limit:
        raise TrainingError(
            f"ONNX Runtime's output differs by {apart:.2g} on the example, expected {limit:.2g} or less"
        )
    save_file({**{name: value.numpy() for name, value in inputs.items()}, "pred": output}, folder / EXAMPLE_FILE)
    _describe(model, folder, shape)
    return f"outputs on the example differ by {apart:.1e} at most, for one and for two at a time"


def _trace(network: nn.Module, inputs: dict[str, Tensor], path: Path, bag: bool, instead: str) -> None:
    sides: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_BATCHES)}
    if bag:
        sides[1] = torch.export.Dim("tiles", min=1, max=_TILES)
    try:
        with _quietly():
            torch.onnx.export(
                network,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=["pred"],
                dynamo=True,
                dynamic_shapes=tuple(sides for _ in inputs),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # noqa: BLE001 - the exporter raises many types for missing operators
        raise SpecError(
            f"the network cannot be exported to ONNX: PyTorch's exporter has no form for a part of "
            f"{network.__class__.__name__} ({str(error).strip().splitlines()[0][:120]}). {instead}"
        ) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's progress output."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _apart(network: nn.Module, inputs: dict[str, Tensor], path: Path) -> float:
    """Return the largest output difference between ONNX Runtime and PyTorch.

    For both samples of the example, and for one alone.
    """
    import onnxruntime  # noqa: PLC0415 - an extra, for this alone

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for samples in (inputs, {name: value[:1] for name, value in inputs.items()}):
        with torch.no_grad():
            expected = network(*samples.values()).numpy()
        given = session.run(None, {name: value.numpy() for name, value in samples.items()})[0]
        found.append(float(np.abs(given - expected).max()) if given.shape == expected.shape else float("inf"))
    return max(found)


def _describe(model: TrainedModel, folder: Path, shape: tuple[int, ...]) -> None:
    job, plan = model.job, model.job.plan()
    answer = answer_of(job.task, job.data)
    described = metadata(job.title, plan.network_request, job.data, model.task.classes, answer, [])
    targets = targets_of(answer)
    kept = ("task", "description", "intended_use", "network_data_format", "targets", "encoder", "tiling")
    form = {
        **{name: described[name] for name in kept if name in described},
        "weights": model.digest,
        "example": {"file": EXAMPLE_FILE, "shape": list(shape)},
        "preprocessing": "not part of this file: as configs/inference.json of the model's bundle does it",
        "output": _OF_TARGETS if targets else _LOGITS,
    }
    if model.temperature is not None:
        form["temperature"] = model.temperature  # not applied to the logits yet
    (folder / DESCRIPTION_FILE).write_text(json.dumps(form, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
