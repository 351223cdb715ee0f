"""What a site holds back until a sum's roster is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nvflare.apis.fl_context import FLContext

from oncofed.algorithms.plan import FederationPlan
from oncofed.audit import MASKED
from oncofed.client.secure_aggregation import MaskedUpdates
from oncofed.errors import FederationError
from oncofed.flare.folders import state_folder
from oncofed.flare.secure_aggregation import identity_of
from oncofed.flare.security.outbound_filter import policy_of_job
from oncofed.flare.security.recording import record
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, Result, TrainResult
from oncofed.messages.secure_aggregation import SecureStep, plan_digest, score_form
from oncofed.privacy.policy import LeavesSpec, Policy
from oncofed.privacy.secure_aggregation import ProtocolError
from oncofed.training import Plan
from oncofed.training.shared_noise import shared_noise


class HeldBack:
    """Checks updates and scores of a job with secure aggregation, holds them back, and sends them masked.

    Args:
        plan: of the job.
        federation: of the job.
        policy: of the site; None in a simulation, where nothing is checked.
        fl_ctx: of the job's process.

    Raises:
        PolicyError: the kit's certificate is not a site's, or the job is not one of oncofed's.
        StateError: what an earlier process kept is broken.
    """

    def __init__(self, plan: Plan, federation: FederationPlan, policy: Policy | None, fl_ctx: FLContext) -> None:
        identity = identity_of(fl_ctx)
        self._sums_scores = federation.sums_scores
        self._outbound = policy_of_job(fl_ctx) if policy else None
        self._masked = MaskedUpdates(
            federation,
            plan.layout(),
            job=str(fl_ctx.get_job_id()),
            plan_digest=plan_digest(plan, federation),
            identity=identity,
            leaves=policy.leaves if policy else LeavesSpec(),
            folder=state_folder(fl_ctx),
            noise=shared_noise(plan),
            scores=score_form(plan, federation),
        )

    def update(self, result: TrainResult, request: TrainRequest, fl_ctx: FLContext) -> TrainResult | Refusal:
        """Keep an update for a round's sum; return what the server is told of it."""
        result = self._masked.complete(result, request)
        if self._outbound:
            if self._sums_scores:
                result = replace(result, numbers=self._outbound.scores_before_masking(result.numbers, training=True))
            facts = self._outbound.check_before_masking(result, self._masked.bound(request))
            record(fl_ctx, MASKED, task=TrainRequest.task, round=request.round, **facts)
        try:
            return self._masked.hold(result, request)
        except ProtocolError as error:
            return Refusal(str(error))

    def scores(self, numbers: Mapping[str, Any], request: EvaluateRequest, fl_ctx: FLContext) -> EvaluateResult:
        """Keep a model's scores for their sum; return what the server is told."""
        if self._outbound:
            numbers = self._outbound.scores_before_masking(numbers, training=False)
            record(fl_ctx, MASKED, task=EvaluateRequest.task, round=request.round, split=request.split)
        return self._masked.hold_scores(numbers, request)

    def step(self, request: SecureStep) -> Result | Refusal:
        """Take a step of the protocol."""
        try:
            answer = self._masked.answer(request)
        except FederationError as error:
            return Refusal(str(error))
        if self._outbound:
            self._outbound.masked.note_answer(request, answer)
        return answer
