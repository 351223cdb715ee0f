"""What a site does in its turns: prepares its data, trains the global model, scores it.

Nothing here knows FLARE: a site's turns are taken in its job's process, or in one that has no network.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.kept_job import write_kept_job
from oncofed.artifacts.training_profile import site_profile
from oncofed.client.case_sums import patients_of_sums, sums_of
from oncofed.client.folder import CASES_FILE, OWN_MODEL, sole_owner
from oncofed.client.state import SiteState
from oncofed.client.told_patients import PATIENTS_OF_SUMS
from oncofed.data.cases import Case, usable_cases
from oncofed.data.grouping import told
from oncofed.data.prepared import plan_cache
from oncofed.data.sample import sample_cases
from oncofed.messages.compression import Compressor
from oncofed.messages.requests import SumsAsked
from oncofed.models.weights import Weights, digest_of, exchanged_names
from oncofed.privacy.evaluations import evaluation_numbers
from oncofed.private_files import open_private
from oncofed.training import Plan, Trainer, start_trainer
from oncofed.training.checkpoint import is_whole
from oncofed.training.gradient_hook import PersonalHook

Stop = Callable[[], bool]

_SECONDS_BETWEEN_PROGRESS = 0.5
# In the site's own folder of the job; only its table of test cases names any.
_CHECKPOINT_FILE = "checkpoint.safetensors"
_PERSONAL_FILE = "personal.safetensors"


class ProgressReporter(Protocol):
    """Who is told how the work goes."""

    def progress(self, **values: Any) -> None:
        """Take how far it is: ``phase``, and where they are known ``round``, ``step``, ``steps``, ``loss``."""

    def note(self, text: str, level: int) -> None:
        """Take a line for the site's own log, with a level of ``logging``; it may name cases and files."""


@dataclass(frozen=True)
class SiteContext:
    """Where a site's part of a job happens.

    Attributes:
        site: its name.
        data: folder of the dataset.
        state: folder of what must outlive a process.
        initial: file of weights that the job brings along; None where its seed gives them.
        against: file of a model that the job's is compared with; None where it is compared with none.
    """

    site: str
    data: Path
    state: Path
    initial: Path | None
    against: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a site made of a turn. ``asked`` names the turn: its round, and a digest of the model that it began with."""

    asked: str
    delta: Weights
    extra: Weights
    cases: int
    steps: int
    numbers: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """All of it but the tensors."""
        return {"asked": self.asked, "cases": self.cases, "steps": self.steps, "numbers": self.numbers}


class LocalTraining(Protocol):
    """Whoever takes a site's turns."""

    def prepare(self) -> dict[str, Any]:
        """Check and load the site's cases; return what the server may know of them.

        Among it is ``profile``, which leaves where the server asks for it: see ``training_profile``.
        """

    def train(self, sent: Weights, number: int, beside: Weights, stop: Stop) -> TrainResult:
        """Score the global model on validation cases, train it, and return what changed.

        Args:
            sent: the model, as it travels.
            number: of the round.
            beside: what the strategy sends with it.
            stop: asked now and then; true ends the turn early.
        """

    def validate(
        self, sent: Weights, split: str, stop: Stop, keep_as: str | None = None, asked: SumsAsked | None = None
    ) -> dict[str, Any]:
        """Score the global model on the cases of a split, and return approved numbers.

        Args:
            sent: the model, as it travels.
            split: "validation" or "test".
            stop: asked now and then; true ends it early.
            keep_as: name under which the site keeps the model for its own use; None: it does not.
            asked: which counts and sums the server wants beside the score; None: none. Beside them is of whom they are,
                for the site alone (``told_patients.PATIENTS_OF_SUMS``).
        """

    def close(self) -> None:
        """Let go of memory and files."""


