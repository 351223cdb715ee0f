"""A site's FLARE executor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.shared_noise import check_shared_noise
from oncofed.audit import LEFT
from oncofed.client.compute_slot import ComputeSlot
from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.client.folder import OWN_MODEL
from oncofed.client.in_process import InProcessTraining
from oncofed.client.kept_model import add_artifacts
from oncofed.client.local_training import PATIENTS_OF_SUMS, LocalScore, LocalTraining, SiteContext, Stop
from oncofed.client.reported_patients import refuse_overlap
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.client.status_file import ENDED, WAITING
from oncofed.errors import FederationError, OncofedError, PolicyError, SpecError, StateError
from oncofed.flare import wire
from oncofed.flare.folders import JOB_PACK, against_model, initial_model, job_config, local_folder, state_folder
from oncofed.flare.held_back import HeldBack
from oncofed.flare.patches.prompt_results import send_promptly
from oncofed.flare.patches.runner_timeouts import change_timeouts
from oncofed.flare.peer_exchange import PeerExchange
from oncofed.flare.pull import TaskPull
from oncofed.flare.refusals import refusal_of
from oncofed.flare.reporter import FlareReporter, status_file
from oncofed.flare.runtime.heartbeat import Heartbeat
from oncofed.flare.runtime.malloc import forget_what_stays
from oncofed.flare.security.admission import admit_job, dataset_digest
from oncofed.flare.security.budget import charge_of, counts_folder, settle
from oncofed.flare.security.recording import name_and_person, record
from oncofed.flare.transfer.decomposer import SMALLEST_BYTES, begin_transfer, end_transfer, new_transfer_client
from oncofed.messages.requests import CombineRequest, EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import SECURE_STEPS, RevealRequest, SecureStep
from oncofed.models.weights import WeightLayout, digest_of
from oncofed.packs.pack import Pack, read_pack
from oncofed.privacy.policy import Policy
from oncofed.privacy.pooled import SUMS
from oncofed.settings import SettingError
from oncofed.training import Plan

# They take milliseconds: a round of them would be one of waiting for compute slots.
_BRIEF = frozenset(step.task for step in SECURE_STEPS)
# The server answers a message this soon once its tensors were transferred directly. It may have to read them first,
# which takes a hundredth of the time of a slow link.
_DIRECT_ANSWER_SECONDS, _READING = 20.0, 0.01


class SiteExecutor(Executor):
    """Executes a job's tasks on a site's own cases.

    The site's ``local/datasets.json`` gives the folder of each dataset: ``{SITE: {DATASET: FOLDER}}``. A job only names
    its dataset.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        federation: the job's ``FederationPlan`` as a dictionary.
    """

    def __init__(self, plan: dict[str, Any], federation: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._plan = Plan.model_validate(plan)
        self._federation = FederationPlan.model_validate(federation or {})
        self._training: LocalTraining | None = None
        self._policy: Policy | None = None
        self._held: HeldBack | None = None
        self._peers = PeerExchange(self._federation)
        self._pull = TaskPull()
        self._slot = ComputeSlot()
        self._heartbeat = Heartbeat()
        self._before_step = _tasks_before_steps(self._federation)
        self._on_event: Mapping[str, Callable[[FLContext], None]] = {
            EventType.START_RUN: self._start_run,
            EventType.BEFORE_PULL_TASK: self._before_pull,
            EventType.AFTER_PULL_TASK: self._after_pull,
            EventType.BEFORE_SEND_TASK_RESULT: self._before_submit,
            EventType.AFTER_SEND_TASK_RESULT: self._after_submit,
            EventType.END_RUN: self._end_run,
        }
        self._on_task: Mapping[str, Callable[[Any, FLContext, Stop], Result | Refusal]] = {
            PrepareRequest.task: self._prepare,
            TrainRequest.task: self._train,
            EvaluateRequest.task: self._evaluate,
            CombineRequest.task: self._combine,
            **{step.task: self._secure_step for step in SECURE_STEPS},
        }

    # --- events of FLARE

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the run from its start to its end."""
        if event_type in self._on_event:
            self._on_event[event_type](fl_ctx)

    def _start_run(self, fl_ctx: FLContext) -> None:
        wire.register_tensors()
        self._pull.listen(fl_ctx)
        send_promptly(fl_ctx.get_prop(FLContextKey.RUNNER), lambda result: wire.bytes_of(result) < SMALLEST_BYTES)
        self._go_directly(fl_ctx)
        self._heartbeat.begin(fl_ctx)
        if not self._federation.algorithm().schedule.reaches_server:
            self._peers.listen(fl_ctx)

    def _before_pull(self, fl_ctx: FLContext) -> None:
        self._slot.leave()
        if self._pull.wait(fl_ctx):
            self._slot.line_up(_stop_of(fl_ctx.get_run_abort_signal()))

    def _after_pull(self, fl_ctx: FLContext) -> None:
        del fl_ctx
        self._heartbeat.note_sent()

    def _before_submit(self, fl_ctx: FLContext) -> None:
        del fl_ctx
        self._pull.before_submit()

    def _after_submit(self, fl_ctx: FLContext) -> None:
        self._pull.after_submit(str(fl_ctx.get_prop(FLContextKey.TASK_NAME)) in self._before_step)
        self._heartbeat.note_sent()
        status_file(fl_ctx).now(phase=WAITING)

    def _end_run(self, fl_ctx: FLContext) -> None:
        self._slot.leave()
        self._heartbeat.end()
        if self._training:
            self._training.close()
            self._training = None
            if self._policy:
                settle(fl_ctx)
        end_transfer(fl_ctx.get_engine().get_cell())
        status_file(fl_ctx).now(phase=ENDED)

    def _go_directly(self, fl_ctx: FLContext) -> None:
        """Transfer large tensors directly where possible.

        Both models from the server and updates to it.
        """
        cell = fl_ctx.get_engine().get_cell()
        client = new_transfer_client(cell, str(fl_ctx.get_job_id()))
        if client is None:
            return
        begin_transfer(cell, client)
        # FLARE's messages are small then, and an answer that is lost with a server's process need not be waited for as
        # long as a model may take on a slow link. Where tensors went through FLARE after all, its timeouts apply again.
        runner = fl_ctx.get_prop(FLContextKey.RUNNER)
        client.on_fallback = change_timeouts(runner, lambda s: min(s, _DIRECT_ANSWER_SECONDS + _READING * s))

    # --- tasks

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Execute one task.

        Errors go to the site's local log; replies name no case, path or patient.
        """
        stop = _stop_of(abort_signal)
        try:
            with contextlib.nullcontext() if task_name in _BRIEF else self._slot.hold(stop):
                result = self._execute(task_name, shareable, fl_ctx, stop)
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            result = refusal_of(error, task_name)
        except Exception as error:  # noqa: BLE001 - only an error's type may leave the site
            self.log_exception(fl_ctx, f"{task_name} failed", fire_event=False)
            result = refusal_of(error, task_name)
        return wire.to_shareable(result)

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, stop: Stop) -> Result | Refusal:
        if task_name not in self._on_task:
            return Refusal(f"it does not know the task {task_name!r}")
        request: Request = wire.read_request(task_name, shareable)
        return self._on_task[task_name](request, fl_ctx, stop)

    def _prepare(self, request: PrepareRequest, fl_ctx: FLContext, stop: Stop) -> SiteFacts:
        del stop
        numbers = self._trained_here(fl_ctx).prepare()
        groups = numbers.pop(PATIENTS_OF_SUMS, {})
        if not request.profile:
            numbers.pop("profile", None)
        for name in ("covariates", "harmonization", "tiles"):
            if not request.profile or (numbers.get(name) and self._overlap(groups.get(name, ()), fl_ctx)):
                numbers.pop(name, None)
        forget_what_stays()
        policy = self._policy.digest if self._policy else None
        private = self._plan.privacy.differential_privacy is not None
        if self._federation.evaluation.contributions:  # in a simulation there is no policy to ask
            numbers["contributions"] = self._policy is None or self._policy.leaves.contributions
        digest = dataset_digest(fl_ctx, self._plan.data.dataset, keyed=private)
        return SiteFacts({**numbers, "dataset": digest, "policy": policy})

    def _train(self, request: TrainRequest, fl_ctx: FLContext, stop: Stop) -> TrainResult | Refusal:
        training = self._trained_here(fl_ctx)
        if request.refusal:
            why = f"the server did not take this site's last update: {request.refusal}"
            self.log_warning(fl_ctx, why, fire_event=False)
        result = training.train(request, stop)
        if self._federation.secure_aggregation:
            if stop():  # what it has is no update, and would leave without masks
                return Refusal("the job was stopped while it trained")
            assert self._held, "it was admitted"
            return self._held.update(result, request, fl_ctx)
        return self._send_to_peer(result, request, fl_ctx) if request.collector else result

    def _evaluate(self, request: EvaluateRequest, fl_ctx: FLContext, stop: Stop) -> EvaluateResult:
        training = self._trained_here(fl_ctx)
        # In a simulation a model is of use only where sites choose theirs.
        keeps = request.keep and (self._policy is not None or self._federation.personalization is not None)
        keep_as = name_and_person(fl_ctx)[0] if keeps else None
        score = training.validate(request, stop, keep_as)
        if keep_as:
            self._keep_artifacts(request.artifacts, score.own, fl_ctx)
        numbers = self._without_overlap(score, fl_ctx)
        if self._held and self._federation.sums_scores:
            return self._held.scores(numbers, request, fl_ctx)
        return EvaluateResult(numbers)

    def _combine(self, request: CombineRequest, fl_ctx: FLContext, stop: Stop) -> CombineResult | Refusal:
        del stop
        self._trained_here(fl_ctx)
        try:
            return self._peers.combine(request, self._layout)
        except FederationError as error:
            return Refusal(str(error))

    def _secure_step(self, request: SecureStep, fl_ctx: FLContext, stop: Stop) -> Result | Refusal:
        del fl_ctx, stop
        if self._held is None:
            return Refusal("its process was started again after it was ready: it waits for the next attempt")
        return self._held.step(request)

    @cached_property
    def _layout(self) -> WeightLayout:
        return self._plan.layout()

    def _trained_here(self, fl_ctx: FLContext) -> LocalTraining:
        """Return the job's local training, once admitted."""
        if self._training is None:
            training = self._admitted(fl_ctx)
            training.prepare()
            self._training = training
        return self._training

    def _admitted(self, fl_ctx: FLContext) -> LocalTraining:
        plan, site = self._plan, fl_ctx.get_identity_name()
        pack = _pack(fl_ctx, plan.model.code) if plan.model.code else None
        strategy, smallest_sum = self._federation.strategy.name, self._federation.smallest_sum
        private = plan.privacy.differential_privacy
        self._policy = admit_job(
            fl_ctx,
            plan.data.dataset,
            plan.model.network,
            strategy,
            pack,
            smallest_sum,
            noise_multiplier=private.event(plan.total_steps).noise_multiplier if private else None,
            noise=private.noise if private else None,
            scores="summed" if self._federation.sums_scores else "each",
        )
        try:
            check_shared_noise(plan.privacy, self._federation)
        except SettingError as error:
            raise PolicyError(f"its privacy does not hold: {error}") from None
        if self._federation.secure_aggregation:
            self._held = HeldBack(plan, self._federation, self._policy, fl_ctx)
        data = dataset_folder(local_folder(fl_ctx) / DATASETS_FILE, site, plan.data.dataset)
        context = SiteContext(
            site=site,
            data=data,
            charge=charge_of(fl_ctx, self._policy, plan.data.dataset, data) if self._policy else None,
            counts=counts_folder(fl_ctx) if self._policy else None,
            state=state_folder(fl_ctx),
            initial=initial_model(fl_ctx),
            against=against_model(fl_ctx),
        )
        # A loss is a score: it leaves as the policy says, in the sum alone or not at all.
        silent = self._federation.sums_scores or bool(self._policy and self._policy.leaves.scores != "each")
        reporter = FlareReporter(self, fl_ctx, private is not None or silent)
        if pack:
            return SandboxedTraining(
                plan=plan, federation=self._federation, context=context, reporter=reporter, pack=pack
            )
        return InProcessTraining(plan=plan, federation=self._federation, context=context, reporter=reporter)

    def _without_overlap(self, score: LocalScore, fl_ctx: FLContext) -> dict[str, Any]:
        """Return a score without sums that would reveal few patients.

        Such sums would reveal them by the difference to an earlier job's. In a simulation all sums stay: its sites are
        no hospitals.
        """
        sums = SUMS & score.numbers.keys()
        if not sums or not self._overlap(score.patient_groups, fl_ctx):
            return score.numbers
        return {name: value for name, value in score.numbers.items() if name not in sums}

    def _overlap(self, groups: Sequence[Sequence[str]], fl_ctx: FLContext) -> bool:
        """Return whether sums of these patients would reveal few, and log it."""
        if not self._policy:
            return False
        try:
            why = "of whom sums are is not known"
            if groups:
                why = refuse_overlap(state_folder(fl_ctx).parent, self._plan.data.dataset, groups)
        except StateError as error:
            why = str(error)
        if why:
            self.log_warning(fl_ctx, why, fire_event=False)
        return bool(why)

    def _keep_artifacts(self, files: Mapping[str, str], own: bool, fl_ctx: FLContext) -> None:
        """Write a kept model's small files next to it."""
        folder = state_folder(fl_ctx) / OWN_MODEL
        try:
            add_artifacts(folder, files, personal=own)
        except (OSError, SpecError) as error:
            self.log_error(fl_ctx, f"what belongs to the model in {folder} is not beside it: {error}", fire_event=False)

    def _send_to_peer(self, result: TrainResult, request: TrainRequest, fl_ctx: FLContext) -> TrainResult:
        """Send an update to the collector; return the server's part."""
        collector = str(request.collector)
        if self._policy and collector != fl_ctx.get_identity_name():
            facts = {
                "bytes": sum(value.nbytes for value in result.delta.values()),
                "digest": str(digest_of(dict(result.delta))),
            }
            record(fl_ctx, LEFT, task=TrainRequest.task, to=collector, tensors=len(result.delta), **facts)
        digest = self._peers.send(result.delta, request.round, collector, fl_ctx)
        numbers = {**result.numbers, "update": digest}
        return TrainResult(delta={}, cases=result.cases, steps=result.steps, numbers=numbers)


def _tasks_before_steps(federation: FederationPlan) -> frozenset[str]:
    """Return the tasks that a brief step follows in most rounds."""
    if not federation.secure_aggregation:
        return frozenset()
    held = {TrainRequest.task, *([EvaluateRequest.task] if federation.sums_scores else [])}
    return frozenset(held | _BRIEF - {RevealRequest.task})


def _pack(fl_ctx: FLContext, digest: str) -> Pack:
    """Return the code that a job brings.

    Raises:
        PolicyError: it brings none, or the code does not match the digest.
    """
    try:
        pack = read_pack((job_config(fl_ctx) / JOB_PACK).read_bytes(), "its pack")
    except (OSError, SpecError) as error:
        raise PolicyError(f"the job's pack cannot be read ({type(error).__name__})") from None
    if pack.digest != digest:
        raise PolicyError(f"the job brings the pack {pack.digest[:12]}…, and names {digest[:12]}…")
    return pack


def _stop_of(signal: Signal | None) -> Stop:
    """Return a function that polls an abort signal."""
    return lambda: bool(signal and signal.triggered)
