"""A site's side: its turn in each round. Only weights and approved numbers leave it."""

from __future__ import annotations

import contextlib
import csv
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from safetensors.torch import load_file

import oncofed
from oncofed.data.cases import usable_cases
from oncofed.data.prepared import plan_cache
from oncofed.errors import (
    AuditError,
    DataError,
    FederationError,
    OncofedError,
    PolicyError,
    StateError,
    TrainingError,
)
from oncofed.federation import exchange
from oncofed.federation.compression import Compressor
from oncofed.federation.datasets import DATASETS_FILE, dataset_folder
from oncofed.federation.exchange import TASK_COMBINE, TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE
from oncofed.federation.folders import initial_model, sole_owner, state_folder
from oncofed.federation.guard import LEFT, admit, dataset_digest, record
from oncofed.federation.sharing import gpu_turn
from oncofed.federation.site_report import ENDED, WAITING, SiteReport
from oncofed.federation.site_state import SiteState
from oncofed.federation.spec import (
    DittoSpec,
    FedBNSpec,
    FedDynSpec,
    FederationPlan,
    FedProxSpec,
    ScaffoldSpec,
    SwarmSpec,
)
from oncofed.federation.swarm import Peer
from oncofed.models.weights import Weights, digest_of, exchanged_names, norm_names, trained_names, weights_of
from oncofed.privacy.policy import Policy
from oncofed.training import Plan, Trainer, start_trainer
from oncofed.training.checkpoint import is_whole
from oncofed.training.corrections import ControlVariates, Correction, DynamicRegulariser, Proximal

_SECONDS_BETWEEN_PROGRESS = 0.5
_WAIT_TIMEOUT_SECONDS = 10.0
# In the site's own folder of the job; only its table of test cases names any.
_CHECKPOINT_FILE = "checkpoint.safetensors"
_CASES_FILE = "test_cases.csv"
_PERSONAL_FILE = "personal.safetensors"


@dataclass(frozen=True)
class _Answer:
    """What a site made of a turn. ``asked`` names the turn: its round, and a digest of the model that it began with."""

    asked: str
    delta: Weights
    extra: Weights
    cases: int
    steps: int
    numbers: dict[str, Any]

    def message(self) -> Shareable:
        return exchange.update_message(self.delta, self.extra, self.cases, self.steps, self.numbers)

    @property
    def facts(self) -> dict[str, Any]:
        return {"asked": self.asked, "cases": self.cases, "steps": self.steps, "numbers": self.numbers}


