"""The server's side: rounds of federated averaging, evaluation at every site, the best model kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from safetensors.torch import load_file, save_file

from oncofed.errors import FederationError
from oncofed.federation import exchange
from oncofed.federation.aggregation import Contribution, weighted_mean
from oncofed.federation.events import EVENTS_FILE, MODELS_FOLDER, EventLog
from oncofed.federation.exchange import TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE, Weights
from oncofed.models.weights import weights_of
from oncofed.training import Plan

_PROGRESS_FIELDS = {"phase": str, "step": int, "steps": int, "loss": float}


@dataclass
class _Turn:
    """What the sites answered to one task."""

    started: float
    contributions: list[Contribution] = field(default_factory=list)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


class FederatedAveraging(Controller):
    """Runs a job's rounds.

    First every site checks and loads its data. In each round every site scores the global model on its validation
    cases, trains it, and sends its weights, which are averaged by training cases. After the last round the sites score
    the final model too; the model with the best mean validation score is scored once more, on the test cases.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        min_sites: fewest sites that a round needs; None: every site that the job started with.
        task_check_period: seconds between looks at the state of a task.
    """

    def __init__(self, plan: dict[str, Any], min_sites: int | None = None, task_check_period: float = 0.02) -> None:
        super().__init__(task_check_period=task_check_period)
        self._plan = Plan.model_validate(plan)
        self._min_sites = min_sites
        self._log: EventLog | None = None
        self._models = Path()
        self._lost: dict[str, str] = {}
        self._sites: list[str] = []

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the run's record before the first round."""
        exchange.register_tensors()
        run_dir = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(fl_ctx.get_job_id()))
        self._models = run_dir / MODELS_FOLDER
        self._models.mkdir(parents=True, exist_ok=True)
        self._log = EventLog(run_dir / EVENTS_FILE)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Close the run's record."""
        if self._log:
            self._log.close()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Record a site's progress, and that a site was lost or came back."""
        if event_type == exchange.PROGRESS_EVENT:
            self._record_progress(fl_ctx)
        elif event_type == EventType.CLIENT_DISCONNECTED:
            self._lose(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)), "its process ended")

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop an answer that came after its task had ended."""
        self._record("late", site=client.name, task=task_name)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run all rounds; a failure ends the job with its reason in the run's record."""
        try:
            self._run(abort_signal, fl_ctx)
        except FederationError as error:
            self._record("failed", reason=str(error))
            self.system_panic(str(error), fl_ctx)

    def _run(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        plan = self._plan
        self._sites = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        self._record(
            "started",
            sites=self._sites,
            rounds=plan.rounds,
            steps_per_round=plan.training.steps_per_round,
            metric=plan.build_task().metric,
        )
        weights = {name: value.clone() for name, value in weights_of(plan.build_network()).items()}
        turn = self._ask(TASK_PREPARE, exchange.plain_message(), 0, "", weights, abort_signal, fl_ctx)
        if abort_signal.triggered:
            return
        self._record("ready", seconds=time.time() - turn.started, sites=turn.numbers)
        best_score, best_round = -math.inf, 0
        for number in range(1, plan.rounds + 1):
            turn = self._ask_with(TASK_TRAIN, weights, number, "validation", abort_signal, fl_ctx)
            if abort_signal.triggered:
                return
            score = self._record_scores(number - 1, turn)
            if score is not None and number > 1 and score > best_score:
                best_score, best_round = score, number - 1
                self._save(weights, "best")
            weights = weighted_mean(turn.contributions)
            self._save(weights, "last")
            busy = {site: n["train_s"] + n["validate_s"] for site, n in turn.numbers.items()}
            self._record(
                "round",
                round=number,
                seconds=time.time() - turn.started,
                slowest_site_s=max(busy.values()),
                losses={site: n["loss"] for site, n in turn.numbers.items()},
                cases={c.site: c.cases for c in turn.contributions},
            )
        turn = self._ask_with(TASK_VALIDATE, weights, plan.rounds, "validation", abort_signal, fl_ctx)
        if abort_signal.triggered:
            return
        score = self._record_scores(plan.rounds, turn)
        if best_round == 0 or score is None or score > best_score:
            best_score, best_round = (score if score is not None else best_score), plan.rounds
            self._save(weights, "best")
        best = load_file(self._models / "best.safetensors")
        turn = self._ask_with(TASK_VALIDATE, best, best_round, "test", abort_signal, fl_ctx)
        if abort_signal.triggered:
            return
        self._record(
            "finished",
            best_round=best_round,
            best_validation=best_score if math.isfinite(best_score) else None,
            test={site: numbers["evaluation"] for site, numbers in sorted(turn.numbers.items())},
        )

    def _ask_with(
        self, task_name: str, weights: Weights, number: int, split: str, abort_signal: Signal, fl_ctx: FLContext
    ) -> _Turn:
        message = exchange.weights_message(weights, number, split)
        return self._ask(task_name, message, number, split, weights, abort_signal, fl_ctx)

    def _ask(
        self,
        task_name: str,
        message: Shareable,
        number: int,
        split: str,
        weights: Weights,
        abort_signal: Signal,
        fl_ctx: FLContext,
    ) -> _Turn:
        """Give every site a task and wait for their answers.

        Raises:
            FederationError: fewer than the required sites answered.
        """
        turn = _Turn(time.time())
        sites = [site for site in self._sites if site not in self._lost]
        self._require(sites, number)
        self._record("task", task=task_name, round=number, split=split, sites=sites)

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site, result = client_task.client.name, client_task.result
            try:
                self._take(task_name, site, result, weights, turn)
            except FederationError as error:
                turn.refusals[site] = str(error)
            # The task stands until its slowest site answered: do not hold everyone's weights until then.
            client_task.result = None
            if site in turn.refusals:
                self._lose(site, turn.refusals[site])
            else:
                self._record("answer", site=site, task=task_name, round=number)

        task = Task(task_name, message, result_received_cb=received)
        self.broadcast(task, fl_ctx, targets=list(sites), min_responses=len(sites))
        while task.completion_status is None and not self._all_answered_or_lost(turn, sites):
            if abort_signal.triggered:
                break
            time.sleep(0.01)
        self.cancel_task(task)
        if not abort_signal.triggered:
            self._require([site for site in sites if site in turn.numbers], number)
        return turn

    def _all_answered_or_lost(self, turn: _Turn, sites: list[str]) -> bool:
        return all(site in turn.numbers or site in self._lost for site in sites)

    def _take(self, task_name: str, site: str, result: Shareable, expected: Weights, turn: _Turn) -> None:
        reason = exchange.refusal_reason(result)
        if reason:
            raise FederationError(reason)
        if task_name == TASK_TRAIN:
            weights, cases, numbers = exchange.read_update_message(result)
            exchange.check_update(site, weights, expected)
            turn.contributions.append(Contribution(site, weights, cases))
        else:
            numbers = exchange.read_numbers_message(result)
        turn.numbers[site] = numbers

    def _record_scores(self, number: int, turn: _Turn) -> float | None:
        """Record how the global model after round ``number`` does at each site; return the mean over sites."""
        scores = {site: n["evaluation"]["mean"] for site, n in turn.numbers.items()}
        known = [score for score in scores.values() if score is not None]
        mean = sum(known) / len(known) if known else None
        self._record("validation", round=number, mean=mean, sites=scores)
        return mean

    def _require(self, sites: list[str], number: int) -> None:
        needed = self._min_sites or len(self._sites)
        if len(sites) < needed:
            lost = "; ".join(f"{site}: {reason}" for site, reason in sorted(self._lost.items()))
            raise FederationError(
                f"round {number} has {len(sites)} of the {needed} sites that it needs ({lost or 'none answered'}). "
                "Repair the site and run the job again, or lower federation.min_sites to go on without it."
            )

    def _lose(self, site: str, reason: str) -> None:
        if site in self._sites and site not in self._lost:
            self._lost[site] = reason
            self._record("lost", site=site, reason=reason)

    def _save(self, weights: Weights, name: str) -> None:
        unfinished = self._models / f"{name}.unfinished"
        save_file({key: value.contiguous() for key, value in weights.items()}, unfinished)
        unfinished.replace(self._models / f"{name}.safetensors")

    def _record_progress(self, fl_ctx: FLContext) -> None:
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        # The name comes from the site's certificate, not from what it says of itself.
        site = data.get_peer_prop(ReservedKey.IDENTITY_NAME, None) if isinstance(data, Shareable) else None
        if site not in self._sites:
            return
        values = {key: kind(data[key]) for key, kind in _PROGRESS_FIELDS.items() if key in data}
        self._record("progress", site=site, **values)

    def _record(self, kind: str, **values: Any) -> None:
        if self._log:
            self._log.write(kind, **values)
