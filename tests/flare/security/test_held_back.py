"""An update that may not be masked, at a site's executor and its outbound filter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from oncofed.audit import HELD_BACK, AuditLog
from oncofed.client.secure_aggregation import MaskedUpdates
from oncofed.flare import wire
from oncofed.flare.executor import SiteExecutor
from oncofed.flare.held_back import HeldBack
from oncofed.flare.security.outbound_filter import _POLICY, STOPPED, OutboundFilter
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import EvaluateRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, Result, TrainResult
from oncofed.privacy.policy import LeavesSpec, Policy
from outbound_results import EVALUATION, NUMBERS, delta_of, own_keys, policy_of


class _Site:
    """A site of a job with masks: its executor and its filter, without FLARE's processes."""

    def __init__(self, spec: JobSpec, folder: Path) -> None:
        federation = {"secure_aggregation": {}, "rounds": {"number": 9}}
        self.policy, self.folder = policy_of(spec, federation), folder
        self.executor = SiteExecutor(spec.plan().model_dump(mode="json"), federation)
        own = own_keys()
        self.executor._policy, self.executor._training = Policy(), Mock()
        self.executor._held = held = HeldBack.__new__(HeldBack)
        held._sums_scores, held._outbound = False, self.policy
        held._masked = MaskedUpdates(
            self.executor._federation,
            spec.plan().layout(),
            job=own.job,
            plan_digest=own.plan_digest,
            identity=own.identity,
            leaves=LeavesSpec(),
            folder=folder,
        )
        self.filter, self.signal, self.context = OutboundFilter(), Signal(), FLContext()
        workspace = SimpleNamespace(get_site_config_dir=lambda: str(folder), get_root_dir=lambda: str(folder))
        self.context.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace, private=True)
        self.context.set_prop(_POLICY, self.policy, private=True, sticky=True)

    def asked(self, request: Request, result: Result, stopped: bool = False) -> Result | Refusal:
        """Return what leaves the site."""

        def train(*_: object) -> Result:
            if stopped:
                self.signal.trigger(True)
            return result

        self.executor._training.train = train  # type: ignore[union-attr, assignment, method-assign]
        reply = self.executor.execute(request.task, wire.to_shareable(request), self.context, self.signal)
        return self.leaving(request.task, wire.read_result(request.task, reply))

    def leaving(self, task: str, result: Result | Refusal) -> Result | Refusal:
        reply = wire.to_shareable(result)
        self.context.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        self.context.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
        self.filter.handle_event(EventType.AFTER_TASK_RESULT_FILTER, self.context)
        return wire.read_result(task, reply)


def _update(spec: JobSpec, factor: float) -> TrainResult:
    return TrainResult(delta=delta_of(spec, factor=factor), cases=4, steps=4, numbers=NUMBERS)


def _request(spec: JobSpec, number: int, attempt: int = 1) -> TrainRequest:
    return TrainRequest(weights=spec.plan().initial_weights(), round=number, attempt=attempt)


@pytest.mark.attack(
    "a picture under masks in an update's place",
    by="the site's check before masking",
    logged="the site's audit log: held back",
)
def test_an_update_that_may_not_be_masked_stops_the_job_here(spec: JobSpec, tmp_path: Path) -> None:
    site = _Site(spec, tmp_path)
    for number in (1, 2, 3):
        for attempt in (1, 2):
            left = site.asked(_request(spec, number, attempt), _update(spec, 1 + number / 100))
            assert isinstance(left, TrainResult), left
            assert left.ready
            assert not left.delta
    left = site.asked(_request(spec, 4), _update(spec, 1000.0))
    assert left == Refusal(STOPPED)
    entry = list(AuditLog(tmp_path).entries())[-1]
    assert entry["what"] == HELD_BACK
    assert "times as long" in str(entry["why"])
    # Neither an honest update nor a score leaves any more.
    assert site.asked(_request(spec, 5), _update(spec, 1.0)) == Refusal(STOPPED)
    score = EvaluateResult({"evaluation": EVALUATION, "validate_s": 1.0})
    assert site.leaving(EvaluateRequest.task, score) == Refusal(STOPPED)


def test_a_stopped_training_sends_no_update_without_masks(spec: JobSpec, tmp_path: Path) -> None:
    site = _Site(spec, tmp_path)
    left = site.asked(_request(spec, 1), _update(spec, 1.0), stopped=True)
    assert isinstance(left, Refusal)
    assert "stopped while it trained" in left.reason
    assert not site.policy.stopped
