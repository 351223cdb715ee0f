"""The rounds of a job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from oncofed.algorithms.base import Algorithm, Update
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.schedule import Synchronous
from oncofed.artifacts.training_profile import bins_of, combined_profile
from oncofed.data.moments import numbers_of
from oncofed.errors import FederationError, NotEnoughSitesError, StepsSpentError
from oncofed.messages.secure_aggregation import plan_digest, score_form
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import Verify
from oncofed.privacy.statement import statement_of
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import EarlyStop, NotKept, Resumed, RoundEnded, Started, StepsSpent, Validated
from oncofed.rounds.harmonization import harmonize
from oncofed.rounds.intake import Record, UpdateIntake
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.preparation import Preparation
from oncofed.rounds.quorum import SECONDS_BETWEEN_TRIES, Quorum
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.schedules import runner_for
from oncofed.rounds.scoring import Scoring
from oncofed.rounds.secure_aggregation import SummedRunner
from oncofed.rounds.selection import has_stalled, is_better, selected_score
from oncofed.rounds.similarity import similarities
from oncofed.rounds.sites import Sites
from oncofed.rounds.standardisation import standardise
from oncofed.rounds.store import RunStore
from oncofed.rounds.sums import Sums, unverified
from oncofed.rounds.transport import Transport
from oncofed.tasks import attention_may_leave, metrics_that_may_leave, sums_that_may_leave, task_class
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.encoder import EncoderSpec
from oncofed.training import Plan


def _nothing() -> None:
    """Do nothing."""


def _ignore(nbytes: int) -> None:
    """Do nothing."""
    del nbytes


@dataclass(frozen=True, kw_only=True)
class Server:
    """The round loop's interface to its process.

    Attributes:
        record: writes an event to the run's record.
        sites: returns the sites that are registered now.
        synchronize: fetches changes in registered and revoked sites; called every two seconds.
        is_stopped: whether the job was aborted.
        free_memory: returns unused memory once all is loaded.
        let_sites_fetch: prepares for a model of this many bytes.
        keys: folder with the server's key and certificate; without them nothing is signed.
        job: facts of the job for the model's provenance.
        clock: monotonic, in seconds.
        verify: gives the key of the site that advertises one, for secure aggregation.
    """

    record: Record
    sites: Callable[[], Collection[str]]
    synchronize: Callable[[], None] = _nothing
    is_stopped: Callable[[], bool] = bool
    free_memory: Callable[[], None] = _nothing
    let_sites_fetch: Callable[[int], None] = _ignore
    keys: Path = Path("startup")
    job: Mapping[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    verify: Verify = unverified


class RoundLoop:
    """Runs a job's rounds.

    Sites check and load their data as they join. In each round they score the global model on their validation cases,
    train it, and send the change; the algorithm makes the next model from these. After the last round they score the
    final model too; the best one, by the job's rule, is scored once more on test cases, unless they are to stay unseen.

    The state is written after each round: a new loop on the same folder continues with the next round.

    Args:
        plan: the job's.
        federation: how its sites train together.
        transport: to the sites.
        folder: keeps what must outlive the process.
        server: the process.
        model: initial weights; None for the plan's seed.
        evaluate_only: score the model on test cases without training.
        calibration: of that model; None where unknown.
        test: score the best model on test cases; False: they stay unseen, as in a search for settings.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        federation: FederationPlan,
        transport: Transport,
        folder: Path,
        server: Server,
        model: JobModel | None = None,
        evaluate_only: bool = False,
        calibration: Calibration | None = None,
        test: bool = True,
    ) -> None:
        self._test = test
        self._plan, self._federation, self._server = plan, federation, server
        self._transport = transport
        self._model = model or JobModel(plan)
        self._evaluate_only, self._calibration = evaluate_only, calibration
        # Before the first round: it takes a library, which this machine may lack.
        private = None if evaluate_only else plan.privacy.differential_privacy
        self._promise = statement_of(private, plan.total_steps)
        self._record, self._clock = server.record, server.clock
        self._folder = folder
        self._store = RunStore(folder, server.keys, server.record)
        self._sites = Sites(
            transport=transport,
            registered=server.sites,
            record=server.record,
            synchronize=server.synchronize,
            is_stopped=server.is_stopped,
            clock=server.clock,
        )
        self._context: RoundContext
        self._scoring: Scoring
        self._algorithm: Algorithm[Any]

    def run(self) -> None:
        """Run all rounds.

        Raises:
            NotEnoughSitesError: too few sites are left.
            FederationError: the best model cannot be written.
            StoppedError: the job was aborted.
        """
        state = self._begin()
        self._prepare()
        if self._evaluate_only:
            self._keep_best(state.model, 0)
            self._write_provenance(state.model, state)
            self._scoring.test(state.model, 0, None, against=self._model.against(), keep=False)
            return
        if not state.round and not self._model.is_brought:
            columns = self._plan.data.agreed_columns
            state.model = standardise(state.model, columns, self._sites.sums, self._record)
            state.model = harmonize(state.model, self._plan.data, self._sites.combat, self._record)
        for number in range(state.round + 1, self._federation.rounds.number + 1):
            if has_stalled(self._federation.evaluation, state):
                self._record(EarlyStop(round=state.round, best_round=state.best_round))
                break
            try:
                self._run_round(number, state)
            except StepsSpentError as spent:
                if not state.round:
                    raise
                self._record(StepsSpent(round=state.round, reason=str(spent)))
                break
        self._judge(state, state.round, self._scoring.score(state.model, state.round, "validation"))
        crossed = self._test and self._federation.evaluation.cross_site
        matrix = self._scoring.cross_site(state) if crossed else None
        state.model = {}  # the last one; the best may be another, and memory should hold only one
        best = self._store.read_best()
        self._scoring.calibrate(best, state.best_round)
        self._write_provenance(best, state)
        if not self._test:
            self._scoring.finish_untested(state.best_round, state.best_score)
            return
        against = self._model.against()
        self._scoring.test(best, state.best_round, state.best_score, against=against, cross_site=matrix)

    def close(self) -> None:
        """Wait until all files are written."""
        self._store.finish_saving()

    # --- steps of a run

    def _begin(self) -> RunState:
        """Return the restored state, or a new one."""
        plan, federation, record = self._plan, self._federation, self._record
        state = self._store.read_state()
        layout, initial = (self._model.layout(), {}) if state else self._model.initial()
        intake = UpdateIntake(
            federation=federation,
            layout=layout,
            classes=plan.task.figure_names,
            metrics=metrics_that_may_leave(plan.task),
            lowest=task_class(plan.task.type).lowest_metric,
            targets=sums_that_may_leave(plan.task),
            attention=attention_may_leave(plan.task),
            cases=lambda: self._sites.cases,
            record=record,
            banned=lambda: self._transport.banned,
            clock=self._clock,
        )
        self._context = RoundContext(
            seed=plan.seed,
            federation=federation,
            layout=layout,
            transport=self._transport,
            sites=self._sites,
            intake=intake,
            quorum=Quorum(
                rules=federation.rounds,
                sites=self._sites,
                intake=intake,
                transport=self._transport,
                clock=self._clock,
                smallest_sum=federation.smallest_sum,
            ),
            record=record,
            clock=self._clock,
            sums=self._sums() if federation.secure_aggregation else None,
            scores=score_form(plan, federation),
        )
        self._scoring = Scoring(self._context, plan, self._store, self._calibration)
        self._server.let_sites_fetch(layout.nbytes)
        self._algorithm = federation.algorithm(layout.trained)
        if state:
            self._algorithm.restore(state.strategy)
            self._sites.earlier = set(state.sites)
            record(Resumed(round=state.round + 1))
        record(
            Started(
                sites=self._sites.all,
                rounds=0 if self._evaluate_only else federation.rounds.number,
                steps_per_round=plan.training.steps_per_round,
                metric=plan.build_task().metric,
                strategy=federation.strategy.name,
            )
        )
        return state or RunState(initial)

    def _sums(self) -> Sums:
        server, job = self._server, str(self._server.job.get("id", "job"))
        rounds = self._federation.rounds.number if self._promise else None
        return Sums(self._folder, job, plan_digest(self._plan, self._federation), server.verify, rounds)

    def _prepare(self) -> None:
        """Wait for the sites that the job starts with."""
        data, encoder = self._plan.data, getattr(self._plan.task, "encoder", None)
        Preparation(
            self._context,
            profile=not self._evaluate_only,
            bins=bins_of(data),
            covariates=numbers_of(data.agreed_columns),
            slides=data.may_be_slides,
            combat=self._plan.sums_form if data.harmonization.groups else None,
            unknown_encoders=isinstance(encoder, EncoderSpec) and encoder.unknown == "allow",
        ).run()
        self._server.free_memory()

    def _run_round(self, number: int, state: RunState) -> None:
        """Run one round and write its results."""
        current = RoundState(started=self._clock(), asked=self._draw(number))
        self._context.intake.admit_late(current, number)
        context, algorithm = self._context, self._algorithm
        runner = SummedRunner(context, algorithm, Synchronous()) if context.sums else runner_for(context, algorithm)
        result = runner.run(number, state, current)
        current, model = result.current, result.model
        self._judge(state, number - 1, current)
        if self._federation.evaluation.cross_site:
            state.last, state.last_from = {u.site: u for u in current.updates}, dict(state.model)
        similarity = self._similarity(result.updates)
        if result.updates:
            # Aggregation changes the state that is being written.
            self._store.finish_saving()
            sites = max(len(self._sites.cases), len(result.updates))
            model = self._algorithm.aggregate(state.model, result.updates, sites)
        state.model, state.round, state.strategy = model, number, dict(self._algorithm.state)
        state.sites = sorted(self._sites.cases)
        self._store.save_state(state)
        self._record(
            RoundEnded(
                round=number,
                seconds=self._clock() - current.started,
                slowest_site_s=current.slowest_s,
                losses=current.losses,
                loss=current.summed.loss if current.summed else None,
                cases={update.site: update.cases for update in current.updates},
                participation=current.participation(self._sites.lost),
                similarity=similarity,
            )
        )

    def _similarity(self, updates: Sequence[Update]) -> dict[str, float] | None:
        """Return how alike the sites' updates are, where the job asks and all sites agreed."""
        agreed = all(cases.get("contributions") for cases in self._sites.cases.values())
        if not self._federation.evaluation.contributions or not agreed:
            return None
        return similarities(updates, self._context.layout.trained)

    def _draw(self, number: int) -> list[str]:
        """Return the round's training sites, drawn by the seed."""
        rounds = self._federation.rounds
        able = self._sites.able(rounds.minimum_cases)
        if not able:
            raise NotEnoughSitesError(f"no site has {rounds.minimum_cases} training cases (rounds.minimum_cases)")
        left = [site for site in able if site not in self._transport.banned]
        if rounds.sites_per_round is None or rounds.sites_per_round >= len(left):
            return able  # a quorum stays what it was before sites were revoked
        draw = random.Random(f"{self._plan.seed} {number}")  # noqa: S311 - not a secret
        return sorted(draw.sample(left, rounds.sites_per_round))

    # --- the best model, and what is kept with it

    def _judge(self, state: RunState, number: int, current: RoundState) -> None:
        """Record a model's score, and keep the best model."""
        evaluations = {s: n["evaluation"] for s, n in sorted(current.numbers.items()) if "evaluation" in n}
        scores = {site: e["mean"] for site, e in evaluations.items()}
        known = {site: score for site, score in scores.items() if score is not None}
        mean = sum(known.values()) / len(known) if known else None
        by_class = {site: e["by_class"] for site, e in evaluations.items() if e["by_class"]}
        summed = current.summed
        if summed:
            mean = summed.mean
        told = dataclasses.asdict(summed) if summed else None
        self._record(Validated(round=number, mean=mean, sites=scores, by_class=by_class, summed=told))
        if number == 0:
            return
        select, cases = self._federation.evaluation.select, self._sites.cases
        score = summed.mean if summed else selected_score(select, known, cases)
        if summed or not state.best_scores:  # sums: of the same sites in each round; no scores: in an older state
            better = score is not None and score > state.best_score
        else:
            lost = self._sites.lost.keys() | self._transport.banned
            better = is_better(select, known, state.scores, state.best_scores, cases, lost)
        state.scores |= {} if summed else known
        # While no round has a score, the one with the most training is the best.
        if select == "last" or better or (score is None and state.best_score == -math.inf):
            state.best_score = score if score is not None else state.best_score
            state.best_round, state.best_scores = number, dict(state.scores)
            self._keep_best(state.model, number)

    def _keep_best(self, weights: Weights, number: int) -> None:
        """Write the best model, retrying on a full disk."""
        failed_since: float | None = None
        while not self._store.write_best(weights):
            if failed_since is None:
                failed_since = self._clock()
                self._record(NotKept(round=number, reason="the best model could not be written"))
            if self._clock() - failed_since > self._federation.rounds.return_s:
                raise FederationError(
                    "the server could not write the best model, for want of space perhaps. Free some and run the job "
                    "again"
                )
            self._sites.watch(SECONDS_BETWEEN_TRIES)

    def _write_provenance(self, model: Weights, state: RunState) -> None:
        """Write the model's provenance and its training profile."""
        known = ("train", "validation", "test", "dataset", "policy")
        cases = self._sites.cases
        settings = {"plan": self._plan.model_dump(mode="json"), "federation": self._federation.model_dump(mode="json")}
        facts = {
            **self._server.job,
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            "network": self._plan.model.network,
            "strategy": self._federation.strategy.name,
            "seed": self._plan.seed,
            "privacy": self._promise.model_dump(mode="json") if self._promise else None,
            "rounds": state.round,
            "best_round": state.best_round,
            **state.of_sums(),
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "sites": {s: {k: v for k, v in cases[s].items() if k in known} for s in sorted(cases)},
        }
        self._store.write_provenance(model, facts)
        profiles = [profile for profile in self._sites.profiles.values() if profile]
        if profiles and not self._evaluate_only:
            self._store.write_training_profile(combined_profile(profiles, self._plan.data))
