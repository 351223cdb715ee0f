"""Checks each result before it counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

import oncofed
from oncofed.algorithms import Update
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.sums import bounded
from oncofed.data.harmonization.sums import SumsForm
from oncofed.errors import FederationError, PolicyError, UpdateRejectedError, one_line
from oncofed.messages.compression import ReceivedUpdate
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import read_ready
from oncofed.models.weights import WeightLayout, Weights
from oncofed.privacy.outbound import check_counts, check_numbers, most_scored
from oncofed.privacy.secure_aggregation import KeyAdvertisement, Ready
from oncofed.privacy.summed_scores import SCORES
from oncofed.rounds.events import Answered, Dropped, Event, Late, Refused, SiteNotKept
from oncofed.rounds.outliers import OutlierFilter
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.transport import REVOKED
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums

T = TypeVar("T")
ResultT = TypeVar("ResultT", bound=Result)
Record = Callable[[Event], None]

_LONGEST_VERSION, _LONGEST_REASON = 40, 200


@dataclass(frozen=True)
class ExpectedUpdate:
    """What an update must look like, as tensors without values.

    Attributes:
        round: number of the round.
        like: the weights of an update.
        extra: extra tensors that sites may send.
    """

    round: int
    like: Weights
    extra: Weights


class UpdateIntake:
    """Accepts or refuses results, which arrive on several threads.

    Args:
        federation: the job's rules.
        layout: of the model.
        classes: names of the job's classes.
        metrics: extra ones that its task declares; None: those of any installed task.
        lowest: value of its metric.
        targets: its named targets.
        attention: its answers come with attention over tiles.
        cases: returns numbers of cases by site, as each reported them when it joined.
        record: writes an event to the run's record.
        banned: returns the sites that were revoked.
        clock: monotonic, in seconds.

    Attributes:
        reasons: why a site's data or last update does not count, until the site was informed.
    """

    def __init__(
        self,
        *,
        federation: FederationPlan,
        layout: WeightLayout,
        classes: Sequence[str],
        metrics: Sequence[Metric] | None = None,
        lowest: float = 0.0,
        targets: Mapping[str, TargetSums] = NO_TARGETS,
        attention: bool = False,
        cases: Callable[[], Mapping[str, dict[str, Any]]],
        record: Record,
        banned: Callable[[], frozenset[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reasons: dict[str, str] = {}
        self._federation = federation
        self._algorithm = federation.algorithm()
        self._layout = layout
        self._extra = self._algorithm.from_clients(layout)
        self._outliers = OutlierFilter(federation.exchange, layout.trained)
        self._declared = partial(
            check_numbers, classes=classes, metrics=metrics, lowest=lowest, targets=targets, attention=attention
        )
        self._cases = cases
        self._record = record
        self._banned = banned
        self._clock = clock
        self._lock = threading.Lock()
        self._late: list[tuple[Update, int]] = []
        self._accepted = 0

    def expected(self, number: int, model: Weights) -> ExpectedUpdate:
        """Return the expected form of a round's updates."""
        if not self._federation.updates_reach_server:
            return ExpectedUpdate(number, {}, {})  # they go to the round's collector, or follow under masks
        like = {name: value.to("meta") for name, value in model.items() if name in self._layout.travelling}
        return ExpectedUpdate(number, like, self._extra)

    def accept(
        self, site: str, result: Result | Refusal, task: SiteTask, current: RoundState, expected: ExpectedUpdate
    ) -> None:
        """Count a site's update, or refuse it."""
        came = self._clock() - current.started
        try:
            update, numbers = checked(result, TrainResult, lambda update: self._read(site, update, expected))
        except UpdateRejectedError as error:
            self.refuse(current, site, str(error), expected.round, may_pass(result))
            return
        with self._lock:
            if task.closed:
                self._late.append((update, expected.round))
                self._record(Late(site=site, round=expected.round, seconds=came))
                return
            if not task.repeatable and any(u.site == site and not u.staleness for u in current.updates):
                # A process whose parent was killed may answer as well as its successor: it would count twice.
                self._record(Dropped(site=site, task=TrainRequest.task, round=expected.round))
                return
            current.numbers[site] = numbers
            current.came[site] = came
            current.updates.append(update)
        if "not_kept" in numbers:
            self._record(SiteNotKept(site=site, round=expected.round, reason=str(numbers["not_kept"])))
        self._record(Answered(site=site, task=TrainRequest.task, round=expected.round))

    def updates_from(self, site: str, current: RoundState) -> int:
        """Return how many updates a site has given to a round's model."""
        with self._lock:
            return sum(update.site == site and not update.staleness for update in current.updates)

    def _read(self, site: str, result: TrainResult, expected: ExpectedUpdate) -> tuple[Update, dict[str, Any]]:
        self._declared(result.numbers, most=most_scored(self._cases().get(site)))
        self._refuse_own_scores(result.numbers)
        kind = self._federation.exchange.update
        delta = ReceivedUpdate(result.delta, expected.like, kind, extra=result.extra, extra_like=expected.extra)
        known = self._cases().get(site, {}).get("train")
        if result.cases != known:
            raise UpdateRejectedError(f"it says that {result.cases} cases are behind its update, before it was {known}")
        with self._lock:
            self._accepted += 1
            turn = self._accepted
        update = Update(
            site,
            delta,
            result.cases,
            steps=max(result.steps, 1),
            extra=delta.extra,
            turn=turn,
            squares=delta.squares,
        )
        return update, dict(result.numbers)

    def combined(
        self, collector: str, result: Result | Refusal, number: int, state: RunState, cases: Mapping[str, int]
    ) -> tuple[Mapping[str, Tensor] | None, list[str], dict[str, str]]:
        """Return a collector's mean, checked.

        Also returns the sites whose missing update prevents a mean, and the reasons of left-out updates by site.
        A mean with a site that was revoked meanwhile counts as lacking it: the collector is to average the others.

        Args:
            collector: the site.
            result: its result.
            number: of the round.
            state: of the run, with the norms of earlier means.
            cases: behind the update of each site that it was to average.

        Raises:
            UpdateRejectedError: the collector failed, or its mean cannot be one of these updates.
        """
        combined = checked(result, CombineResult, lambda combined: combined)
        if combined.missing:
            return None, [site for site in cases if site in combined.missing], {}
        left_out = {s: one_line(str(why), _LONGEST_REASON) for s, why in combined.left_out.items() if s in cases}
        counted = {site: n for site, n in cases.items() if site not in left_out}
        revoked = sorted(self._banned() & counted.keys())
        if revoked:
            for site in revoked:
                self._record(Refused(site=site, round=number, reason=REVOKED))
            return None, revoked, {}
        expected = sum(bounded(counted, self._federation.exchange.largest_weight).values())
        if combined.cases != expected:
            raise UpdateRejectedError(f"it says that {combined.cases} cases are behind the mean, expected {expected}")
        like = {name: value.to("meta") for name, value in state.model.items() if name in self._layout.travelling}
        received = checked(result, CombineResult, lambda combined: ReceivedUpdate(combined.mean, like, "native"))
        mean = Update(collector, received, combined.cases, squares=received.squares)
        alone = RoundState(updates=[mean])
        if not self.without_outliers(alone, state):
            raise UpdateRejectedError(alone.refused[collector])
        return mean.delta, [], left_out

    def scores(
        self, site: str, result: Result | Refusal
    ) -> tuple[dict[str, Any], tuple[KeyAdvertisement, Ready] | None]:
        """Return the numbers of a site's score; where scores are summed, none but what the sum's roster needs.

        Raises:
            UpdateRejectedError: the site failed, has no score, or sends other numbers than the job declares.
        """
        return checked(result, EvaluateResult, lambda scored: self._read_scores(site, scored))

    def _read_scores(
        self, site: str, result: EvaluateResult
    ) -> tuple[dict[str, Any], tuple[KeyAdvertisement, Ready] | None]:
        self._declared(result.numbers, sums=True, most=most_scored(self._cases().get(site)))
        self._refuse_own_scores(result.numbers)
        if self._federation.sums_scores:
            return dict(result.numbers), read_ready(result.ready, site)
        if "evaluation" not in result.numbers:
            raise PolicyError("it tells no score")
        return dict(result.numbers), None

    def _refuse_own_scores(self, numbers: Mapping[str, Any]) -> None:
        """Take no score of a single site that should be in a sum: it would be kept with the run."""
        if self._federation.sums_scores and SCORES & numbers.keys():
            raise PolicyError("it tells its own scores, expected them under masks")

    def admit_late(self, current: RoundState, number: int) -> None:
        """Count or drop late updates, by the job's rules."""
        rounds = self._federation.rounds
        with self._lock:
            for update, of_round in self._late:
                stale = number - of_round
                if update.site in self._banned():
                    self._record(Refused(site=update.site, round=of_round, reason=REVOKED))
                    continue
                if rounds.late == "drop" or not self._algorithm.schedule.takes_late:
                    self._record(Dropped(site=update.site, task=TrainRequest.task, staleness=stale))
                    continue
                discount = (1 + stale) ** -rounds.staleness
                current.updates.append(dataclasses.replace(update, staleness=stale, discount=discount))
                current.late.append(update.site)
            self._late.clear()

    def drop_revoked(self, current: RoundState, number: int, sites: Collection[str] | None = None) -> None:
        """Discard results that sites sent before they were revoked.

        Args:
            current: results of the round.
            number: of the round.
            sites: only these; None for all.
        """
        with self._lock:
            self._drop_revoked(current, number, sites)

    def _drop_revoked(self, current: RoundState, number: int, sites: Collection[str] | None = None) -> None:
        counted = {update.site for update in current.updates} | current.numbers.keys()
        for site in sorted(self._banned() & (counted if sites is None else counted & set(sites))):
            current.leave_out(site)
            current.numbers.pop(site, None)
            self._refuse(current, site, REVOKED, number)

    def refuse(self, current: RoundState, site: str, reason: str, number: int, may_pass: bool = False) -> None:
        """Leave a site's result out.

        The site can retry if the reason may pass.
        """
        with self._lock:
            self._refuse(current, site, reason, number)
            if may_pass:
                current.unable[site] = self._clock()

    def _refuse(self, current: RoundState, site: str, reason: str, number: int) -> None:
        current.refused[site] = reason
        self.reasons[site] = reason
        self._record(Refused(site=site, round=number, reason=reason))

    def allow_retry(self, current: RoundState, site: str) -> None:
        """Let a site that failed its task try again."""
        with self._lock:
            del current.unable[site]
            current.refused.pop(site, None)

    def without_outliers(self, current: RoundState, state: RunState) -> list[Update]:
        """Return the updates that count; outliers are refused."""
        with self._lock:
            self._drop_revoked(current, state.round + 1)
            screened = self._outliers.screen(current.updates, state.lengths)
            for site, reason in screened.refused.items():
                self._refuse(current, site, reason, state.round + 1)
            current.updates, state.lengths = screened.kept, screened.lengths
            return list(current.updates)


