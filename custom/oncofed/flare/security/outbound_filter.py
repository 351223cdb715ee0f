"""Check and record each result before it leaves a site.

A result that cannot be recorded does not leave.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from oncofed.algorithms.plan import FederationPlan
from oncofed.audit import ADMITTED, HELD_BACK, LEFT
from oncofed.errors import AuditError, FederationError, OncofedError, PolicyError
from oncofed.flare import wire
from oncofed.flare.folders import job_config, local_folder
from oncofed.flare.in_context import made_once
from oncofed.flare.secure_aggregation import identity_of
from oncofed.flare.security.masked_steps import OwnKeys
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.flare.security.recording import audit_log, record
from oncofed.messages.compression import NotFiniteError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import plan_digest
from oncofed.privacy.policy import read_policy
from oncofed.training import Plan

if TYPE_CHECKING:
    from oncofed.flare.security.statistics_policy import StatisticsPolicy

STOPPED = "stopped by the site's outbound policy"
# The context's property by which a process's executor and filter have one policy.
_POLICY = "oncofed.outbound_policy"
_SECONDS_PER_HOUR = 3600.0


class OutboundFilter(FLComponent):
    """Checks each result before it leaves a site.

    It runs after all other filters.

    A result that may not leave is replaced by a refusal. The filter is configured by a site's kit, not by a job. An
    error in it holds a result back, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._statistics: StatisticsPolicy | None = None
        self._stopped = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Check a result."""
        if event_type != EventType.AFTER_TASK_RESULT_FILTER:
            return
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if not isinstance(reply, Shareable):
            return  # FLARE sends an error in its place
        try:
            self._check(reply, fl_ctx)
        except Exception as error:  # noqa: BLE001 - on any error nothing leaves
            self.log_error(fl_ctx, f"a message was held back: {type(error).__name__}: {error}", fire_event=False)
            _replace(reply, wire.to_shareable(self._refusal(error)))
            self._record_held_back(str(error), fl_ctx)

    def _check(self, reply: Shareable, fl_ctx: FLContext) -> None:
        if self._stopped:
            raise PolicyError("the job was stopped here before")
        shared = fl_ctx.get_prop(_POLICY)
        if shared and shared.stopped:
            raise PolicyError(shared.stopped)
        task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME) or reply.get_header(ReservedHeaderKey.TASK_NAME))
        if reply.get_return_code() != ReturnCode.OK:
            _keep_reason_alone(task, reply)
            return
        message = from_shareable(reply)
        if message.data_kind == DataKind.STATISTICS:
            checked, numbers = self._statistics_policy(fl_ctx).check(task, message.data)
            record(fl_ctx, LEFT, task=task, to="server", numbers=numbers)
            _replace(reply, checked.to_shareable())
            return
        facts = check_reply(policy_of_job(fl_ctx), task, reply)
        anchor = record(fl_ctx, LEFT, task=task, to="server", **facts)
        if "unusual" in facts:
            self.log_warning(fl_ctx, f"an update is unlike this job's others: {facts['similarity']}", fire_event=False)
        wire.set_anchor(reply, str(anchor))

    def _statistics_policy(self, fl_ctx: FLContext) -> StatisticsPolicy:
        from oncofed.flare.security.statistics_policy import StatisticsPolicy  # noqa: PLC0415 - for profiles alone

        try:
            self._statistics = self._statistics or StatisticsPolicy(_client_config(fl_ctx))
        except (OSError, ValueError) as error:
            raise PolicyError(f"the job does not say what it sends ({type(error).__name__})") from None
        return self._statistics

    def _refusal(self, error: Exception) -> Refusal:
        """Return the refusal for a result that was held back.

        If the policy held it back, the job sends nothing more.
        """
        if isinstance(error, NotFiniteError):
            return Refusal(str(error))
        if isinstance(error, PolicyError | FederationError):
            self._stopped = STOPPED
        reason = self._stopped or "what leaves it could not be looked at or recorded; the site's own log says more"
        return Refusal(reason, may_pass=isinstance(error, AuditError))

    def _record_held_back(self, why: str, fl_ctx: FLContext) -> None:
        try:
            record(fl_ctx, HELD_BACK, why=why)
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)


def policy_of_job(fl_ctx: FLContext) -> OutboundPolicy:
    """Return the outbound policy of this process's job, always the same one.

    It follows the configuration that the site received.

    Raises:
        PolicyError: the site has no policy, or the job is not one of oncofed's.
    """
    return made_once(fl_ctx, _POLICY, OutboundPolicy, _new_policy)


def _new_policy(fl_ctx: FLContext) -> OutboundPolicy:
    policy = read_policy(local_folder(fl_ctx))
    if policy is None:
        raise PolicyError("there is no policy")
    try:
        arguments = _client_config(fl_ctx)["executors"][0]["executor"]["args"]
        plan = Plan.model_validate(arguments["plan"])
        federation = FederationPlan.model_validate(arguments.get("federation") or {})
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise PolicyError(f"the job does not say what it sends ({type(error).__name__})") from None
    job = str(fl_ctx.get_job_id())
    before = [entry for entry in audit_log(fl_ctx).entries() if entry.get("job") == job]
    admitted = next((entry["time"] for entry in before if entry["what"] == ADMITTED), None)
    begun = datetime.fromisoformat(admitted).timestamp() if admitted else time.time()
    hours = policy.hours(plan.resources.gpus if torch.cuda.is_available() else 0)
    return OutboundPolicy(
        plan=plan,
        federation=federation,
        policy=policy,
        own=_own_keys(plan, federation, fl_ctx) if federation.secure_aggregation else None,
        ends=begun + hours * _SECONDS_PER_HOUR if hours else None,
        sent=sum(int(entry.get("bytes", 0)) for entry in before if entry["what"] == LEFT),
    )


def _own_keys(plan: Plan, federation: FederationPlan, fl_ctx: FLContext) -> OwnKeys:
    return OwnKeys(
        job=str(fl_ctx.get_job_id()),
        plan_digest=plan_digest(plan, federation),
        identity=identity_of(fl_ctx),
    )


def _client_config(fl_ctx: FLContext) -> dict[str, Any]:
    """Return the job's client configuration, as the site received it."""
    return dict(json.loads((job_config(fl_ctx) / "config_fed_client.json").read_text(encoding="utf-8")))


