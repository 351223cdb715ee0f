"""Messages as FLARE sends them: DXOs with headers.

This is the only module that converts between the classes of ``messages`` and FLARE's. FLARE moves tensors as
safetensors, never as pickles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any, Literal

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.utils import fobs
from torch import Tensor

from oncofed.errors import FederationError, UpdateRejectedError, one_line
from oncofed.flare.patches.streams import lighten_streams
from oncofed.flare.transfer.decomposer import DirectTensors
from oncofed.messages.chunks import in_pieces
from oncofed.messages.compression import EXTRA, with_extra, without_extra
from oncofed.messages.requests import (
    CombineRequest,
    EvaluateRequest,
    PeerUpdate,
    PrepareRequest,
    Request,
    SumsAsked,
    TrainRequest,
)
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import SECURE_STEPS, MaskedResult, MaskRequest, SecureStep, SecureStepResult

TASKS = (
    PrepareRequest.task,
    TrainRequest.task,
    EvaluateRequest.task,
    CombineRequest.task,
    *(step.task for step in SECURE_STEPS),
)

PROGRESS_EVENT = "oncofed.progress"
# A site asks for a task with the first; the server replies, or sends the second later.
WAIT_TOPIC, TOLD_TOPIC = "oncofed.wait", "oncofed.told"
# In both: no task yet, a task, one that takes milliseconds, the job is over.
Directive = Literal["wait", "come", "step", "over"]

_REASON = "oncofed.reason"
_PASSING = "oncofed.passing"
_NUMBERS = "oncofed.numbers"
_SPLIT = "oncofed.split"
_ROUND = "oncofed.round"
_REFUSED = "oncofed.refused"
_STEPS = "oncofed.steps"
_COLLECTOR = "oncofed.collector"
_REPEAT = "oncofed.repeat"
_MISSING = "oncofed.missing"
_LEFT_OUT = "oncofed.left_out"
_WAIT = "oncofed.wait"
_PAUSE = "oncofed.pause"
_ANCHOR = "oncofed.anchor"
_KEEP = "oncofed.keep"
_BESIDE = "oncofed.beside"
_PROFILE = "oncofed.profile"
_SUMS = "oncofed.sums"
_ATTEMPT = "oncofed.attempt"
_READY = "oncofed.ready"
_BOUNDS = "oncofed.bounds"
_CONTENT = "oncofed.content"
_LONGEST_REASON = 600


def register_tensors() -> None:
    """Register tensors with FLARE's serializer, before the first message.

    It also makes FLARE's streams cheaper. FLARE's own forms are registered as well: a process that serializes one of
    its messages without them registers another form for the type for good, and reads what others send in the usual
    form as empty.
    """
    flare_decomposers.register()
    fobs.register(DirectTensors)
    lighten_streams()


@singledispatch
def to_shareable(message: Request | Result | Refusal) -> Shareable:
    """Return a request or a result as FLARE sends it."""
    raise TypeError(f"{type(message).__name__} is no message")


@to_shareable.register
def _(message: PrepareRequest) -> Shareable:
    shareable = DXO(DataKind.METRICS, data={}).to_shareable()
    if message.profile:
        shareable.set_header(_PROFILE, True)
    return shareable


@to_shareable.register
def _(message: TrainRequest) -> Shareable:
    shareable = _weights(message.weights, message.extra, message.round, "validation")
    if message.refusal is not None:
        shareable.set_header(_REFUSED, message.refusal)
    if message.collector is not None:
        shareable.set_header(_COLLECTOR, message.collector)
    if message.repeat:
        shareable.set_header(_REPEAT, message.repeat)
    if message.attempt:
        shareable.set_header(_ATTEMPT, message.attempt)
    if message.bounds:
        shareable.set_header(_BOUNDS, json.dumps(dict(message.bounds)))
    return shareable


@to_shareable.register
def _(message: EvaluateRequest) -> Shareable:
    shareable = _weights(message.weights, {}, message.round, message.split)
    if message.sums:
        of_targets = {"thresholds": message.sums.thresholds, "temperatures": message.sums.temperatures}
        known = {
            name: {target: dict(of) for target, of in values.items()} for name, values in of_targets.items() if values
        }
        shareable.set_header(_SUMS, {"temperature": message.sums.temperature, **known})
    if message.keep:
        shareable.set_header(_KEEP, True)
        shareable.set_header(_BESIDE, json.dumps(dict(message.artifacts)))
    if message.attempt:
        shareable.set_header(_ATTEMPT, message.attempt)
    return shareable


def _weights(weights: Mapping[str, Tensor], extra: Mapping[str, Tensor], round_number: int, split: str) -> Shareable:
    shareable = DXO(DataKind.WEIGHTS, data=in_pieces(with_extra(weights, extra))).to_shareable()
    shareable.set_header(_ROUND, round_number)
    shareable.set_header(_SPLIT, split)
    return shareable


@to_shareable.register
def _(message: CombineRequest) -> Shareable:
    updates = {site: {"digest": update.digest, "cases": update.cases} for site, update in message.updates.items()}
    shareable = DXO(DataKind.METRICS, data=updates).to_shareable()
    shareable.set_header(_ROUND, message.round)
    return shareable


@to_shareable.register
def _(message: SecureStep) -> Shareable:
    shareable = DXO(DataKind.METRICS, data=dict(message.content)).to_shareable()
    shareable.set_header(_ROUND, message.round)
    shareable.set_header(_ATTEMPT, message.attempt)
    return shareable


@to_shareable.register
def _(message: SecureStepResult) -> Shareable:
    return DXO(DataKind.METRICS, data=dict(message.content)).to_shareable()


@to_shareable.register
def _(message: MaskedResult) -> Shareable:
    words = DXO(DataKind.WEIGHT_DIFF, data=in_pieces(dict(message.words)))
    words.set_meta_prop(_CONTENT, dict(message.content))
    return words.to_shareable()


@to_shareable.register
def _(message: SiteFacts) -> Shareable:
    return DXO(DataKind.METRICS, data=dict(message.numbers)).to_shareable()


@to_shareable.register
def _(message: EvaluateResult) -> Shareable:
    scored = DXO(DataKind.METRICS, data=dict(message.numbers))
    if message.ready:
        scored.set_meta_prop(_READY, dict(message.ready))
    return scored.to_shareable()


@to_shareable.register
def _(message: TrainResult) -> Shareable:
    update = DXO(DataKind.WEIGHT_DIFF, data=in_pieces(with_extra(message.delta, message.extra)))
    update.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, message.cases)
    update.set_meta_prop(_STEPS, message.steps)
    update.set_meta_prop(_NUMBERS, message.numbers)
    if message.ready:
        update.set_meta_prop(_READY, dict(message.ready))
    return update.to_shareable()


@to_shareable.register
def _(message: CombineResult) -> Shareable:
    shareable = to_shareable(TrainResult(delta=message.mean, cases=message.cases, steps=1, numbers={}))
    shareable.set_header(_MISSING, list(message.missing))
    shareable.set_header(_LEFT_OUT, dict(message.left_out))
    return shareable


@to_shareable.register
def _(message: Refusal) -> Shareable:
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(_REASON, message.reason)
    reply.set_header(_PASSING, message.may_pass)
    return reply


def read_request(task: str, shareable: Shareable) -> Request:
    """Return the server's request.

    Args:
        task: name of the task.
        shareable: the message.

    Raises:
        FederationError: no such task.
    """
    if task not in _REQUESTS:
        raise FederationError(f"it does not know the task {task!r}")
    return _REQUESTS[task](shareable)


def _prepare_request(shareable: Shareable) -> PrepareRequest:
    return PrepareRequest(profile=bool(shareable.get_header(_PROFILE, False)))


def _train_request(shareable: Shareable) -> TrainRequest:
    weights, extra = without_extra(from_shareable(shareable).data)
    refusal, collector = shareable.get_header(_REFUSED), shareable.get_header(_COLLECTOR)
    return TrainRequest(
        weights=dict(weights),
        round=int(shareable.get_header(_ROUND, 0)),
        extra=dict(extra),
        refusal=str(refusal) if refusal else None,
        collector=collector or None,
        repeat=int(shareable.get_header(_REPEAT, 0)),
        attempt=int(shareable.get_header(_ATTEMPT, 0)),
        bounds={str(n): float(v) for n, v in json.loads(str(shareable.get_header(_BOUNDS, "{}"))).items()},
    )


def _evaluate_request(shareable: Shareable) -> EvaluateRequest:
    weights, _ = without_extra(from_shareable(shareable).data)
    sums = shareable.get_header(_SUMS)
    return EvaluateRequest(
        weights=dict(weights),
        round=int(shareable.get_header(_ROUND, 0)),
        split="test" if shareable.get_header(_SPLIT) == "test" else "validation",
        sums=SumsAsked(**sums) if sums else None,
        keep=bool(shareable.get_header(_KEEP, False)),
        artifacts=json.loads(str(shareable.get_header(_BESIDE, "{}"))),
        attempt=int(shareable.get_header(_ATTEMPT, 0)),
    )


def _combine_request(shareable: Shareable) -> CombineRequest:
    updates = {site: PeerUpdate(**facts) for site, facts in from_shareable(shareable).data.items()}
    return CombineRequest(updates=updates, round=int(shareable.get_header(_ROUND, 0)))


def _secure_step(kind: type[SecureStep], shareable: Shareable) -> SecureStep:
    return kind(
        round=int(shareable.get_header(_ROUND, 0)),
        attempt=int(shareable.get_header(_ATTEMPT, 0)),
        content=dict(from_shareable(shareable).data),
    )


_REQUESTS: Mapping[str, Callable[[Shareable], Request]] = {
    PrepareRequest.task: _prepare_request,
    TrainRequest.task: _train_request,
    EvaluateRequest.task: _evaluate_request,
    CombineRequest.task: _combine_request,
    **{step.task: partial(_secure_step, step) for step in SECURE_STEPS},
}


def read_result(task: str, shareable: Shareable) -> Result | Refusal:
    """Return a site's unchecked result, or its refusal.

    Args:
        task: name of the task.
        shareable: the message. One that is malformed counts as a refusal.
    """
    code = shareable.get_return_code()
    if code != ReturnCode.OK:
        reason = str(shareable.get_header(_REASON) or f"FLARE reports {code}; the site's own log says more")
        # FLARE itself gives up if it cannot write its audit log, without a reason.
        return Refusal(one_line(reason, _LONGEST_REASON), may_pass=bool(shareable.get_header(_PASSING, True)))
    try:
        return _RESULTS[task](shareable)
    except FederationError as error:
        return Refusal(str(error))
    except Exception as error:  # noqa: BLE001 - a malformed message may raise any error
        return Refusal(f"its answer is malformed ({type(error).__name__})")


def _train_result(shareable: Shareable) -> TrainResult:
    update = from_shareable(shareable)
    delta, extra = without_extra(update.data)
    return TrainResult(
        delta=delta,
        extra=extra,
        cases=int(update.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 0)),
        steps=int(update.get_meta_prop(_STEPS, 1)),
        numbers=dict(update.get_meta_prop(_NUMBERS, {})),
        ready=dict(update.get_meta_prop(_READY, {})),
    )


def _evaluate_result(shareable: Shareable) -> EvaluateResult:
    scored = from_shareable(shareable)
    return EvaluateResult(dict(scored.data), dict(scored.get_meta_prop(_READY, {})))


def _combine_result(shareable: Shareable) -> CombineResult:
    update = _train_result(shareable)
    if update.extra:
        raise UpdateRejectedError(f"it sent {EXTRA}{min(update.extra)}, expected a mean")
    return CombineResult(
        mean=update.delta,
        cases=update.cases,
        missing=list(shareable.get_header(_MISSING) or []),
        left_out=dict(shareable.get_header(_LEFT_OUT) or {}),
    )


def _masked_result(shareable: Shareable) -> MaskedResult:
    update = from_shareable(shareable)
    words, extra = without_extra(update.data)
    if extra:
        raise UpdateRejectedError(f"it sent {EXTRA}{min(extra)}, expected masked words")
    return MaskedResult(words, dict(update.get_meta_prop(_CONTENT, {})))


def _secure_step_result(shareable: Shareable) -> SecureStepResult:
    return SecureStepResult(dict(from_shareable(shareable).data))


_RESULTS: Mapping[str, Callable[[Shareable], Result]] = {
    PrepareRequest.task: lambda shareable: SiteFacts(dict(from_shareable(shareable).data)),
    TrainRequest.task: _train_result,
    EvaluateRequest.task: _evaluate_result,
    CombineRequest.task: _combine_result,
    MaskRequest.task: _masked_result,
    **{step.task: _secure_step_result for step in SECURE_STEPS if step is not MaskRequest},
}


def bytes_of(message: Shareable) -> int:
    """Return the size of a result's tensors and numbers.

    Framing and TLS are not counted.
    """
    if message.get_return_code() != ReturnCode.OK:
        return len(str(message.get_header(_REASON) or ""))
    update = from_shareable(message)
    tensors = [value for value in update.data.values() if isinstance(value, torch.Tensor)]
    others = {name: value for name, value in update.data.items() if not isinstance(value, torch.Tensor)}
    numbers = [update.get_meta_prop(name, {}) for name in (_NUMBERS, _READY, _CONTENT)]
    return sum(tensor.nbytes for tensor in tensors) + len(json.dumps([others, numbers], default=str))


def replace_numbers(update: DXO, numbers: dict[str, Any]) -> None:
    """Replace the numbers of an update."""
    update.set_meta_prop(_NUMBERS, numbers)


def set_anchor(message: Shareable, anchor: str) -> None:
    """Add the audit log's last number and digest."""
    message.set_header(_ANCHOR, anchor)


def get_anchor(message: Shareable) -> str | None:
    """Return what ``set_anchor`` added; None without it."""
    anchor = message.get_header(_ANCHOR)
    return anchor if isinstance(anchor, str) else None


def wait_reply(directive: Directive, pause: float = 0.0) -> Shareable:
    """Return the server's reply to a site that waits.

    Args:
        directive: what to do.
        pause: seconds until it asks again, unless the server sends a directive before.
    """
    reply = make_reply(ReturnCode.OK)
    reply.set_header(_WAIT, directive)
    reply.set_header(_PAUSE, pause)
    return reply


def get_directive(reply: Shareable) -> Directive | None:
    """Return the server's directive for a waiting site, if any."""
    directive: Directive | None = reply.get_header(_WAIT)
    return directive


def get_pause(reply: Shareable) -> float:
    """Return seconds until a waiting site asks again."""
    return float(reply.get_header(_PAUSE, 0.0))