class InProcessTraining:
    """Takes a site's turns in this process; see ``LocalTraining``.

    Args:
        plan: what is trained.
        federation: how the sites work together.
        place: where.
        tell: who is told how it goes.
    """

    def __init__(self, plan: Plan, federation: FederationPlan, place: SiteContext, tell: ProgressReporter) -> None:
        self._plan, self._federation, self._place, self._tell = plan, federation, place, tell
        self._held = contextlib.ExitStack()
        self._trainer: Trainer | None = None
        self._personal: Trainer | None = None
        self._personal_hook: PersonalHook | None = None
        self._algorithm = federation.algorithm()
        self._gradient_hook = self._algorithm.gradient_hook()
        self._compressor = Compressor(federation.exchange.update)
        self._state = SiteState()
        self._validation_cases: tuple[Case, ...] = ()
        self._profile: dict[str, Any] = {}
        self._fixed: Weights = {}
        self._own_norm: Weights = {}
        self._answer: TrainResult | None = None
        self._last_progress = 0.0
        # How long it took to score the last model: what comes and goes in an instant is not told.
        self._looked_s = math.inf

    @property
    def trainer(self) -> Trainer:
        """The site's trainer, once ``prepare`` made it."""
        assert self._trainer, "prepare comes first"
        return self._trainer

    def prepare(self) -> dict[str, Any]:
        """Check and load the cases, unless that was done."""
        if self._trainer is None:
            try:
                self._trainer = self._prepared()
            except BaseException:
                self._held.close()
                raise
        return {**_counts(self._trainer), "profile": self._profile}

    def close(self) -> None:
        """Let go of the memory, and of the job's folder."""
        self._held.close()
        self._trainer = self._personal = self._answer = None

    def _prepared(self) -> Trainer:
        place, plan = self._place, self._plan

        def checked(done: int, total: int) -> None:
            self._progress(always=False, phase="checking data", step=done, steps=total)

        def prepared(done: int, total: int) -> None:
            self._progress(always=False, phase="loading data", step=done, steps=total)

        self._progress(phase="checking data")
        task = plan.build_task()
        usable = usable_cases(
            place.data, plan.data, plan.task.vocabulary, plan.seed, place.site, checked, task.label_kind
        )
        for line in told((problem.case, problem.what) for problem in usable.set_aside):
            self._tell.note(f"set aside {line}", logging.WARNING)
        self._progress(phase="loading data")
        self._held.enter_context(sole_owner(place.state))
        self._set_broken_state_aside()
        self._state = SiteState(place.state)
        trainer = self._held.enter_context(
            start_trainer(plan, usable.cases, place.site, place.state / _CHECKPOINT_FILE)
        )
        images = ((case.patient, usable.facts.get(case)) for case in usable.cases.train)
        self._profile = site_profile(((patient, entry) for patient, entry in images if entry), plan.data)
        self._tell.note(plan_cache(usable.cases.train, trainer.input, trainer.device).note, logging.INFO)
        trainer.prepare(prepared)
        trainer.gradient_hook = self._gradient_hook
        self._personal_hook = self._algorithm.personal_hook()
        if self._personal_hook:
            kept = place.state / _PERSONAL_FILE
            self._personal = Trainer(plan, usable.cases, place.site, trainer.device, kept)
            self._held.callback(self._personal.close)
            self._held.callback(self._personal.settle)
            self._personal.gradient_hook = self._personal_hook
        most = self._federation.evaluation.most_cases
        self._validation_cases = sample_cases(usable.cases.validation, most, plan.seed)
        if len(self._validation_cases) < len(usable.cases.validation):
            drawn, there = len(self._validation_cases), len(usable.cases.validation)
            note = f"each round is scored on {drawn} of {there} validation cases"
            self._tell.note(f"{note} (evaluation.most_cases)", logging.INFO)
        self._fixed = self._weights_that_stay(trainer)
        self._recall()
        return trainer

    def _set_broken_state_aside(self) -> None:
        """Begin with the global model where what an earlier process left is broken, by a bad disk for example."""
        for path in self._place.state.glob("*.safetensors"):
            if not is_whole(path):
                self._tell.note(f"{path} is broken and set aside: this site begins anew", logging.ERROR)
                path.replace(path.with_suffix(".broken"))

    def _weights_that_stay(self, trainer: Trainer) -> Weights:
        """Return the weights that no site trains: every site has them from the job itself, so they do not travel."""
        travelling = exchanged_names(trainer.network)
        brought = self._place.initial
        start = load_file(brought) if brought else self._plan.initial_weights()
        return {name: value for name, value in start.items() if name not in travelling}

    def _recall(self) -> None:
        """Take up what an earlier process of this site left."""
        self._compressor.left_over = self._state.part("left_over")
        self._own_norm = self._state.part("norm")
        if self._gradient_hook:
            self._gradient_hook.restore(self._state.part("correction"))
        if self._state.facts:
            self._answer = _answer_in(self._state)

    def _remember(self, answer: TrainResult) -> str | None:
        """Keep what this site knows now; return why that failed, or None."""
        parts = {"left_over": self._compressor.left_over, "norm": self._own_norm}
        parts |= {"delta": answer.delta, "extra": answer.extra}
        if self._gradient_hook:
            parts["correction"] = self._gradient_hook.state
        try:
            self._state.write(parts, answer.facts)
        except OSError as error:
            self._tell.note(f"the state of this site could not be kept: {error}", logging.ERROR)
            return error.strerror or str(error)
        return None

    def train(self, sent: Weights, number: int, beside: Weights, stop: Stop) -> TrainResult:
        """Take the turn, or return what an earlier process made of the same one."""
        trainer = self.trainer
        sent = {name: _full(value) for name, value in sent.items()}
        asked = f"{number} {digest_of(sent)}"
        given_before = self._given_before(asked)
        if given_before:
            return given_before
        weights = self._with_own_norm({**self._fixed, **sent})
        steps, total = self._plan.training.steps_per_round, self._plan.total_steps
        last = number * steps
        # A process before this one may have been killed in this very turn: then its state goes on, not the global one.
        halfway = trainer.weights() if trainer.unfinished == asked else None
        numbers = self._evaluate("validation", stop, weights)
        if self._gradient_hook:
            self._gradient_hook.start(trainer.network, beside)
        if halfway:
            trainer.load_weights(halfway)
        else:
            # The schedule follows the rounds of all, also of a site that missed some.
            trainer.steps_done = last - steps

        def on_step(done: int, loss: Callable[[], float]) -> None:
            if self._progress_is_due(always=done == last):
                self._progress(phase="training", round=number, step=done, steps=total, loss=loss())

        started = time.monotonic()
        # Its checkpoint is written beside what follows.
        numbers["loss"] = trainer.train(last - trainer.steps_done, on_step, stop, asked, wait=False)
        if self._personal:
            self._train_personal(self._personal, weights, last, asked, stop)
        numbers["train_s"] = time.monotonic() - started
        trained = trainer.weights()
        self._own_norm = {name: trained[name] for name in self._norms(trainer)}
        delta = {n: trained[n] - v if v.is_floating_point() else trained[n] for n, v in sent.items()}
        extra = self._gradient_hook.finish(trainer.network) if self._gradient_hook else {}
        compressed = self._compressor.compress(delta)
        taken = trainer.steps_done - (last - steps)
        answer = TrainResult(asked, compressed, extra, len(trainer.cases.train), taken, numbers)
        # An answer that counts is never ahead of the state that it came of.
        for kept in filter(None, (trainer, self._personal)):
            kept.settle()
        if not stop():
            self._answer = answer
            not_kept = self._remember(answer) or trainer.not_kept
            if not_kept:
                numbers["not_kept"] = not_kept
        return answer

    def _given_before(self, asked: str) -> TrainResult | None:
        """Return this site's answer to a turn that it is asked for again, since a process died in between.

        A server that is killed while it keeps a round goes on from the one before: then that is asked for again, of
        sites that may have taken the next turn already.
        """
        if self._answer and self._answer.asked == asked:
            return self._answer
        previous = self._state.previous(asked=asked)
        return _answer_in(previous) if previous else None

    def _train_personal(self, personal: Trainer, towards: Weights, last: int, asked: str, stop: Stop) -> None:
        """Train this site's own model up to the same step, held near the global one (Ditto)."""
        if personal.steps_done == 0:
            personal.load_weights(towards)
        if personal.unfinished != asked:
            personal.steps_done = last - self._plan.training.steps_per_round
        assert self._personal_hook
        self._personal_hook.start(personal.network, {})
        self._personal_hook.hold_near(towards)
        personal.train(last - personal.steps_done, None, stop, asked, wait=False)

    def _norms(self, trainer: Trainer) -> set[str]:
        return self._algorithm.kept_locally(trainer.network)

    def _with_own_norm(self, weights: Weights) -> Weights:
        """Return the global weights with this site's own normalisation layers (FedBN; Li et al., ICLR 2021)."""
        return {**weights, **self._own_norm}

    def validate(
        self, sent: Weights, split: str, stop: Stop, keep_as: str | None = None, asked: SumsAsked | None = None
    ) -> dict[str, Any]:
        """Score the model."""
        weights = self._with_own_norm({**self._fixed, **{n: _full(v) for n, v in sent.items()}})
        found: list[tuple[str, Any]] = []
        numbers = self._evaluate(split, stop, weights, found)
        if asked and not stop():
            against = self._found_by_the_other(stop) if split == "test" else None
            sums = sums_of(self.trainer.task, split, found, against, asked)
            if sums:
                numbers |= {**sums, PATIENTS_OF_SUMS: patients_of_sums(self.trainer.task, found)}
            if against is not None:
                self.trainer.load_weights(weights)
        if split == "test" and self._personal:
            evaluation = self._personal.evaluate(self._personal.cases.test, stop, True)
            numbers["personal"] = evaluation_numbers(evaluation)
        if keep_as and not stop():
            self._keep_model(keep_as)
        return numbers

    def _found_by_the_other(self, stop: Stop) -> list[tuple[str, Any]] | None:
        """Return what the model that the job compares with finds of each test case; None where there is none."""
        if self._place.against is None:
            return None
        trainer, found = self.trainer, list[tuple[str, Any]]()
        trainer.load_weights(load_file(self._place.against))
        trainer.evaluate(trainer.cases.test, stop, False, None, found)
        return None if stop() else found

    def _keep_model(self, name: str) -> None:
        """Keep the model as it serves this site: with its own normalisation (FedBN), or its personal one (Ditto)."""
        folder = self._place.state / OWN_MODEL
        weights = (self._personal or self.trainer).weights()
        unfinished = folder.with_suffix(".unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o700)
            save_file(weights, unfinished / "model.safetensors")
            self._plan.write_bundle(unfinished, name, weights)
            write_kept_job(unfinished, name, self._place.site, self._plan, self._federation, weights)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.replace(folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises the second where a disk is full
            shutil.rmtree(unfinished, ignore_errors=True)
            self._tell.note(f"the model could not be kept in {folder}: {error}", logging.ERROR)
        else:
            self._tell.note(f"the model is kept in {folder}", logging.INFO)

    def _evaluate(
        self, split: str, stop: Stop, weights: Weights, keep: list[tuple[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Put a model into the trainer and score it on this site's cases; ``keep`` gets what is found of each."""
        trainer = self.trainer
        phase = "testing" if split == "test" else "validating"
        if split == "test" or self._looked_s >= _SECONDS_BETWEEN_PROGRESS:
            self._progress(phase=phase)
        started = time.monotonic()

        def scored(done: int, total: int) -> None:
            if time.monotonic() - started >= _SECONDS_BETWEEN_PROGRESS:
                self._progress(always=False, phase=phase, step=done, steps=total)

        cases = trainer.cases.test if split == "test" else self._validation_cases
        trainer.load_weights(weights)
        evaluation = trainer.evaluate(cases, stop, split == "test", scored, keep)
        self._looked_s = time.monotonic() - started
        if evaluation.by_case:
            self._note_cases(evaluation.by_case)
        return {"evaluation": evaluation_numbers(evaluation), "validate_s": time.monotonic() - started}

    def _note_cases(self, by_case: Sequence[tuple[str, dict[str, float | str]]]) -> None:
        """Write what the last tested model does on each case, for this site alone."""
        path = self._place.state / CASES_FILE
        columns = list(dict.fromkeys(name for _, figures in by_case for name in figures))
        try:
            with open(path, "w", newline="", encoding="utf-8", opener=open_private) as file:
                table = csv.DictWriter(file, ["case", *columns])
                table.writeheader()
                table.writerows({"case": case, **figures} for case, figures in by_case)
        except OSError as error:
            self._tell.note(f"{path} could not be written: {error}", logging.ERROR)

    def _progress_is_due(self, always: bool) -> bool:
        return always or time.monotonic() - self._last_progress >= _SECONDS_BETWEEN_PROGRESS

    def _progress(self, always: bool = True, **values: Any) -> None:
        """Tell how far it is, at most twice a second unless ``always``."""
        if self._progress_is_due(always):
            self._last_progress = time.monotonic()
            self._tell.progress(**values)


def _answer_in(state: SiteState) -> TrainResult:
    return TrainResult(delta=state.part("delta"), extra=state.part("extra"), **state.facts)


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