def check_reply(policy: OutboundPolicy, task: str, reply: Shareable) -> dict[str, object]:
    """Check a reply; remove numbers that may not leave.

    Args:
        policy: of the job.
        task: its name.
        reply: changed in place.

    Returns:
        Facts for the audit log.

    Raises:
        PolicyError: it may not leave.
        FederationError: its tensors are not those that the job declares.
    """
    result = _read(task, reply)
    approved = policy.check(result, wire.bytes_of(reply))
    if approved.result is not result:
        _replace_numbers(reply, approved.result)
    return approved.facts


def _read(task: str, reply: Shareable) -> Result:
    if task not in wire.TASKS:
        raise PolicyError(f"no job of oncofed has a task {task!r}")
    result = wire.read_result(task, reply)
    if isinstance(result, Refusal):
        raise PolicyError(result.reason)
    if isinstance(result, CombineResult):
        _require_mean_alone(reply)
    return result


def _require_mean_alone(reply: Shareable) -> None:
    """Refuse a collector's reply with more than a mean.

    Its message could hold all parts of an update.
    """
    update = wire.read_result(TrainRequest.task, reply)
    if not isinstance(update, TrainResult) or update.extra or update.numbers or update.steps != 1:
        raise PolicyError("a collector sends a mean, its cases, and nothing else")


def _replace_numbers(reply: Shareable, result: Result) -> None:
    message = from_shareable(reply)
    if isinstance(result, TrainResult):
        wire.replace_numbers(message, result.numbers)
    elif isinstance(result, SiteFacts | EvaluateResult):
        message.data = dict(result.numbers)
    message.update_shareable(reply)


def _replace(reply: Shareable, other: Shareable) -> None:
    """Replace a reply's content in place.

    FLARE sends the object that it has.
    """
    task = reply.get_header(ReservedHeaderKey.TASK_NAME)
    reply.clear()
    reply.update(other)
    if task is not None:
        reply.set_header(ReservedHeaderKey.TASK_NAME, task)


def _keep_reason_alone(task: str, reply: Shareable) -> None:
    """Strip a refusal down to its reason."""
    refusal, code = wire.read_result(task, reply), reply.get_return_code()
    assert isinstance(refusal, Refusal), "its return code says so"
    other = wire.to_shareable(refusal)
    other.set_return_code(code)
    _replace(reply, other)
