"""What travels between server and sites: tensors by name, and a few approved numbers.

FLARE moves tensors as safetensors, never as pickles.
"""

from __future__ import annotations

from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.training import Evaluation

Weights = dict[str, Tensor]

TASK_PREPARE = "prepare"
TASK_TRAIN = "train"
TASK_VALIDATE = "validate"
TASK_SUBMIT_MODEL = "submit_model"

PROGRESS_EVENT = "oncofed.progress"

_REASON = "oncofed.reason"
_NUMBERS = "oncofed.numbers"
_SPLIT = "oncofed.split"
_ROUND = "oncofed.round"


def register_tensors() -> None:
    """Teach FLARE's serializer to move tensors. Both ends call it before the first message."""
    fobs.register(TensorDecomposer)


def weights_message(weights: Weights, round_number: int, split: str = "validation") -> Shareable:
    """Return the server's message to a site: the global model, the round, and which cases to score it on."""
    message = DXO(DataKind.WEIGHTS, data=dict(weights)).to_shareable()
    message.set_header(_ROUND, round_number)
    message.set_header(_SPLIT, split)
    return message


def plain_message() -> Shareable:
    """Return a server's message without weights."""
    return DXO(DataKind.METRICS, data={}).to_shareable()


def read_weights_message(message: Shareable) -> tuple[Weights, int, str]:
    """Return (weights, round, split) of a server's message."""
    weights = from_shareable(message).data
    return weights, int(message.get_header(_ROUND, 0)), str(message.get_header(_SPLIT, "validation"))


def update_message(weights: Weights, cases: int, numbers: dict[str, Any]) -> Shareable:
    """Return a site's message to the server: its weights, how many cases stand behind them, and approved numbers."""
    update = DXO(DataKind.WEIGHTS, data=dict(weights))
    update.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, cases)
    update.set_meta_prop(_NUMBERS, numbers)
    return update.to_shareable()


def read_update_message(message: Shareable) -> tuple[Weights, int, dict[str, Any]]:
    """Return (weights, cases, numbers) of a site's message."""
    update = from_shareable(message)
    cases = int(update.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 0))
    return update.data, cases, dict(update.get_meta_prop(_NUMBERS, {}))


def numbers_message(numbers: dict[str, Any]) -> Shareable:
    """Return a site's message that holds approved numbers only."""
    return DXO(DataKind.METRICS, data=numbers).to_shareable()


def read_numbers_message(message: Shareable) -> dict[str, Any]:
    """Return the numbers of a site's message."""
    return dict(from_shareable(message).data)


def refusal(reason: str) -> Shareable:
    """Return a site's answer that it could not do its task, with a reason that may leave the site."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(_REASON, reason)
    return reply


def refusal_reason(message: Shareable) -> str | None:
    """Return why a site could not do its task, or None where it did."""
    code = message.get_return_code()
    if code == ReturnCode.OK:
        return None
    return str(message.get_header(_REASON) or f"FLARE reports {code}; the site's own log says more")


def evaluation_numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Return what may leave a site of an evaluation: means, their interval, and the number of cases."""
    return {
        "mean": evaluation.mean,
        "by_class": dict(evaluation.by_class),
        "more": dict(evaluation.more),
        "interval": list(evaluation.interval) if evaluation.interval else None,
        "cases": evaluation.cases,
    }


def check_update(site: str, update: Weights, expected: Weights) -> None:
    """Refuse an update that is not the expected model with finite values.

    Raises:
        FederationError: names, shapes or types differ, or a value is not finite.
    """
    if not isinstance(update, dict) or set(update) != set(expected):
        found = set(update) if isinstance(update, dict) else set()
        odd = sorted(found ^ set(expected))
        raise FederationError(f"{site} sent other tensors than the model has (first difference: {odd[:1]})")
    for name, tensor in expected.items():
        sent = update[name]
        if not isinstance(sent, Tensor) or sent.shape != tensor.shape or sent.dtype != tensor.dtype:
            found_type = f"{tuple(sent.shape)} {sent.dtype}" if isinstance(sent, Tensor) else type(sent).__name__
            raise FederationError(f"{site} sent {name} as {found_type}, expected {tuple(tensor.shape)} {tensor.dtype}")
        if sent.is_floating_point() and not torch.isfinite(sent).all():
            raise FederationError(f"{site} sent values in {name} that are not finite")
