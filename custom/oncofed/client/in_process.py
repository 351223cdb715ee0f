"""Local training in the calling process."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.training_profile import site_profile
from oncofed.client.first_asked import FirstAsked
from oncofed.client.folder import DOUBTS_FILE, OWN_MODEL, sole_owner
from oncofed.client.kept_model import keep_model
from oncofed.client.label_check import check_labels
from oncofed.client.local_training import LocalScore, ProgressReporter, SiteContext, Stop
from oncofed.client.personal import PersonalModel
from oncofed.client.personalization import Kept, Personalization
from oncofed.client.preparation import check_cases, set_broken_files_aside, untrained_weights
from oncofed.client.private_steps import PrivateSteps, private_steps
from oncofed.client.progress import ThrottledProgress
from oncofed.client.scoring import LocalScoring
from oncofed.client.state import SiteState
from oncofed.client.sums_of_data import sums_of_data
from oncofed.data.prepared import plan_cache
from oncofed.errors import OncofedError, TrainingError
from oncofed.messages.compression import Compressor, with_extra
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import TrainResult
from oncofed.models.weights import Weights, digest_of
from oncofed.privacy.gains import AVERAGED_NORMS, FEDERATED, PERSONAL
from oncofed.training import Plan, Trainer, start_trainer

_CHECKPOINT_FILE = "checkpoint.safetensors"
_PERSONAL_FILE = "personal.safetensors"


class InProcessTraining:
    """Trains and scores in this process; see ``LocalTraining``.

    Args:
        plan: what to train.
        federation: how the sites train together.
        context: where this site trains.
        reporter: receives progress and log lines.
    """

    def __init__(
        self, *, plan: Plan, federation: FederationPlan, context: SiteContext, reporter: ProgressReporter
    ) -> None:
        self._plan, self._federation = plan, federation
        self._context, self._reporter = context, reporter
        self._progress = ThrottledProgress(reporter)
        self._resources = contextlib.ExitStack()
        self._trainer: Trainer | None = None
        self._scoring: LocalScoring | None = None
        self._personal: PersonalModel | None = None
        self._algorithm = federation.algorithm()
        self._gradient_hook = self._algorithm.gradient_hook()
        self._compressor = Compressor(federation.exchange.update)
        self._state = SiteState()
        self._private: PrivateSteps | None = None
        self._profile: dict[str, Any] = {}
        self._sums_of_data: dict[str, Any] = {}
        self._origin: dict[str, Any] = {}
        self._untrained: Weights = {}
        self._kept_locally: Weights = {}
        self._first_asked = FirstAsked()

    @property
    def trainer(self) -> Trainer:
        """The site's trainer, from ``prepare`` on."""
        assert self._trainer, "prepare comes first"
        return self._trainer

    @property
    def scoring(self) -> LocalScoring:
        """Scores models on the site's cases, from ``prepare`` on."""
        assert self._scoring, "prepare comes first"
        return self._scoring

    # --- prepare

    def prepare(self) -> dict[str, Any]:
        """Check and load the cases, once."""
        if self._trainer is None:
            try:
                self._trainer = self._load()
            except BaseException:
                self._resources.close()
                raise
        return {**_counts(self._trainer), "profile": self._profile, **self._sums_of_data, **self._origin}

    def close(self) -> None:
        """Release memory and the job's folder."""
        self._resources.close()
        self._trainer = self._scoring = self._personal = None
        self._state.forget_result()

    def _load(self) -> Trainer:
        context, plan = self._context, self._plan
        self._progress.report(phase="checking data")
        usable = check_cases(plan, context, self._progress, self._reporter)
        self._progress.report(phase="loading data")
        self._resources.enter_context(sole_owner(context.state))
        set_broken_files_aside(context.state, self._reporter)
        self._state = SiteState(context.state)
        self._private = private_steps(plan, usable.cases, context.counts or context.state, context.charge)
        checkpoint = context.state / _CHECKPOINT_FILE
        trainer = self._resources.enter_context(start_trainer(plan, usable.cases, context.site, checkpoint))
        self._origin = trainer.input.origin(tuple(usable.cases))
        for remark in trainer.input.remarks(tuple(usable.cases)):
            self._reporter.note(remark, logging.WARNING)
        images = [(case.patient, usable.facts.get(slide)) for case in usable.cases.train for slide in case.slides]
        self._reporter.note(plan_cache(usable.cases.train, trainer.input, trainer.device).note, logging.INFO)
        if not plan.data.template_columns:  # else sites agree on a template first, which comes with the first weights
            trainer.prepare(self._progress.counter("loading data"))
        if not self._private:  # else nothing leaves of training patients but noisy steps
            self._profile = site_profile(((patient, entry) for patient, entry in images if entry), plan.data)
            self._sums_of_data = sums_of_data(trainer, images, self._progress, self._reporter)
        trainer.gradient_hook = self._gradient_hook
        self._personal = self._start_personal(trainer)
        self._scoring = LocalScoring(
            trainer=trainer,
            context=context,
            most_cases=self._federation.evaluation.most_cases,
            first=self._first_asked,
            progress=self._progress,
            reporter=self._reporter,
        )
        self._untrained = untrained_weights(trainer, plan, context.initial)
        self._resume()
        return trainer

    def _start_personal(self, trainer: Trainer) -> PersonalModel | None:
        hook = self._algorithm.personal_hook()
        if hook is None:
            return None
        checkpoint = self._context.state / _PERSONAL_FILE
        own = Trainer(self._plan, trainer.cases, self._context.site, trainer.device, checkpoint)
        personal = PersonalModel(own, hook)
        self._resources.callback(personal.close)
        return personal

    def _resume(self) -> None:
        """Restore the state of an earlier process."""
        self._compressor.left_over = self._state.part("left_over")
        self._kept_locally = self._state.part("norm")
        if self._gradient_hook:
            self._gradient_hook.restore(self._state.part("correction"))

    # --- train

    def train(self, request: TrainRequest, stop: Stop) -> TrainResult:
        """Train the global model, unless its result is kept."""
        received = {name: _full_precision(value) for name, value in request.weights.items()}
        # An algorithm's tensors decide on the update as much as the model does.
        base = digest_of(with_extra(received, dict(request.extra)))
        turn_key = f"{request.round} {base}" + (f" {request.repeat}" if request.repeat else "")
        earlier = self._state.result_of(turn_key)
        if earlier:
            return earlier
        if self._private:
            self._private.begin(turn_key, self._plan.training.steps_per_round)
        trainer, weights = self.trainer, self._weights_here(received)
        # If an earlier process was killed in this very round, its weights continue, not the global ones.
        halfway = trainer.halfway() if trainer.unfinished == turn_key else None
        numbers = self.scoring.evaluate("validation", weights, stop)
        if self._gradient_hook:
            self._gradient_hook.start(trainer.network, dict(request.extra))
        trainer.hold_as_teacher()
        first_step = (request.round - 1) * self._plan.training.steps_per_round
        if halfway:
            trainer.go_back(halfway)
        else:
            # The schedule follows the run's rounds, also if this site missed some.
            trainer.steps_done = first_step
            trainer.begin_model()
        numbers |= self._take_steps(request.round, turn_key, weights, stop)
        result = self._result(received, numbers, steps=trainer.steps_done - first_step, turn_key=turn_key)
        # A result that counts is never ahead of the state behind it.
        self._settle()
        stopped = stop()
        not_kept = None if stopped else self._keep(result) or trainer.not_kept
        if self._private:
            if stopped or not_kept:  # it would be trained anew, and leave a second time with other noise
                raise TrainingError(f"the update stays here, as it is not kept ({not_kept or 'the job is stopped'})")
            self._private.end()
        if not_kept:
            numbers["not_kept"] = not_kept
        return result

    def _take_steps(self, round_number: int, turn_key: str, weights: Weights, stop: Stop) -> dict[str, Any]:
        """Train to the round's end; return loss and seconds."""
        trainer, total = self.trainer, self._plan.total_steps
        last_step = round_number * self._plan.training.steps_per_round

        def on_step(done: int, loss: Callable[[], float]) -> None:
            if done == last_step or self._progress.is_due:
                told = {} if self._private else {"loss": loss()}
                self._progress.report(phase="training", round=round_number, step=done, steps=total, **told)

        started = time.monotonic()
        # The checkpoint is written meanwhile.
        loss = trainer.train(last_step - trainer.steps_done, on_step, stop, turn_key, wait=False)
        if self._personal:
            self._personal.train(weights, last_step, turn_key, stop)
        # A mean over training patients without noise would void the promise to each.
        return {**({} if self._private else {"loss": loss}), "train_s": time.monotonic() - started}

    def _result(self, received: Weights, numbers: dict[str, Any], *, steps: int, turn_key: str) -> TrainResult:
        trainer = self.trainer
        trained = trainer.weights()
        self._kept_locally = {name: trained[name] for name in self._algorithm.kept_locally(trainer.network)}
        delta = {n: trained[n] - v if v.is_floating_point() else trained[n] for n, v in received.items()}
        extra = self._gradient_hook.finish(trainer.network) if self._gradient_hook else {}
        return TrainResult(
            delta=self._compressor.compress(delta),
            extra=extra,
            cases=len(trainer.cases.train),
            steps=steps,
            numbers=numbers,
            turn_key=turn_key,
        )

    def _settle(self) -> None:
        self.trainer.settle()
        if self._personal:
            self._personal.settle()

    def _keep(self, result: TrainResult) -> str | None:
        """Keep a result and its state; return a failure's reason."""
        parts = {"left_over": self._compressor.left_over, "norm": self._kept_locally}
        if self._gradient_hook:
            parts["correction"] = self._gradient_hook.state
        try:
            self._state.write(result, parts)
        except OSError as error:
            self._reporter.note(f"the state of this site could not be kept: {error}", logging.ERROR)
            return error.strerror or str(error)
        return None

    def _weights_here(self, received: Weights) -> Weights:
        """Return the global weights as this site uses them.

        Weights that do not travel are added, and those kept locally are replaced (FedBN).
        """
        return {**self._untrained, **received, **self._kept_locally}

    # --- score

    def validate(self, request: EvaluateRequest, stop: Stop, keep_as: str | None = None) -> LocalScore:
        """Score the model."""
        weights = self._weights_here({name: _full_precision(value) for name, value in request.weights.items()})
        score = self.scoring.score(request, weights, self._personal, stop)
        if request.keep and self._federation.evaluation.doubtful_labels and not stop():
            self._check_labels(weights, stop)
        kept = self._kept(request, weights, stop) if (keep_as or request.keep) and not stop() else None
        if kept is None or stop():
            return score
        if keep_as:
            self._keep_model(keep_as, kept.weights)
        # A gain tells of training patients, and has no noise.
        gain = {"gain": dict(kept.gain)} if kept.gain and not self._private else {}
        return replace(score, numbers=score.numbers | gain, own=kept.kind != FEDERATED)

    def _check_labels(self, weights: Weights, stop: Stop) -> None:
        """List cases whose labels disagree with the model, for this site only."""
        self.trainer.load_weights(weights)
        path = self._context.state / DOUBTS_FILE
        try:
            check_labels(self.trainer, path, self._progress, self._reporter, stop)
        except (OSError, OncofedError) as error:
            self._reporter.note(f"labels could not be compared with the model's answers: {error}", logging.ERROR)

    def _kept(self, request: EvaluateRequest, weights: Weights, stop: Stop) -> Kept | None:
        """Return the model that serves this site; None: there is no other one to keep.

        Unless sites choose, with FedBN that is the one with local normalisation, with Ditto the personal one.
        """
        spec, others = self._federation.personalization, dict[str, Weights]()
        if self._personal:
            others[PERSONAL] = self._personal.weights()
        if spec is None or not request.keep:
            return Kept(PERSONAL, others[PERSONAL]) if others else Kept(FEDERATED, weights)
        if self._kept_locally:
            received = {name: _full_precision(request.weights[name]) for name in self._kept_locally}
            others[AVERAGED_NORMS] = {**weights, **received}
        choice = Personalization(
            spec=spec,
            trainer=self.trainer,
            context=self._context,
            validation=self.scoring.validation,
            progress=self._progress,
            reporter=self._reporter,
        )
        try:
            return choice.choose(weights, others, stop)
        except (OSError, OncofedError) as error:
            self._reporter.note(f"models could not be compared, the federated one is kept: {error}", logging.ERROR)
            return Kept(FEDERATED, weights)

    def _keep_model(self, name: str, weights: Weights) -> None:
        """Keep a model for the site's own use."""
        folder = self._context.state / OWN_MODEL
        self.trainer.load_weights(weights)
        try:
            keep_model(
                folder,
                self.trainer.weights(),
                name=name,
                site=self._context.site,
                plan=self._plan,
                federation=self._federation,
            )
        except OSError as error:
            self._reporter.note(f"the model could not be kept in {folder}: {error}", logging.ERROR)
        else:
            self._reporter.note(f"the model is kept in {folder}", logging.INFO)


def _full_precision(value: torch.Tensor) -> torch.Tensor:
    """Return a received weight in the network's type.

    That is never bfloat16.
    """
    return value.float() if value.dtype is torch.bfloat16 else value


def _counts(trainer: Trainer) -> dict[str, Any]:
    """Return what may leave a site before training."""
    cases = trainer.cases
    return {
        "train": len(cases.train),
        "validation": len(cases.validation),
        "test": len(cases.test),
        "device": trainer.device.type,
        "version": oncofed.__version__,
    }
