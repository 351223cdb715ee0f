"""A site's side of a job: takes its tasks from FLARE, and gives back what may leave."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.kept_job import BESIDE_MODEL
from oncofed.audit import LEFT
from oncofed.client.compute_slot import ComputeSlot
from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.client.folder import OWN_MODEL
from oncofed.client.local_training import InProcessTraining, LocalTraining, SiteContext, TrainResult
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.client.status_file import ENDED, WAITING, StatusFile
from oncofed.client.told_patients import PATIENTS_OF_SUMS, patients_in_common
from oncofed.data.manifest import write_whole
from oncofed.errors import (
    AuditError,
    DataError,
    FederationError,
    OncofedError,
    PolicyError,
    SpecError,
    StateError,
    TrainingError,
    UnreadableError,
)
from oncofed.flare import wire
from oncofed.flare.folders import JOB_PACK, against_model, initial_model, state_folder
from oncofed.flare.patches.runner_timeouts import change_timeouts
from oncofed.flare.peer_exchange import PeerExchange
from oncofed.flare.runtime.heartbeat import Heartbeat
from oncofed.flare.runtime.malloc import forget_what_stays
from oncofed.flare.security.outbound_filter import admit, dataset_digest, name_and_person, record
from oncofed.flare.transfer.decomposer import begin_transfer, end_transfer, new_transfer_client
from oncofed.flare.wire import TASK_COMBINE, TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE
from oncofed.models.bundle import BUNDLE_NAME
from oncofed.models.weights import WeightLayout, digest_of
from oncofed.packs.pack import Pack, read_pack
from oncofed.privacy.outbound import progress_that_may_leave
from oncofed.privacy.policy import Policy
from oncofed.privacy.pooled import SUMS
from oncofed.tasks.calibration import CALIBRATION_FILE
from oncofed.training import Plan

# An answer that was lost with a process of the server is waited for so long: the desk answers sooner.
_WAIT_TIMEOUT_SECONDS = 6.0
# The server answers a message so soon once a model or an update has gone its own way. It may have to read it first,
# in a hundredth of the time that a slow link takes for it.
_DIRECT_ANSWER_SECONDS, _READING = 20.0, 0.01
# So often a site that waits looks whether the job was aborted; of its end it is told.
_SECONDS_BETWEEN_LOOKS = 2.0


class SiteExecutor(Executor):
    """Has a site's turns taken on its own cases.

    The site's ``local/datasets.json`` says where a dataset lies: ``{SITE: {DATASET: FOLDER}}``. A job only names it.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        federation: the job's ``FederationPlan`` as a dictionary.
    """

    def __init__(self, plan: dict[str, Any], federation: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._plan = Plan.model_validate(plan)
        self._federation = FederationPlan.model_validate(federation or {})
        self._turns: LocalTraining | None = None
        self._policy: Policy | None = None
        self._peer = PeerExchange(self._federation)
        self._told = threading.Event()
        self._word: wire.Directive | None = None
        self._pause, self._handed_in = 0.0, False
        self._share = ComputeSlot()
        self._signs = Heartbeat()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register tensors before the first message, wait until there is a task, leave the memory when the job ends."""
        if event_type == EventType.START_RUN:
            wire.register_tensors()
            fl_ctx.get_engine().register_aux_message_handler(wire.TOLD_TOPIC, self._note_told)
            self._go_directly(fl_ctx)
            self._signs.begin(fl_ctx)
            if not self._federation.algorithm().schedule.reaches_server:
                self._peer.listen(fl_ctx)
        elif event_type == EventType.BEFORE_SEND_TASK_RESULT:
            self._told.clear()
        elif event_type == EventType.AFTER_PULL_TASK:
            self._signs.note_sent()
        elif event_type == EventType.AFTER_SEND_TASK_RESULT:
            self._handed_in = True
            self._signs.note_sent()
            _report(fl_ctx).now(phase=WAITING)
        elif event_type == EventType.BEFORE_PULL_TASK:
            self._share.leave()
            if self._is_to_come(fl_ctx):
                self._share.line_up(_stopped(fl_ctx.get_run_abort_signal()))
        elif event_type == EventType.END_RUN:
            self._share.leave()
            self._signs.end()
            if self._turns:
                self._turns.close()
                self._turns = None
            end_transfer(fl_ctx.get_engine().get_cell())
            _report(fl_ctx).now(phase=ENDED)

    def _go_directly(self, fl_ctx: FLContext) -> None:
        """Have large models fetched, and updates brought, over connections of their own where that is possible."""
        cell = fl_ctx.get_engine().get_cell()
        client = new_transfer_client(cell, str(fl_ctx.get_job_id()))
        if client is None:
            return
        begin_transfer(cell, client)
        # FLARE's messages are small then, and an answer that is lost with a server's process is not waited for as long
        # as a model may take on a slow link. Where one went with them after all, it is again.
        runner = fl_ctx.get_prop(FLContextKey.RUNNER)
        client.on_fallback = change_timeouts(runner, lambda s: min(s, _DIRECT_ANSWER_SECONDS + _READING * s))

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task. An error is written to the site's own log; what leaves names no case, path or patient."""
        try:
            with self._share.hold(_stopped(abort_signal)):
                return self._execute(task_name, shareable, fl_ctx, abort_signal)
        except StateError as error:
            # It names a file of the site.
            self.log_error(fl_ctx, str(error), fire_event=False)
            return wire.refusal("its kept state cannot be used; the site's own log says more")
        except TrainingError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return wire.refusal(str(error))
        except DataError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            if isinstance(error, UnreadableError):
                reason = "it cannot read a file that it could read before; the site's own log names it"
                return wire.refusal(reason, passing=True)
            return wire.refusal("its data did not pass the checks; the site's own log names the cases")
        except PolicyError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return wire.refusal(str(error))
        except AuditError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return wire.refusal("it cannot write its audit log, and runs nothing unrecorded", passing=True)
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return wire.refusal(f"{type(error).__name__}; the site's own log says more")
        except Exception as error:  # noqa: BLE001 - whatever went wrong here, only its type may leave
            self.log_exception(fl_ctx, f"{task_name} failed", fire_event=False)
            reason = f"{type(error).__name__} during {task_name}; the site's own log says more"
            return wire.refusal(reason, passing=isinstance(error, OSError))

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        turns = self._turns or self._begin(fl_ctx)
        told = wire.told_refusal(shareable)
        if told:
            self.log_warning(fl_ctx, f"the server did not take this site's last update: {told}", fire_event=False)
        if task_name == TASK_PREPARE:
            policy = self._policy.digest if self._policy else None
            digests = {"dataset": dataset_digest(fl_ctx, self._plan.data.dataset), "policy": policy}
            counts = turns.prepare()
            if not wire.asks_for_profile(shareable):
                counts.pop("profile", None)
            forget_what_stays()
            return wire.numbers_message({**counts, **digests})
        if task_name == TASK_TRAIN:
            sent, number, _, beside = wire.read_weights_message(shareable)
            answer = turns.train(sent, number, beside, _stopped(abort_signal))
            return self._hand_in(answer, number, shareable, fl_ctx)
        if task_name == TASK_VALIDATE:
            sent, _, split, _ = wire.read_weights_message(shareable)
            # In a simulation nobody would look for it.
            keep_as = name_and_person(fl_ctx)[0] if self._policy and wire.may_keep(shareable) else None
            asked = wire.sums_asked(shareable)
            numbers = turns.validate(sent, split, _stopped(abort_signal), keep_as, asked)
            self._keep_sums_of_few(numbers, fl_ctx)
            if keep_as:
                self._keep_beside(shareable, fl_ctx)
            return wire.numbers_message(numbers)
        if task_name == TASK_COMBINE:
            return self._combine(shareable)
        return wire.refusal(f"it does not know the task {task_name!r}")

    def _begin(self, fl_ctx: FLContext) -> LocalTraining:
        """Have the job admitted, and its data loaded."""
        plan, site = self._plan, fl_ctx.get_identity_name()
        pack = _pack(fl_ctx, plan.model.code) if plan.model.code else None
        self._policy = admit(fl_ctx, plan.data.dataset, plan.model.network, self._federation.strategy.name, pack)
        config = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()) / DATASETS_FILE
        folder = dataset_folder(config, site, plan.data.dataset)
        place = SiteContext(site, folder, state_folder(fl_ctx), initial_model(fl_ctx), against_model(fl_ctx))
        about = (plan, self._federation, place, FlareReporter(self, fl_ctx))
        turns: LocalTraining = SandboxedTraining(*about, pack) if pack else InProcessTraining(*about)
        turns.prepare()
        self._turns = turns
        return turns

    def _keep_sums_of_few(self, numbers: dict[str, Any], fl_ctx: FLContext) -> None:
        """Take sums out that would tell of few patients beside those of an earlier job; in a simulation none is."""
        groups = numbers.pop(PATIENTS_OF_SUMS, None)
        there = SUMS & numbers.keys()
        if not there or not self._policy:
            return
        try:
            why = "of whom sums are is not known"
            if groups:
                why = patients_in_common(state_folder(fl_ctx).parent, self._plan.data.dataset, groups)
        except StateError as error:
            why = str(error)
        if why:
            self.log_warning(fl_ctx, why, fire_event=False)
            for name in there:
                del numbers[name]

    def _keep_beside(self, message: Shareable, fl_ctx: FLContext) -> None:
        """Put the small files that belong to a model beside it, where the site kept it."""
        folder, files = state_folder(fl_ctx) / OWN_MODEL, wire.kept_beside(message)
        try:
            for name in BESIDE_MODEL & files.keys() if folder.is_dir() else ():
                # How sure a site's personal model should be nobody knows.
                if name != CALIBRATION_FILE or not self._federation.algorithm().personal_hook():
                    write_whole(folder / name, files[name])
            complete_bundle(folder / BUNDLE_NAME, [folder])
        except (OSError, SpecError) as error:
            self.log_error(fl_ctx, f"what belongs to the model in {folder} is not beside it: {error}", fire_event=False)

    def _hand_in(self, answer: TrainResult, number: int, message: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return an update to the server; where a site collects this round's, give it to that one, and say so."""
        collector = wire.named_collector(message)
        if collector is None:
            return wire.update_message(answer.delta, answer.extra, answer.cases, answer.steps, answer.numbers)
        if self._policy and collector != fl_ctx.get_identity_name():
            what = {
                "bytes": sum(value.nbytes for value in answer.delta.values()),
                "digest": str(digest_of(answer.delta)),
            }
            record(fl_ctx, LEFT, task=TASK_TRAIN, to=collector, tensors=len(answer.delta), **what)
        digest = self._peer.give(answer.delta, number, collector, fl_ctx)
        return wire.update_message({}, {}, answer.cases, answer.steps, {**answer.numbers, "update": digest})

    def _combine(self, message: Shareable) -> Shareable:
        """Put together what the peers sent to this site."""
        wanted, number = wire.read_combine_message(message)
        try:
            made = self._peer.combine(wanted, number, self._layout.sent, self._layout.trained)
        except FederationError as error:
            return wire.refusal(str(error))
        return wire.combined_message(made.mean, made.cases, made.missing, made.refused)

    @cached_property
    def _layout(self) -> WeightLayout:
        return self._plan.layout()

    def _is_to_come(self, fl_ctx: FLContext) -> bool:
        """Wait until the server has something to do, or the job is over, instead of asking twenty times a second.

        Returns:
            Whether there is something to do, as far as the server said.
        """
        engine, signal = fl_ctx.get_engine(), fl_ctx.get_run_abort_signal()
        # A server that does not keep questions waiting sends word by itself to who has handed in.
        pause, self._handed_in = self._pause if self._handed_in else 0.0, False
        while True:
            word = self._told_within(pause, signal)
            if word or (signal and signal.triggered):
                return word == "come"
            self._told.clear()
            with engine.new_context() as context:
                replies = engine.send_aux_request(
                    targets=[FQCN.ROOT_SERVER],
                    topic=wire.WAIT_TOPIC,
                    request=Shareable(),
                    timeout=_WAIT_TIMEOUT_SECONDS,
                    fl_ctx=context,
                    optional=True,
                )
            reply = (replies or {}).get(FQCN.ROOT_SERVER)
            word = wire.told_word(reply) if isinstance(reply, Shareable) else None
            if word != "wait":
                return word == "come"
            pause = self._pause = wire.told_pause(reply)

    def _told_within(self, seconds: float, signal: Signal | None) -> wire.Directive | None:
        """Wait for the server's word; return it, or None where it did not come."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (signal and signal.triggered):
            if self._told.wait(min(left, _SECONDS_BETWEEN_LOOKS)):
                return self._word
        return None

    def _note_told(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic, fl_ctx
        self._word = wire.told_word(request)
        self._told.set()
        return make_reply(ReturnCode.OK)


class FlareReporter:
    """Tells the server and the site's own log how the work goes; see ``turns.ProgressReporter``."""

    def __init__(self, executor: Executor, fl_ctx: FLContext) -> None:
        self._executor, self._engine = executor, fl_ctx.get_engine()
        self._report = _report(fl_ctx)
        self._fl_ctx = fl_ctx

    def progress(self, **values: Any) -> None:
        """Tell the server, and who looks at the site itself."""
        self._report.now(**values)
        values = progress_that_may_leave(values)
        with self._engine.new_context() as context:
            self._executor.fire_fed_event(wire.PROGRESS_EVENT, Shareable(values), context)

    def note(self, text: str, level: int) -> None:
        """Write to the site's own log."""
        logs = {logging.INFO: self._executor.log_info, logging.WARNING: self._executor.log_warning}
        logs.get(level, self._executor.log_error)(self._fl_ctx, text, fire_event=False)


def _pack(fl_ctx: FLContext, digest: str) -> Pack:
    """Return the code that a job brings.

    Raises:
        PolicyError: it brings none, or another than it names.
    """
    try:
        pack = read_pack((Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)) / "config" / JOB_PACK).read_bytes(), "its pack")
    except (OSError, SpecError) as error:
        raise PolicyError(f"the job's pack cannot be read ({type(error).__name__})") from None
    if pack.digest != digest:
        raise PolicyError(f"the job brings the pack {pack.digest[:12]}…, and names {digest[:12]}…")
    return pack


def _stopped(signal: Signal | None) -> Callable[[], bool]:
    """Return what tells whether a signal was given."""
    return lambda: bool(signal and signal.triggered)


def _report(fl_ctx: FLContext) -> StatusFile:
    """Return where this site's own admin looks."""
    root = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
    return StatusFile(root, str(fl_ctx.get_job_id()))
