"""A site's side: its turn in each round. Only weights and approved numbers leave it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from oncofed.data.cases import usable_cases
from oncofed.data.prepared import plan_cache
from oncofed.errors import DataError, OncofedError, TrainingError
from oncofed.federation import exchange
from oncofed.federation.datasets import DATASETS_FILE, dataset_folder
from oncofed.federation.exchange import TASK_PREPARE, TASK_SUBMIT_MODEL, TASK_TRAIN, TASK_VALIDATE, Weights
from oncofed.models.weights import norm_names
from oncofed.training import Plan, Trainer, start_trainer

_SECONDS_BETWEEN_PROGRESS = 0.5
# In the site's own folder of the run, with its patients' names only as far as a digest of them.
_CHECKPOINT_FILE = "checkpoint.safetensors"


class SiteExecutor(Executor):
    """Trains and evaluates on the site's own cases.

    The site's ``local/datasets.json`` says where a dataset lies: ``{SITE: {DATASET: FOLDER}}``. A job only names it.

    Args:
        plan: the job's ``Plan`` as a dictionary.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self._plan = Plan.model_validate(plan)
        self._trainer: Trainer | None = None
        self._held = contextlib.ExitStack()
        self._trained: Weights | None = None
        self._last_progress = 0.0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register tensors before the first message, and leave the memory when the job ends."""
        if event_type == EventType.START_RUN:
            exchange.register_tensors()
        elif event_type == EventType.END_RUN:
            self._held.close()
            self._trainer = self._trained = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task. An error is written to the site's own log; what leaves names no case, path or patient."""
        try:
            if self._trainer is None:
                self._trainer = self._prepare(fl_ctx)
            if task_name == TASK_PREPARE:
                return exchange.numbers_message(_counts(self._trainer))
            if task_name == TASK_TRAIN:
                return self._train(self._trainer, shareable, fl_ctx, abort_signal)
            if task_name == TASK_VALIDATE:
                return self._validate(self._trainer, shareable, fl_ctx, abort_signal)
            if task_name == TASK_SUBMIT_MODEL:
                return self._submit_model()
            return exchange.refusal(f"it does not know the task {task_name!r}")
        except TrainingError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal(str(error))
        except DataError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal("its data did not pass the checks; the site's own log names the cases")
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            return exchange.refusal(f"{type(error).__name__}; the site's own log says more")
        except Exception as error:  # noqa: BLE001 - whatever went wrong here, only its type may leave
            self.log_exception(fl_ctx, f"{task_name} failed", fire_event=False)
            return exchange.refusal(f"{type(error).__name__} during {task_name}; the site's own log says more")

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
        checkpoint = _run_folder(fl_ctx) / _CHECKPOINT_FILE
        trainer = self._held.enter_context(start_trainer(plan, usable.cases, site, checkpoint))
        cache = plan_cache(usable.cases.train, trainer.input, trainer.device)
        self.log_info(fl_ctx, cache.note, fire_event=False)
        trainer.prepare(prepared)
        return trainer

    def _train(self, trainer: Trainer, message: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        weights, number, _ = exchange.read_weights_message(message)
        weights = self._with_own_norm(trainer, weights)
        steps, total = self._plan.training.steps_per_round, self._plan.total_steps
        last = number * steps
        # A process before this one may have been killed in this very turn: then its state goes on, not the global one.
        killed_in_it = last - steps < trainer.steps_done < last
        halfway = trainer.weights() if killed_in_it else None
        numbers = self._evaluate(trainer, "validation", fl_ctx, abort_signal, weights)
        if halfway:
            trainer.load_weights(halfway)
        else:
            # The schedule follows the rounds of all, also of a site that missed some.
            trainer.steps_done = last - steps

        def on_step(done: int, loss: Callable[[], float]) -> None:
            if self._progress_is_due(always=done == last):
                self._progress(fl_ctx, phase="training", step=done, steps=total, loss=loss())

        started = time.time()
        numbers["loss"] = trainer.train(last - trainer.steps_done, on_step, lambda: abort_signal.triggered)
        numbers["train_s"] = time.time() - started
        self._trained = trainer.weights()
        return exchange.update_message(self._trained, len(trainer.cases.train), numbers)

    def _with_own_norm(self, trainer: Trainer, weights: Weights) -> Weights:
        """Return the global weights with this site's own normalisation layers (FedBN; Li et al., ICLR 2021)."""
        if not self._plan.training.local_norm or self._trained is None:
            return weights
        return {**weights, **{name: self._trained[name] for name in norm_names(trainer.network) if name in weights}}

    def _validate(self, trainer: Trainer, message: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        weights, _, split = exchange.read_weights_message(message)
        weights = self._with_own_norm(trainer, weights)
        return exchange.numbers_message(self._evaluate(trainer, split, fl_ctx, abort_signal, weights))

    def _submit_model(self) -> Shareable:
        if self._trained is None:
            return exchange.refusal("it has not trained a model yet")
        assert self._trainer is not None
        return exchange.update_message(self._trained, len(self._trainer.cases.train), {})

    def _evaluate(
        self, trainer: Trainer, split: str, fl_ctx: FLContext, abort_signal: Signal, weights: Weights
    ) -> dict[str, Any]:
        """Put a model into the trainer and score it on this site's cases."""
        self._progress(fl_ctx, phase="testing" if split == "test" else "validating")
        started = time.time()
        cases = trainer.cases.test if split == "test" else trainer.cases.validation
        trainer.load_weights(weights)
        evaluation = trainer.evaluate(cases, lambda: abort_signal.triggered, detailed=split == "test")
        return {"evaluation": exchange.evaluation_numbers(evaluation), "validate_s": time.time() - started}

    def _progress_is_due(self, always: bool) -> bool:
        return always or time.monotonic() - self._last_progress >= _SECONDS_BETWEEN_PROGRESS

    def _progress(self, fl_ctx: FLContext, always: bool = True, **values: Any) -> None:
        """Tell the server how far this site is, at most twice a second unless ``always``."""
        if not self._progress_is_due(always):
            return
        self._last_progress = time.monotonic()
        with fl_ctx.get_engine().new_context() as context:
            self.fire_fed_event(exchange.PROGRESS_EVENT, Shareable(values), context)


def _run_folder(fl_ctx: FLContext) -> Path:
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    return Path(workspace.get_run_dir(fl_ctx.get_job_id()))


def _counts(trainer: Trainer) -> dict[str, Any]:
    """Return what the server may know of a site's data before training: how many cases there are."""
    cases = trainer.cases
    return {
        "train": len(cases.train),
        "validation": len(cases.validation),
        "test": len(cases.test),
        "device": trainer.device.type,
    }
