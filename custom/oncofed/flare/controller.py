"""The server's side: rounds of training, evaluation at every site, the best model kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cryptography.x509 import load_pem_x509_certificate
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.utils.tensor_disk_offload_context import cleanup_tensor_disk_offload, setup_tensor_disk_offload
from nvflare.widgets.info_collector import InfoCollector
from safetensors.torch import load_file
from torch import Tensor

from oncofed.algorithms import Update
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.schedule import Buffered, PeerAveraged, Sequential
from oncofed.artifacts.provenance import PROVENANCE_FILE, write_provenance
from oncofed.artifacts.training_profile import PROFILE_FILE, SiteProfile, bins_of, write_training_profile
from oncofed.artifacts.training_profile import together as all_profiles
from oncofed.client.folder import sole_owner
from oncofed.errors import FederationError, OncofedError
from oncofed.flare import wire
from oncofed.flare.communicator import PullCommunicator, SiteTask
from oncofed.flare.folders import against_model, hand_over, initial_model, note_end, state_folder
from oncofed.flare.runtime.malloc import forget_what_stays
from oncofed.flare.security.outbound_filter import name_and_person
from oncofed.flare.security.revocation import list_and_root, read_revoked
from oncofed.flare.transfer.decomposer import SMALLEST_BYTES, begin_transfer, cell_tls_context, end_transfer
from oncofed.flare.transfer.server import TransferServer
from oncofed.flare.wire import TASK_COMBINE, TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE
from oncofed.messages.requests import SumsAsked
from oncofed.models.serialized import write_tensors
from oncofed.models.weights import WeightLayout, Weights, digest_of, layout_of, weights_of
from oncofed.privacy.outbound import progress_that_may_leave
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, STATS_GROUP, EventLog, new_event
from oncofed.rounds.intake import UpdateIntake, counts
from oncofed.rounds.pooled_scores import calibration_of, together
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState, read_run_state, write_run_state
from oncofed.rounds.selection import has_stalled, selected_score
from oncofed.tasks.calibration import CALIBRATION_FILE, Calibration
from oncofed.training import Plan

# The server's own process looks at its state this often, when nothing happens.
_LOOK_SECONDS = 0.5
_SECONDS_BETWEEN_SYNCS = 2.0
_SECONDS_BETWEEN_TRIES = 5.0
# Sites of which nothing was heard count as lost after ``rounds.return_s``, within these bounds: their processes take
# time to start, also beside a server that was started again.
_SHORTEST_COMING_SECONDS, _LONGEST_COMING_SECONDS = 30.0, 90.0
_LARGE_MODEL = 32 << 20
# In models; with what a strategy asks for beside an update it is two.
_LARGEST_UPDATE = 3


class StoppedError(Exception):
    """The job was aborted."""


class FederatedTraining(Controller):
    """Runs a job's rounds.

    Every site checks and loads its data when it comes. In each round the sites that are asked score the global model on
    their validation cases, train it, and send what they changed; the strategy makes the next model of that. After the
    last round the sites score the final model too; the best one, by the job's rule, is scored once more on test cases.

    What is needed to go on is kept after each round: a server that was killed continues with the round after it.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        federation: the job's ``FederationPlan`` as a dictionary.
        evaluate_only: score the model that the job brings along on every site's test cases, and train nothing.
        calibration: of that model, a ``Calibration`` as a dictionary; None: not known.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        federation: dict[str, Any],
        evaluate_only: bool = False,
        calibration: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._calibration = Calibration.model_validate(calibration) if calibration else None
        self._plan = Plan.model_validate(plan)
        self._federation = FederationPlan.model_validate(federation)
        self._evaluate_only = evaluate_only
        self._desk = PullCommunicator()
        self._held = contextlib.ExitStack()
        self._log: EventLog | None = None
        self._state = self._startup = Path()
        self._of_job: dict[str, Any] = {}
        self._before: set[str] = set()
        self._cases: dict[str, dict[str, Any]] = {}
        self._profiles: dict[str, SiteProfile] = {}
        self._told_lost: set[str] = set()
        self._synced = 0.0
        self._saving: threading.Thread | None = None

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Take our own desk in place of FLARE's communicator."""
        del communicator
        super().set_communicator(self._desk)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the run's record before the first round."""
        wire.register_tensors()
        self._state = state_folder(fl_ctx)
        self._held.enter_context(sole_owner(self._state))
        (self._state / MODELS_FOLDER).mkdir(parents=True, exist_ok=True)
        self._log = EventLog(self._state / EVENTS_FILE)
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        self._startup = Path(workspace.get_root_dir()) / "startup"
        name, person = name_and_person(fl_ctx)
        self._of_job = {"id": str(fl_ctx.get_job_id()), "job": name, "submitted_by": person}
        self._offload = setup_tensor_disk_offload(fl_ctx.get_engine(), True, str(fl_ctx.get_job_id()))

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Close the run's record, and put it where FLARE collects what a job leaves."""
        self._finish_saving()
        note_end(fl_ctx)
        if self._log:
            self._log.close()
        end_transfer(fl_ctx.get_engine().get_cell())
        cleanup_tensor_disk_offload(fl_ctx.get_engine(), self._offload)
        hand_over(fl_ctx)
        self._held.close()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Record a site's progress, and that a site's processes are gone; tell who asks how the run goes."""
        if event_type == wire.PROGRESS_EVENT:
            self._record_progress(fl_ctx)
        elif event_type == InfoCollector.EVENT_TYPE_GET_STATS and self._log:
            told = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            told.set_info(STATS_GROUP, {"events": self._log.digest()})
        elif event_type == EventType.CLIENT_DISCONNECTED:
            self._desk.lose(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)), "its process ended")

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop an answer that nobody asked for."""
        self._record("dropped", site=client.name, task=task_name)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run all rounds; a failure ends the job with its reason in the run's record."""
        self._abort, self._ctx = abort_signal, fl_ctx
        try:
            self._run()
        except StoppedError:
            self._record("stopped")
        except (OncofedError, OSError) as error:
            reason = f"the server: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            self._record("failed", reason=reason)
            self.system_panic(reason, fl_ctx)
        except Exception as error:
            self._record("failed", reason=f"the server: {type(error).__name__}; its own log says more")
            raise

    def _run(self) -> None:
        plan, federation = self._plan, self._federation
        memory = read_run_state(self._state)
        layout, initial = (plan.layout(), {}) if memory else self._initial()
        self._parameters, self._travelling = layout.trained, layout.travelling
        classes = list(plan.task.classes.values())
        self._door = UpdateIntake(federation, layout, classes, self._cases, self._record)
        self._desk.tidy = layout.nbytes > _LARGE_MODEL
        self._let_sites_come(layout.nbytes)
        strategy = federation.algorithm(self._parameters)
        if memory:
            strategy.restore(memory.strategy)
            self._before = set(memory.sites)
            self._record("resumed", round=memory.round + 1)
        else:
            memory = RunState(initial)
        del initial
        self._record(
            "started",
            sites=self._sites(),
            rounds=0 if self._evaluate_only else federation.rounds.number,
            steps_per_round=plan.training.steps_per_round,
            metric=plan.build_task().metric,
            strategy=federation.strategy.name,
        )
        self._prepare()
        if self._evaluate_only:
            self._store(memory.model, 0)
            self._vouch(memory.model, 0, 0)
            self._test(memory.model, 0, None)
            return
        for number in range(memory.round + 1, federation.rounds.number + 1):
            if has_stalled(federation.evaluation, memory):
                self._record("early_stop", round=memory.round, best_round=memory.best_round)
                break
            self._train(number, memory, strategy)
        turn = self._score(memory.model, memory.round, "validation")
        self._judge(memory, memory.round, turn)
        matrix = self._cross_site(memory) if federation.evaluation.cross_site else None
        memory.model = {}  # the last one; the best may be another, and one of them is enough to hold
        best = load_file(self._state / MODELS_FOLDER / BEST_MODEL)
        self._calibrate(best, memory.best_round)
        self._vouch(best, memory.round, memory.best_round)
        self._test(best, memory.best_round, memory.best_score, matrix)

    def _let_sites_come(self, nbytes: int) -> None:
        """Let sites fetch large models, and bring updates, over connections of their own."""
        cell = self._ctx.get_engine().get_cell()
        context = cell_tls_context(cell, str(self._ctx.get_job_id()), server=True)
        if context and nbytes >= SMALLEST_BYTES:
            largest = _LARGEST_UPDATE * nbytes + _LARGE_MODEL
            begin_transfer(cell, TransferServer(self._state, context, self._desk.is_welcome, largest))

    def _vouch(self, model: Weights, rounds: int, best_round: int) -> None:
        """Write where the model comes from, beside it."""
        known = ("train", "validation", "test", "dataset", "policy")
        sites = {s: {k: v for k, v in self._cases[s].items() if k in known} for s in sorted(self._cases)}
        settings = {"plan": self._plan.model_dump(mode="json"), "federation": self._federation.model_dump(mode="json")}
        facts = {
            **self._of_job,
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            "network": self._plan.model.network,
            "strategy": self._federation.strategy.name,
            "seed": self._plan.seed,
            "rounds": rounds,
            "best_round": best_round,
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "sites": sites,
        }
        write_provenance(self._state / MODELS_FOLDER / PROVENANCE_FILE, model, facts, self._startup)
        told = [profile for profile in self._profiles.values() if profile]
        if told and not self._evaluate_only:
            write_training_profile(self._state / MODELS_FOLDER, all_profiles(told, self._plan.data))

    def _beside(self) -> dict[str, str]:
        """Return the small files that belong to the model, contents by name."""
        files = [self._state / MODELS_FOLDER / name for name in (PROFILE_FILE, CALIBRATION_FILE)]
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}

    def _initial(self) -> tuple[WeightLayout, Weights]:
        """Return what the model's weights are like, and those that the job brings along or else its seed gives."""
        brought = initial_model(self._ctx)
        if brought is None:
            network = self._plan.build_network()
            return layout_of(network), {name: value.clone() for name, value in weights_of(network).items()}
        return self._plan.layout(), self._fitting(brought)

    def _fitting(self, brought: Path) -> Weights:
        """Return the weights of a file that the job brings along."""
        layout, model = self._plan.layout(), load_file(brought)
        if {n: v.shape for n, v in model.items()} != {n: v.shape for n, v in layout.weights.items()}:
            raise FederationError("a model that the job brings along is not one of its network")
        return model

    def _prepare(self) -> None:
        """Let every site load its data, also those that come later; wait for those that the job started with."""
        started = time.monotonic()
        expected = set(self._sites())

        def message(site: str) -> Shareable:
            self._record("task", task=TASK_PREPARE, round=0, split="", sites=[site])
            question = wire.plain_message()
            if not self._evaluate_only:
                wire.ask_for_profile(question)
            return question

        def answered(site: str, result: Shareable, question: SiteTask) -> None:
            try:
                numbers = counts(result, bins_of(self._plan.data))
            except FederationError as error:
                self._door.reasons[site] = str(error)
                self._record("excluded", site=site, reason=str(error))
                return
            self._profiles[site] = numbers.pop("profile", {})
            self._cases[site] = numbers
            self._record("joined", site=site, cases=numbers, started=time.monotonic() - started)

        self._desk.ask(SiteTask(TASK_PREPARE, 0, None, message, answered))
        quorum = self._federation.rounds.quorum or len(expected)
        patience = min(max(self._federation.rounds.return_s, _SHORTEST_COMING_SECONDS), _LONGEST_COMING_SECONDS)

        def ready() -> bool:
            if time.monotonic() - started > patience:
                for site in expected - self._desk.known():
                    self._desk.lose(site, "it did not come back")
                if self._time_is_up(started) and len(self._cases) >= quorum:
                    return True  # who still loads its data joins later
            there = [s for s in expected if s in self._cases or s in self._door.reasons or s in self._desk.lost]
            return len(there) == len(expected) and len(self._cases) >= quorum

        self._wait_until(ready, "before the first round", lambda: len(self._cases), lambda: quorum, coming=expected)
        self._record("ready", seconds=time.monotonic() - started, sites=dict(sorted(self._cases.items())))
        forget_what_stays()

    def _train(self, number: int, memory: RunState, strategy: Any) -> None:
        """Run one round and keep what follows from it."""
        federation = self._federation
        asked = self._draw(number)
        current = RoundState()
        self._door.admit_late(current, number)
        moved: Weights = {}
        updates: list[Update] = []
        if isinstance(strategy.schedule, Sequential):
            moved = self._cycle(number, asked, memory.model, current)
        elif isinstance(strategy.schedule, PeerAveraged):
            moved, current = self._swarm(number, asked, memory)
        else:
            updates = self._gather(number, asked, memory, strategy, current)
        self._judge(memory, number - 1, current)
        if federation.evaluation.cross_site:
            memory.last, memory.last_from = {u.site: u for u in current.updates}, dict(memory.model)
        if updates:
            # The state that is being written is the one that this changes.
            self._finish_saving()
            moved = strategy.aggregate(memory.model, updates, max(len(self._cases), len(updates)))
        memory.model, memory.round, memory.strategy = moved, number, dict(strategy.state)
        memory.sites = sorted(self._cases)
        self._save(memory)
        self._record(
            "round",
            round=number,
            seconds=time.monotonic() - current.started,
            slowest_site_s=current.slowest_s,
            losses=current.losses,
            cases={update.site: update.cases for update in current.updates},
            participation=current.participation(asked, self._desk.lost),
        )

    def _gather(
        self, number: int, asked: list[str], memory: RunState, strategy: Any, current: RoundState
    ) -> list[Update]:
        """Let sites train in a round, and return the updates that count; nobody holds the model that was sent then."""
        given, schedule = self._door.given(number, memory.model), strategy.schedule
        needed = schedule.size if isinstance(schedule, Buffered) else None

        def answered(site: str, result: Shareable, question: SiteTask) -> None:
            self._door.take(site, result, question, current, given)

        message = partial(self._turn, model=self._outgoing(memory.model), number=number, beside=strategy.for_clients())
        question = self._desk.ask(SiteTask(TASK_TRAIN, number, set(asked), message, answered, needed is not None))
        self._wait_for_round(question, current, number, asked, needed)
        self._desk.close(question)
        updates = self._door.without_outliers(current, memory)
        if not updates:
            raise FederationError(self._too_few(f"round {number} has no update that counts", 0, 1))
        return updates

    def _turn(self, site: str, model: Weights, number: int, beside: Weights | None = None) -> Shareable:
        """Return the message with which a site trains in a round, and why its last update was not taken."""
        message = wire.weights_message(model, number, "validation", beside)
        if site in self._door.reasons:
            wire.tell_refusal(message, self._door.reasons.pop(site))
        self._record("task", task=TASK_TRAIN, round=number, split="validation", sites=[site])
        return message

    def _cycle(self, number: int, asked: list[str], model: Weights, current: RoundState) -> Weights:
        """Let one site after the other train; who is not there, or not done at its deadline, is left out."""
        order = random.Random(f"{self._plan.seed} {number}").sample(asked, len(asked))  # noqa: S311 - not a secret
        given = self._door.given(number, model)

        def answered(site: str, result: Shareable, question: SiteTask) -> None:
            self._door.take(site, result, question, current, given)

        for turn in order:
            if turn in self._desk.lost:
                continue
            outgoing, before = model, len(current.updates)

            def message(site: str, weights: Weights = outgoing) -> Shareable:
                self._record("task", task=TASK_TRAIN, round=number, split="validation", sites=[site])
                return wire.weights_message(self._outgoing(weights), number)

            question = self._desk.ask(SiteTask(TASK_TRAIN, number, {turn}, message, answered))
            self._wait_for_one(question, turn)
            self._desk.close(question)
            if len(current.updates) > before:
                delta = current.updates[-1].delta
                model = _moved(model, delta)
        if not current.updates:
            raise FederationError(self._too_few(f"round {number} has no update that counts", 0, 1))
        return model

    def _swarm(self, number: int, asked: list[str], memory: RunState) -> tuple[Weights, RoundState]:
        """Let sites give their updates to one of them, which answers with the mean; to another one where it is lost."""
        outgoing, given = self._outgoing(memory.model), self._door.given(number, memory.model)
        order = random.Random(f"{self._plan.seed} collector {number}").sample(asked, len(asked))  # noqa: S311
        started, failed, doubtful = time.monotonic(), set[str](), set[str]()
        while True:
            collector = self._collector([site for site in order if site not in failed], number, started)
            current = RoundState(started, collector=collector)

            def message(site: str, collector: str = collector) -> Shareable:
                weights = self._turn(site, outgoing, number)
                wire.name_collector(weights, collector)
                return weights

            def answered(site: str, result: Shareable, question: SiteTask, current: RoundState = current) -> None:
                self._door.take(site, result, question, current, given)
                if site in current.numbers and not current.numbers[site].get("update"):
                    current.updates = [update for update in current.updates if update.site != site]
                    current.apart[site] = time.monotonic()

            question = self._desk.ask(SiteTask(TASK_TRAIN, number, set(asked), message, answered))
            self._wait_for_round(question, current, number, asked, None)
            self._desk.close(question)
            if collector in self._desk.lost:
                continue
            for site in doubtful & {update.site for update in current.updates}:
                self._leave_out(current, site, f"its update did not reach {collector}", number)
            mean, missing = self._combine(collector, number, current, memory)
            if mean is not None:
                return _moved(memory.model, mean), current
            # A collector that was started anew has nothing: sites hand in once more what they kept. Who failed twice is
            # left out.
            if not missing or set(missing) <= doubtful:
                failed.add(collector)
            doubtful |= set(missing)

    def _collector(self, able: list[str], number: int, started: float) -> str:
        """Return the first of these sites that is there; wait for one."""
        while able:
            for site in able:
                if site not in self._desk.lost:
                    return site
            if time.monotonic() - started > self._federation.rounds.return_s:
                break
            self._look(_LOOK_SECONDS)
        raise FederationError(self._too_few(f"round {number} has no site that puts the updates together", 0, 1))

    def _combine(
        self, collector: str, number: int, current: RoundState, memory: RunState
    ) -> tuple[Mapping[str, Tensor] | None, list[str]]:
        """Return the mean that a collector made of a round's updates, or None and whose it did not have."""
        cases = {update.site: update.cases for update in current.updates}
        wanted = {s: {"digest": str(current.numbers[s].get("update")), "cases": n} for s, n in cases.items()}
        answers: list[Shareable] = []

        def message(site: str) -> Shareable:
            self._record("task", task=TASK_COMBINE, round=number, split="", sites=[site])
            return wire.combine_message(wanted, number)

        def answered(site: str, result: Shareable, question: SiteTask) -> None:
            answers.append(result)
            self._record("answer", site=site, task=TASK_COMBINE, round=number)

        question = self._desk.ask(SiteTask(TASK_COMBINE, number, {collector}, message, answered))
        self._wait_for_one(question, collector)
        self._desk.close(question)
        if not answers:
            if collector not in self._desk.lost:
                self._door.refuse(current, collector, "it did not put the updates together in time", number)
            return None, []
        try:
            mean, missing, left_out = self._door.combined(collector, answers[0], number, memory, cases)
        except FederationError as error:
            self._door.refuse(current, collector, str(error), number)
            return None, []
        for site, reason in left_out.items():
            self._leave_out(current, site, reason, number)
        return mean, missing

    def _leave_out(self, current: RoundState, site: str, reason: str, number: int) -> None:
        self._door.refuse(current, site, reason, number)
        current.updates = [update for update in current.updates if update.site != site]

    def _draw(self, number: int) -> list[str]:
        """Return the sites that train in a round: those with enough cases, or so many of them, drawn by the seed."""
        rounds = self._federation.rounds
        able = sorted(s for s, n in self._cases.items() if n["train"] >= rounds.minimum_cases)
        if not able:
            raise FederationError(f"no site has {rounds.minimum_cases} training cases (rounds.minimum_cases)")
        if rounds.sites_per_round is None or rounds.sites_per_round >= len(able):
            return able
        drawn = random.Random(f"{self._plan.seed} {number}").sample(able, rounds.sites_per_round)  # noqa: S311
        return sorted(drawn)

    def _wait_for_round(
        self, question: SiteTask, current: RoundState, number: int, asked: list[str], buffer: int | None
    ) -> None:
        """Wait until a round has what it needs: all who can still answer, or its quorum when the time is up."""

        def needed() -> int:
            return buffer or self._needed(len(asked), current)

        def over() -> bool:
            if current.collector in self._desk.lost:
                return True
            if buffer is not None:
                self._door.admit_late(current, number)
                return len(current.updates) >= buffer
            self._welcome(question, asked)
            self._bring_together(question, current, number)
            return self._is_answered(question, current, asked, len(current.updates) >= needed())

        self._wait_until(over, f"round {number}", lambda: len(current.updates), needed, None if buffer else current)

    def _wait_for_one(self, question: SiteTask, site: str) -> None:
        """Wait until the one site that is asked has answered, is lost, or has taken as long as the job allows."""
        begun = time.monotonic()
        while not question.done and site not in self._desk.lost and not self._time_is_up(begun):
            self._look(_LOOK_SECONDS)

    def _is_answered(self, question: SiteTask, current: RoundState, asked: list[str], enough: bool) -> bool:
        """Return whether a question has enough answers, and time is up or nobody is there who could still answer."""
        if not enough:
            self._ask_again(question, current)
            return False
        if self._time_is_up(current.started):
            return True
        return all((site in question.done and site not in current.apart) or site in self._desk.lost for site in asked)

    def _time_is_up(self, since: float) -> bool:
        """Return whether what began at this time of the monotonic clock has taken as long as the job allows."""
        deadline = self._federation.rounds.deadline_s
        return deadline is not None and time.monotonic() - since > deadline

    def _ask_again(self, question: SiteTask, current: RoundState) -> None:
        """Ask sites again that could not answer: their disk may have been full. They count as refused meanwhile."""
        now = time.monotonic()
        if now - current.started > self._federation.rounds.return_s:
            return
        for site, since in list(current.unable.items()):
            if now - since > _SECONDS_BETWEEN_TRIES:
                self._door.allow_retry(current, site)
                self._desk.reopen(question, site)

    def _bring_together(self, question: SiteTask, current: RoundState, number: int) -> None:
        """Have sites try again whose update did not reach the round's collector, for as long as the job waits."""
        now = time.monotonic()
        for site, since in list(current.apart.items()):
            if now - current.started > self._federation.rounds.return_s:
                del current.apart[site]
                self._door.refuse(current, site, f"its update did not reach {current.collector}", number)
            elif now - since > _LOOK_SECONDS:
                del current.apart[site]
                self._desk.reopen(question, site)

    def _welcome(self, question: SiteTask, asked: list[str]) -> None:
        """Let a site that came during the round take part in it, where all sites do."""
        rounds = self._federation.rounds
        if rounds.sites_per_round is not None:
            return
        for site, numbers in list(self._cases.items()):
            if site not in asked and numbers["train"] >= rounds.minimum_cases:
                asked.append(site)
                asked.sort()
                self._desk.include(question, {site})

    def _wait_until(
        self,
        over: Callable[[], bool],
        what: str,
        have: Callable[[], int],
        needed: Callable[[], int],
        current: RoundState | None = None,
        coming: Collection[str] = (),
    ) -> None:
        """Wait; give up where too few are left and none comes back for as long as the job allows.

        Args:
            over: whether the wait is over.
            what: is waited for.
            have: sites that count so far.
            needed: how many must count.
            current: what was answered so far: sites that were refused do not count later, unlike lost ones.
            coming: sites that may not have been heard of yet, since their processes are being started.
        """
        hopeless: float | None = None
        while not over():
            self._look(_LOOK_SECONDS)
            # One whose data did not pass does not change its mind.
            out = {site for site in self._door.reasons if site not in self._cases}
            out |= set(current.refused) if current else set()
            there = (self._desk.known() | set(coming)) - set(self._desk.lost) - out
            if len(there) >= needed():
                hopeless = None
                continue
            now = time.monotonic()
            hopeless = hopeless or now
            unable = set(current.unable) if current else set()
            may_come = (set(self._sites()) | self._desk.known()) - (out - unable)
            if len(may_come) < needed() or now - hopeless > self._federation.rounds.return_s:
                raise FederationError(self._too_few(what, have(), needed()))

    def _needed(self, asked: int, current: RoundState | None = None) -> int:
        """Return how many answers count as enough: the job's quorum, or all but those that were refused."""
        quorum = self._federation.rounds.quorum
        if quorum is not None:
            return min(quorum, asked)
        return max(1, asked - len(current.refused if current else ()))

    def _too_few(self, what: str, have: int, needed: int) -> str:
        reasons = {**self._door.reasons, **self._desk.lost}
        why = "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
        return (
            f"{what} has {have} of the {needed} sites that it needs ({why or 'none answered'}). Repair the "
            "site and run the job again, or set rounds.quorum lower to go on without it."
        )

    def _look(self, seconds: float) -> None:
        """Wait a little, then see who is there."""
        self._desk.wait(seconds)
        if self._abort.triggered:
            raise StoppedError
        self._desk.mark_silent()
        lost = dict(self._desk.lost)
        for site, reason in lost.items():
            if site not in self._told_lost:
                self._told_lost.add(site)
                self._record("lost", site=site, reason=reason)
        for site in sorted(self._told_lost - set(lost)):
            self._told_lost.discard(site)
            self._record("returned", site=site)
        if time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            self._synced = time.monotonic()
            self._keep_out_revoked()
            # Sites that registered since: only the server's main process knows of them.
            sync = getattr(self._ctx.get_engine(), "sync_clients_from_main_process", None)
            if sync:
                # It fails while the main process is being started anew, which ends this process soon.
                with contextlib.suppress(RuntimeError):
                    sync()

    def _keep_out_revoked(self) -> None:
        """Keep out whom the alliance revoked meanwhile. Whether its list is sound the server's main process tells."""
        path, root = list_and_root(self._ctx)
        if path.is_file() and root.is_file():
            with contextlib.suppress(FederationError, OSError):
                self._desk.ban(read_revoked(path, load_pem_x509_certificate(root.read_bytes())).names)

    def _sites(self) -> list[str]:
        """Return the sites that are registered now, or took part before, also in an earlier process of the server."""
        registered = {client.name for client in self._ctx.get_engine().get_clients()}
        return sorted(registered | set(self._cases) | self._before)

    def _outgoing(self, model: Weights) -> Weights:
        """Return a model as it travels: without what no site trains."""
        half = self._federation.exchange.model == "bfloat16"
        parts = {name: model[name] for name in model if name in self._travelling}
        return {n: v.to(torch.bfloat16) if half and v.is_floating_point() else v for n, v in parts.items()}

    def _calibrate(self, model: Weights, number: int) -> None:
        """Have the sites' validation patients tell how sure the model should be, where its task is one that is sure."""
        if self._plan.build_task().label_kind != "class":
            return
        self._keep_calibration(calibration_of(self._score(model, number, "validation", SumsAsked()).numbers))

    def _keep_calibration(self, calibration: Calibration | None) -> None:
        """Keep how sure the model should be beside it; a full disk costs that file alone."""
        self._calibration = calibration
        if calibration:
            try:
                calibration.write(self._state / MODELS_FOLDER)
            except OSError as error:
                self._record("not_kept", round=0, reason=error.strerror or str(error))

    def _against(self) -> str | None:
        """Return the digest of the model that the job compares with; None where there is none.

        Raises:
            FederationError: it is none of the job's network.
        """
        brought = against_model(self._ctx)
        if brought is None:
            return None
        return digest_of(self._fitting(brought), hashlib.sha256).hexdigest()

    def _score(
        self, weights: Weights, number: int, split: str, sums: SumsAsked | None = None, keep: bool = False
    ) -> RoundState:
        """Have every site that is there score a model, and keep it where it is what the job made."""
        current = RoundState()
        asked = sorted(s for s in self._cases if s not in self._desk.lost)
        outgoing = self._outgoing(weights)

        def message(site: str) -> Shareable:
            self._record("task", task=TASK_VALIDATE, round=number, split=split, sites=[site])
            weights = wire.weights_message(outgoing, number, split)
            if sums:
                wire.ask_for_sums(weights, sums)
            if keep:
                wire.let_keep(weights, self._beside())
            return weights

        def answered(site: str, result: Shareable, question: SiteTask) -> None:
            try:
                current.numbers[site] = self._door.scores(site, result)
            except FederationError as error:
                self._door.refuse(current, site, str(error), number, wire.may_pass(result))
                return
            self._record("answer", site=site, task=TASK_VALIDATE, round=number)

        question = self._desk.ask(SiteTask(TASK_VALIDATE, number, set(asked), message, answered))

        def needed() -> int:
            return self._needed(len(self._cases), current)

        def over() -> bool:
            return self._is_answered(question, current, asked, len(current.numbers) >= needed())

        # Who was away when it was asked may still come back to answer.
        self._desk.include(question, set(self._cases))
        self._wait_until(over, f"{split} after round {number}", lambda: len(current.numbers), needed, current)
        self._desk.close(question)
        return current

    def _test(self, weights: Weights, number: int, score: float | None, matrix: dict[str, Any] | None = None) -> None:
        against = self._against()
        asked = SumsAsked(self._calibration.temperature if self._calibration else None)
        turn = self._score(weights, number, "test", asked, keep=not self._evaluate_only)
        metric, margin = self._plan.build_task().metric, self._federation.evaluation.margin
        found = together(turn.numbers, self._calibration, metric, margin, against)
        self._keep_calibration(found.calibration)
        self._record(
            "finished",
            best_round=number,
            best_validation=score if score is not None and math.isfinite(score) else None,
            test={site: numbers["evaluation"] for site, numbers in sorted(turn.numbers.items())},
            personal={s: n["personal"] for s, n in sorted(turn.numbers.items()) if "personal" in n},
            cross_site=matrix,
            **found.recorded(),
        )

    def _cross_site(self, memory: RunState) -> dict[str, dict[str, float | None]]:
        """Return how each site's own last model does on every site's test cases: model's site -> site -> score."""
        matrix = {}
        base = memory.last_from or memory.model
        for site, update in sorted(memory.last.items()):
            turn = self._score(_moved(base, update.delta), memory.round, "test")
            matrix[site] = {s: n["evaluation"]["mean"] for s, n in sorted(turn.numbers.items())}
            self._record("cross_site", model=site, scores=matrix[site])
        return matrix

    def _judge(self, memory: RunState, number: int, turn: RoundState) -> None:
        """Record how the model after round ``number`` does at each site, and keep it where it is the best so far."""
        evaluations = {s: n["evaluation"] for s, n in sorted(turn.numbers.items()) if "evaluation" in n}
        scores = {site: e["mean"] for site, e in evaluations.items()}
        known = {site: score for site, score in scores.items() if score is not None}
        mean = sum(known.values()) / len(known) if known else None
        self._record("validation", round=number, mean=mean, sites=scores)
        if number == 0:
            return
        score = selected_score(self._federation.evaluation.select, known, self._cases)
        if memory.best_round == 0 or (score is not None and score > memory.best_score):
            memory.best_score = score if score is not None else memory.best_score
            memory.best_round = number
            self._store(memory.model, number)

    def _store(self, weights: Weights, number: int) -> None:
        """Keep a model as the best so far; where the disk is full, say so and try again until the job gives up."""
        path = self._state / MODELS_FOLDER / BEST_MODEL
        told: float | None = None
        while not _written(weights, path):
            if told is None:
                told = time.monotonic()
                self._record("not_kept", round=number, reason="the best model could not be written")
            if time.monotonic() - told > self._federation.rounds.return_s:
                raise FederationError(
                    "the server could not write the best model, for want of space perhaps. Free some and run the job "
                    "again"
                )
            self._look(_SECONDS_BETWEEN_TRIES)

    def _save(self, memory: RunState) -> None:
        """Keep what is needed to go on, while sites train on; the file of the round before stands until it is done."""
        self._finish_saving()
        kept = dataclasses.replace(memory, last={}, last_from=None)

        def write() -> None:
            try:
                write_run_state(self._state, kept)
            except OSError as error:
                # The run goes on; it could not if this process were killed now.
                self._record("not_kept", round=kept.round, reason=error.strerror or str(error))

        self._saving = threading.Thread(target=write, name="keep round")
        self._saving.start()

    def _finish_saving(self) -> None:
        if self._saving:
            self._saving.join()
            self._saving = None

    def _record_progress(self, fl_ctx: FLContext) -> None:
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        # The name comes from the site's certificate, not from what it says of itself.
        site = data.get_peer_prop(ReservedKey.IDENTITY_NAME, None) if isinstance(data, Shareable) else None
        if site is None or site not in self._desk.known():
            return
        self._record("progress", site=site, **progress_that_may_leave(data))

    def _record(self, kind: str, **values: Any) -> None:
        if self._log:
            self._log.write(new_event(kind, **values))


def _moved(model: Weights, delta: Mapping[str, Tensor]) -> Weights:
    """Return the model that a site had after its turn."""
    return {
        name: value if name not in delta else value + delta[name] if value.is_floating_point() else delta[name].clone()
        for name, value in model.items()
    }


def _written(weights: Weights, path: Path) -> bool:
    """Write weights whole or not at all, and return whether that was possible."""
    try:
        write_tensors(path, weights)
    except OSError:
        return False
    return True