def counts(
    result: Result | Refusal,
    bins: Mapping[str, int] | None = None,
    covariates: Collection[str] = (),
    slides: bool = False,
    combat: SumsForm | None = None,
) -> dict[str, Any]:
    """Return a site's report of its data.

    Args:
        result: its result.
        bins: of each histogram that may be in it, by name.
        covariates: names of the job's numbers, whose sums may be in it.
        slides: whether numbers of slides' tiles may be in it.
        combat: of the sums for ComBat that may be in it.

    Raises:
        UpdateRejectedError: the site failed, runs another version of oncofed, or reports something else.
    """
    return checked(result, SiteFacts, lambda facts: _read_counts(dict(facts.numbers), bins, covariates, slides, combat))


def _read_counts(
    numbers: dict[str, Any],
    bins: Mapping[str, int] | None,
    covariates: Collection[str],
    slides: bool,
    combat: SumsForm | None,
) -> dict[str, Any]:
    theirs = numbers.get("version")
    if isinstance(theirs, str) and theirs != oncofed.__version__:
        raise UpdateRejectedError(
            f"it runs oncofed {one_line(theirs, _LONGEST_VERSION)}, the server {oncofed.__version__}. Install the same "
            "version at both: rounding and file formats may differ"
        )
    check_counts(numbers, oncofed.__version__, bins, covariates, slides, combat)
    return numbers


def checked(result: Result | Refusal, kind: type[ResultT], read: Callable[[ResultT], T]) -> T:
    """Return parts of a site's result, which is not trusted.

    Raises:
        UpdateRejectedError: the site could not do its task, or the result is not what the job declares.
    """
    if isinstance(result, Refusal):
        raise UpdateRejectedError(result.reason)
    try:
        if not isinstance(result, kind):
            raise TypeError(kind.__name__)
        return read(result)
    except FederationError as error:
        raise UpdateRejectedError(str(error)) from error
    except PolicyError as error:
        raise UpdateRejectedError(f"its numbers are not those of the job: {error}") from None
    except Exception as error:  # noqa: BLE001 - a malformed result may raise any error
        raise UpdateRejectedError(f"its answer is malformed ({type(error).__name__})") from None


def may_pass(result: Result | Refusal) -> bool:
    """Return whether a site's refusal may pass."""
    return isinstance(result, Refusal) and result.may_pass