class SiteExecutor(Executor):
    """Trains and evaluates on the site's own cases.

    The site's ``local/datasets.json`` says where a dataset lies: ``{SITE: {DATASET: FOLDER}}``. A job only names it.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        federation: the job's ``FederationPlan`` as a dictionary.
    """

    def __init__(self, plan: dict[str, Any], federation: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._plan = Plan.model_validate(plan)
        self._federation = FederationPlan.model_validate(federation or {})
        self._trainer: Trainer | None = None
        self._personal: Trainer | None = None
        self._policy: Policy | None = None
        self._held = contextlib.ExitStack()
        self._correction = _correction(self._federation)
        self._compressor = Compressor(self._federation.exchange.update)
        self._peer = Peer(self._federation)
        self._state = SiteState()
        self._fixed: Weights = {}
        self._own_norm: Weights = {}
        self._answer: _Answer | None = None
        self._last_progress = 0.0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register tensors before the first message, wait for the next task, leave the memory when the job ends."""
        if event_type == EventType.START_RUN:
            exchange.register_tensors()
            if isinstance(self._federation.strategy, SwarmSpec):
                self._peer.listen(fl_ctx)
        elif event_type == EventType.AFTER_SEND_TASK_RESULT:
            self._report(fl_ctx).now(phase=WAITING)
            self._wait_for_task(fl_ctx)
        elif event_type == EventType.END_RUN:
            self._held.close()
            self._trainer = self._personal = self._answer = None
            self._report(fl_ctx).now(phase=ENDED)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task. An error is written to the site's own log; what leaves names no case, path or patient."""
        answer = self._answered(task_name, shareable, fl_ctx, abort_signal)
        self._report(fl_ctx).left(task_name, exchange.round_of(shareable), exchange.bytes_of(answer))
        return answer

    def _answered(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        try:
            with gpu_turn(abort_signal):
                return self._execute(task_name, shareable, fl_ctx, abort_signal)
        except StateError as error:
            # It names a file of the site.
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal("its kept state cannot be used; the site's own log says more")
        except TrainingError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal(str(error))
        except DataError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal("its data did not pass the checks; the site's own log names the cases")
        except PolicyError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal(str(error))
        except AuditError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal("it cannot write its audit log, and runs nothing unrecorded", passing=True)
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal(f"{type(error).__name__}; the site's own log says more")
        except Exception as error:  # noqa: BLE001 - whatever went wrong here, only its type may leave
            self.log_exception(fl_ctx, f"{task_name} failed", fire_event=False)
            reason = f"{type(error).__name__} during {task_name}; the site's own log says more"
            return exchange.refusal(reason, passing=isinstance(error, OSError))

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if self._trainer is None:
            network, strategy = self._plan.model.network, self._federation.strategy.name
            self._policy = admit(fl_ctx, self._plan.data.dataset, network, strategy)
            try:
                self._trainer = self._prepare(fl_ctx)
            except BaseException:
                self._held.close()
                raise
        told = exchange.told_refusal(shareable)
        if told:
            self.log_warning(fl_ctx, f"the server did not take this site's last update: {told}", fire_event=False)
        if task_name == TASK_PREPARE:
            policy = self._policy.digest if self._policy else None
            digests = {"dataset": dataset_digest(fl_ctx, self._plan.data.dataset), "policy": policy}
            return exchange.numbers_message({**_counts(self._trainer), **digests})
        if task_name == TASK_TRAIN:
            return self._train(self._trainer, shareable, fl_ctx, abort_signal)
        if task_name == TASK_VALIDATE:
            return self._validate(self._trainer, shareable, fl_ctx, abort_signal)
        if task_name == TASK_COMBINE:
            return self._combine(self._trainer, shareable)
        return exchange.refusal(f"it does not know the task {task_name!r}")

    def _prepare(self, fl_ctx: FLContext) -> Trainer:
        site = fl_ctx.get_identity_name()
        config = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()) / DATASETS_FILE
        folder = dataset_folder(config, site, self._plan.data.dataset)
        plan = self._plan

        def checked(done: int, total: int) -> None:
            self._progress(fl_ctx, always=False, phase="checking data", step=done, steps=total)

        def prepared(done: int, total: int) -> None:
            self._progress(fl_ctx, always=False, phase="loading data", step=done, steps=total)

        self._progress(fl_ctx, phase="checking data")
        task = plan.build_task()
        usable = usable_cases(folder, plan.data, plan.task.vocabulary, plan.seed, site, checked, task.label_kind)
        for problem in usable.set_aside:
            self.log_warning(fl_ctx, f"set aside {problem}", fire_event=False)
        self._progress(fl_ctx, phase="loading data")
        kept = state_folder(fl_ctx)
        self._held.enter_context(sole_owner(kept))
        self._set_broken_state_aside(kept, fl_ctx)
        self._state = SiteState(kept)
        trainer = self._held.enter_context(start_trainer(plan, usable.cases, site, kept / _CHECKPOINT_FILE))
        cache = plan_cache(usable.cases.train, trainer.input, trainer.device)
        self.log_info(fl_ctx, cache.note, fire_event=False)
        trainer.prepare(prepared)
        trainer.correction = self._correction
        if isinstance(self._federation.strategy, DittoSpec):
            self._personal = Trainer(plan, usable.cases, site, trainer.device, kept / _PERSONAL_FILE)
            self._personal.correction = Proximal(self._federation.strategy.mu)
        self._fixed = self._weights_that_stay(trainer, fl_ctx)
        self._recall()
        return trainer

    def _set_broken_state_aside(self, folder: Path, fl_ctx: FLContext) -> None:
        """Begin with the global model where what an earlier process left is broken, by a bad disk for example."""
        for path in folder.glob("*.safetensors"):
            if not is_whole(path):
                self.log_error(fl_ctx, f"{path} is broken and set aside: this site begins anew", fire_event=False)
                path.replace(path.with_suffix(".broken"))

    def _weights_that_stay(self, trainer: Trainer, fl_ctx: FLContext) -> Weights:
        """Return the weights that no site trains: every site has them from the job itself, so they do not travel."""
        travelling = exchanged_names(trainer.network)
        brought = initial_model(fl_ctx)
        start = load_file(brought) if brought else self._plan.initial_weights()
        return {name: value for name, value in start.items() if name not in travelling}

    def _recall(self) -> None:
        """Take up what an earlier process of this site left."""
        self._compressor.left_over = self._state.part("left_over")
        self._own_norm = self._state.part("norm")
        if self._correction:
            self._correction.restore(self._state.part("correction"))
        if self._state.facts:
            self._answer = _Answer(
                delta=self._state.part("delta"), extra=self._state.part("extra"), **self._state.facts
            )

    def _remember(self, fl_ctx: FLContext) -> str | None:
        """Keep what this site knows now; return why that failed, or None."""
        assert self._answer
        parts = {"left_over": self._compressor.left_over, "norm": self._own_norm}
        parts |= {"delta": self._answer.delta, "extra": self._answer.extra}
        if self._correction:
            parts["correction"] = self._correction.state
        try:
            self._state.write(parts, self._answer.facts)
        except OSError as error:
            self.log_error(fl_ctx, f"the state of this site could not be kept: {error}", fire_event=False)
            return error.strerror or str(error)
        return None

    def _train(self, trainer: Trainer, message: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        sent, number, _, given = exchange.read_weights_message(message)
        sent = {name: _full(value) for name, value in sent.items()}
        asked = f"{number} {digest_of(sent)}"
        if self._answer and self._answer.asked == asked:
            # The server asks again for what it was sent, or would have been: a process died in between.
            return self._hand_in(self._answer, number, message, fl_ctx)
        weights = self._with_own_norm({**self._fixed, **sent})
        steps, total = self._plan.training.steps_per_round, self._plan.total_steps
        last = number * steps
        # A process before this one may have been killed in this very turn: then its state goes on, not the global one.
        halfway = trainer.weights() if trainer.unfinished == asked else None
        numbers = self._evaluate(trainer, "validation", fl_ctx, abort_signal, weights)
        if self._correction:
            self._correction.start(trainer.network, given)
        if halfway:
            trainer.load_weights(halfway)
        else:
            # The schedule follows the rounds of all, also of a site that missed some.
            trainer.steps_done = last - steps

        def on_step(done: int, loss: Callable[[], float]) -> None:
            if self._progress_is_due(always=done == last):
                self._progress(fl_ctx, phase="training", round=number, step=done, steps=total, loss=loss())

        started = time.time()
        numbers["loss"] = trainer.train(last - trainer.steps_done, on_step, lambda: abort_signal.triggered, asked)
        if self._personal:
            self._train_personal(self._personal, weights, last, asked, abort_signal)
        numbers["train_s"] = time.time() - started
        trained = trainer.weights()
        self._own_norm = {name: trained[name] for name in self._norms(trainer)}
        delta = {n: trained[n] - v if v.is_floating_point() else trained[n] for n, v in sent.items()}
        extra = self._correction.finish(trainer.network) if self._correction else {}
        compressed = self._compressor.compress(delta)
        taken = trainer.steps_done - (last - steps)
        answer = _Answer(asked, compressed, extra, len(trainer.cases.train), taken, numbers)
        if not abort_signal.triggered:
            self._answer = answer
            not_kept = self._remember(fl_ctx) or trainer.not_kept
            if not_kept:
                numbers["not_kept"] = not_kept
        return self._hand_in(answer, number, message, fl_ctx)

    def _hand_in(self, answer: _Answer, number: int, message: Shareable, fl_ctx: FLContext) -> Shareable:
        """Return an update to the server; where a site collects this round's, give it to that one, and say so."""
        collector = exchange.named_collector(message)
        if collector is None:
            return answer.message()
        if self._policy and collector != fl_ctx.get_identity_name():
            what = {"bytes": sum(value.nbytes for value in answer.delta.values()), "digest": digest_of(answer.delta)}
            record(fl_ctx, LEFT, task=TASK_TRAIN, to=collector, tensors=len(answer.delta), **what)
        digest = self._peer.give(answer.delta, number, collector, fl_ctx)
        if digest and collector != fl_ctx.get_identity_name():
            size = sum(value.nbytes for value in answer.delta.values())
            self._report(fl_ctx).left(TASK_TRAIN, number, size, collector)
        return exchange.update_message({}, {}, answer.cases, answer.steps, {**answer.numbers, "update": digest})

    def _combine(self, trainer: Trainer, message: Shareable) -> Shareable:
        """Put together what the peers sent to this site."""
        wanted, number = exchange.read_combine_message(message)
        travelling = exchanged_names(trainer.network)
        like = {n: v.to("meta") for n, v in weights_of(trainer.network).items() if n in travelling}
        try:
            made = self._peer.combine(wanted, number, like, trained_names(trainer.network))
        except FederationError as error:
            return exchange.refusal(str(error))
        return exchange.combined_message(made.mean, made.cases, made.missing, made.refused)

    def _train_personal(self, personal: Trainer, towards: Weights, last: int, asked: str, abort_signal: Signal) -> None:
        """Train this site's own model up to the same step, held near the global one (Ditto)."""
        if personal.steps_done == 0:
            personal.load_weights(towards)
        if personal.unfinished != asked:
            personal.steps_done = last - self._plan.training.steps_per_round
        assert isinstance(personal.correction, Proximal)
        personal.correction.start(personal.network, {})
        personal.correction.towards = {name: value.to(personal.device) for name, value in towards.items()}
        personal.train(last - personal.steps_done, None, lambda: abort_signal.triggered, asked)

    def _norms(self, trainer: Trainer) -> set[str]:
        if not isinstance(self._federation.strategy, FedBNSpec):
            return set()
        return norm_names(trainer.network) & exchanged_names(trainer.network)

    def _with_own_norm(self, weights: Weights) -> Weights:
        """Return the global weights with this site's own normalisation layers (FedBN; Li et al., ICLR 2021)."""
        return {**weights, **self._own_norm}

    def _validate(self, trainer: Trainer, message: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        sent, _, split, _ = exchange.read_weights_message(message)
        weights = self._with_own_norm({**self._fixed, **{n: _full(v) for n, v in sent.items()}})
        numbers = self._evaluate(trainer, split, fl_ctx, abort_signal, weights)
        if split == "test" and self._personal:
            evaluation = self._personal.evaluate(self._personal.cases.test, lambda: abort_signal.triggered, True)
            numbers["personal"] = exchange.evaluation_numbers(evaluation)
        return exchange.numbers_message(numbers)

    def _evaluate(
        self, trainer: Trainer, split: str, fl_ctx: FLContext, abort_signal: Signal, weights: Weights
    ) -> dict[str, Any]:
        """Put a model into the trainer and score it on this site's cases."""
        self._progress(fl_ctx, phase="testing" if split == "test" else "validating")
        started = time.time()
        cases = trainer.cases.test if split == "test" else trainer.cases.validation
        trainer.load_weights(weights)
        evaluation = trainer.evaluate(cases, lambda: abort_signal.triggered, detailed=split == "test")
        if evaluation.by_case:
            self._note_cases(evaluation.by_case, fl_ctx)
        return {"evaluation": exchange.evaluation_numbers(evaluation), "validate_s": time.time() - started}

    def _note_cases(self, by_case: Sequence[tuple[str, dict[str, float | str]]], fl_ctx: FLContext) -> None:
        """Write what the last tested model does on each case, for this site alone."""
        path = state_folder(fl_ctx) / _CASES_FILE
        columns = list(dict.fromkeys(name for _, figures in by_case for name in figures))
        try:
            with open(path, "w", newline="", encoding="utf-8", opener=_private) as file:
                table = csv.DictWriter(file, ["case", *columns])
                table.writeheader()
                table.writerows({"case": case, **figures} for case, figures in by_case)
        except OSError as error:
            self.log_error(fl_ctx, f"{path} could not be written: {error}", fire_event=False)

    def _wait_for_task(self, fl_ctx: FLContext) -> None:
        """Ask the server to be told when there is something to do, instead of asking for it twenty times a second."""
        engine, signal = fl_ctx.get_engine(), fl_ctx.get_run_abort_signal()
        while not (signal and signal.triggered):
            with engine.new_context() as context:
                replies = engine.send_aux_request(
                    targets=[FQCN.ROOT_SERVER],
                    topic=exchange.WAIT_TOPIC,
                    request=Shareable(),
                    timeout=_WAIT_TIMEOUT_SECONDS,
                    fl_ctx=context,
                    optional=True,
                )
            reply = (replies or {}).get(FQCN.ROOT_SERVER)
            if not isinstance(reply, Shareable) or not exchange.says_wait(reply):
                return

    def _report(self, fl_ctx: FLContext) -> SiteReport:
        """Return where this site's own admin looks."""
        root = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
        return SiteReport(root, str(fl_ctx.get_job_id()))

    def _progress_is_due(self, always: bool) -> bool:
        return always or time.monotonic() - self._last_progress >= _SECONDS_BETWEEN_PROGRESS

    def _progress(self, fl_ctx: FLContext, always: bool = True, **values: Any) -> None:
        """Tell the server how far this site is, at most twice a second unless ``always``."""
        if not self._progress_is_due(always):
            return
        self._last_progress = time.monotonic()
        self._report(fl_ctx).now(**values)
        with fl_ctx.get_engine().new_context() as context:
            self.fire_fed_event(exchange.PROGRESS_EVENT, Shareable(values), context)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _correction(federation: FederationPlan) -> Correction | None:
    """Return what a strategy adds to the gradients at a site."""
    strategy = federation.strategy
    if isinstance(strategy, FedProxSpec):
        return Proximal(strategy.mu)
    if isinstance(strategy, ScaffoldSpec):
        return ControlVariates()
    if isinstance(strategy, FedDynSpec):
        return DynamicRegulariser(strategy.alpha)
    return None


def _full(value: torch.Tensor) -> torch.Tensor:
    """Return a weight as the network holds it: the global model may travel in half its type."""
    return value.float() if value.dtype is torch.bfloat16 else value


def _counts(trainer: Trainer) -> dict[str, Any]:
    """Return what the server may know of a site's data before training: how many cases there are."""
    cases = trainer.cases
    return {
        "train": len(cases.train),
        "validation": len(cases.validation),
        "test": len(cases.test),
        "device": trainer.device.type,
        "version": oncofed.__version__,
    }
