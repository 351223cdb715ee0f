"""The door that updates come through: each is looked at before it counts, and its site told why where it does not."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from nvflare.apis.shareable import Shareable
from torch import Tensor

import oncofed
from oncofed.algorithms import Update
from oncofed.algorithms.base import update_norm
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError, PolicyError, one_line
from oncofed.flare import wire
from oncofed.flare.communicator import SiteTask
from oncofed.flare.wire import TASK_TRAIN
from oncofed.messages.compression import ReceivedUpdate, without_extra
from oncofed.models.weights import WeightLayout, Weights
from oncofed.privacy.outbound import check_counts, check_numbers, most_scored
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState

T = TypeVar("T")

_LONGEST_VERSION, _LONGEST_REASON = 40, 200
# Lengths of updates that say what is usual: of so many rounds back.
_ROUNDS_REMEMBERED = 5


class Record(Protocol):
    """Writes an event to the run's record."""

    def __call__(self, kind: str, **values: Any) -> None:
        """Write an event of a kind."""


@dataclass(frozen=True)
class ExpectedUpdate:
    """What sites were asked for, in tensors that have a shape and a type but no values.

    Attributes:
        round: its number.
        like: the weights that an update has.
        extra: what sites may send beside it.
    """

    round: int
    like: Weights
    extra: Weights


class UpdateIntake:
    """Takes updates or refuses them. Answers come on several threads.

    Args:
        federation: the job's rules.
        layout: of the model.
        classes: names of the job's classes.
        cases: each site's numbers of cases, as it gave them when it came.
        record: writes to the run's record.

    Attributes:
        reasons: why a site's data or last update was not taken, until it was told.
    """

    def __init__(
        self,
        federation: FederationPlan,
        layout: WeightLayout,
        classes: Sequence[str],
        cases: Mapping[str, dict[str, Any]],
        record: Record,
    ) -> None:
        self.reasons: dict[str, str] = {}
        self._federation = federation
        self._algorithm = federation.algorithm()
        self._layout = layout
        self._extra = self._algorithm.from_clients(layout)
        self._classes = classes
        self._cases = cases
        self._record = record
        self._lock = threading.Lock()
        self._late: list[tuple[Update, int]] = []
        self._turns = 0

    def given(self, number: int, model: Weights) -> ExpectedUpdate:
        """Return what sites that are sent a model in a round are asked for."""
        shapes = {name: value.to("meta") for name, value in model.items()}
        like = {name: value for name, value in shapes.items() if name in self._layout.travelling}
        if not self._algorithm.schedule.reaches_server:
            return ExpectedUpdate(number, {}, {})  # updates go to the round's collector
        return ExpectedUpdate(number, like, self._extra)

    def take(
        self, site: str, result: Shareable, question: SiteTask, current: RoundState, given: ExpectedUpdate
    ) -> None:
        """Look at one site's answer and take it, or refuse it and say why."""
        came = time.monotonic() - current.started
        try:
            update, numbers = read_answer(result, lambda answer: self._read(site, answer, given))
        except FederationError as error:
            self.refuse(current, site, str(error), given.round, wire.may_pass(result))
            return
        with self._lock:
            if question.closed:
                self._late.append((update, given.round))
                self._record("late", site=site, round=given.round, seconds=came)
                return
            if not question.again and any(u.site == site and not u.staleness for u in current.updates):
                # A process whose parent was killed answers once more, beside its successor: it would count twice.
                self._record("dropped", site=site, task=TASK_TRAIN, round=given.round)
                return
            current.numbers[site] = numbers
            current.came[site] = came
            current.updates.append(update)
        if "not_kept" in numbers:
            self._record("site_not_kept", site=site, round=given.round, reason=str(numbers["not_kept"]))
        self._record("answer", site=site, task=TASK_TRAIN, round=given.round)

    def _read(self, site: str, result: Shareable, given: ExpectedUpdate) -> tuple[Update, dict[str, Any]]:
        sent, cases, steps, numbers = wire.read_update_message(result)
        check_numbers(numbers, self._classes, most=most_scored(self._cases.get(site)))
        weights, extra = without_extra(sent)
        delta = ReceivedUpdate(weights, given.like, self._federation.exchange.update, extra, given.extra)
        known = self._cases.get(site, {}).get("train")
        if cases != known:
            raise FederationError(f"it says that {cases} cases are behind its update, before it was {known}")
        with self._lock:
            self._turns += 1
            turn = self._turns
        update = Update(site, delta, cases, max(steps, 1), extra=delta.extra, turn=turn, squares=delta.squares)
        return update, numbers

    def combined(
        self, collector: str, result: Shareable, number: int, memory: RunState, cases: Mapping[str, int]
    ) -> tuple[Mapping[str, Tensor] | None, list[str], dict[str, str]]:
        """Return the mean that a round's collector made, whose updates it did not have, and why it left some out.

        Args:
            collector: the site that answers.
            result: its answer.
            number: of the round.
            memory: of the run; its lengths are those of earlier means.
            cases: behind the update of each site that it was to take.

        Raises:
            FederationError: it did not do it, or its mean is not one of these updates.
        """
        sent, total, missing, left_out = read_answer(result, wire.read_combined_message)
        if missing:
            return None, [site for site in cases if site in missing], {}
        left_out = {site: one_line(str(why), _LONGEST_REASON) for site, why in left_out.items() if site in cases}
        taken = {site: n for site, n in cases.items() if site not in left_out}
        expected = sum(bounded(taken, self._federation.exchange.largest_weight).values())
        if total != expected:
            raise FederationError(f"it says that {total} cases are behind the mean, expected {expected}")
        like = {name: value.to("meta") for name, value in memory.model.items() if name in self._layout.travelling}
        received = ReceivedUpdate(*without_extra(sent)[:1], like, "native")
        mean = Update(collector, received, total, squares=received.squares)
        looked_at = RoundState(updates=[mean])
        if not self.without_outliers(looked_at, memory):
            raise FederationError(looked_at.refused[collector])
        return mean.delta, [], left_out

    def scores(self, site: str, result: Shareable) -> dict[str, Any]:
        """Return what a site says of a model's score.

        Raises:
            FederationError: it could not do it, has none, or other numbers than are declared.
        """
        return read_answer(result, partial(self._read_scores, site))

    def _read_scores(self, site: str, result: Shareable) -> dict[str, Any]:
        numbers = wire.read_numbers_message(result)
        check_numbers(numbers, self._classes, sums=True, most=most_scored(self._cases.get(site)))
        if "evaluation" not in numbers:
            raise PolicyError("it tells no score")
        return numbers

    def admit_late(self, current: RoundState, number: int) -> None:
        """Take the answers that came after their own round had ended: with less weight, or not, as the job says."""
        rounds = self._federation.rounds
        with self._lock:
            for update, given in self._late:
                stale = number - given
                if rounds.late == "drop" or not self._algorithm.schedule.takes_late:
                    self._record("dropped", site=update.site, task=TASK_TRAIN, staleness=stale)
                    continue
                discount = (1 + stale) ** -rounds.staleness
                current.updates.append(dataclasses.replace(update, staleness=stale, discount=discount))
                current.late.append(update.site)
            self._late.clear()

    def refuse(self, current: RoundState, site: str, reason: str, number: int, may_pass: bool = False) -> None:
        """Leave a site's answer out; where what kept it from its task may pass, it can be asked again."""
        with self._lock:
            self._refuse(current, site, reason, number)
            if may_pass:
                current.unable[site] = time.monotonic()

    def _refuse(self, current: RoundState, site: str, reason: str, number: int) -> None:
        current.refused[site] = reason
        self.reasons[site] = reason
        self._record("refused", site=site, round=number, reason=reason)

    def allow_retry(self, current: RoundState, site: str) -> None:
        """Let a site answer again that could not."""
        with self._lock:
            del current.unable[site]
            current.refused.pop(site, None)

    def without_outliers(self, current: RoundState, memory: RunState) -> list[Update]:
        """Return the updates that count: without those many times as long as others of this round and the last ones."""
        with self._lock:
            lengths = [update_norm(update, self._layout.trained) for update in current.updates]
            known = lengths + [value for values in memory.lengths[-_ROUNDS_REMEMBERED:] for value in values]
            factor = self._federation.exchange.largest_norm
            kept, usual = [], statistics.median(known) if known else 0.0
            for update, norm in zip(current.updates, lengths, strict=True):
                if len(known) >= 3 and usual > 0 and norm > factor * usual:
                    reason = (
                        f"its update is {norm / usual:.1f} times as long as usual, expected at most {factor:g} times"
                    )
                    self._refuse(current, update.site, reason, memory.round + 1)
                else:
                    kept.append((update, norm))
            bounds = bounded({u.site: u.cases for u, _ in kept}, self._federation.exchange.largest_weight)
            current.updates = [dataclasses.replace(update, cases=bounds[update.site]) for update, _ in kept]
            memory.lengths = [*memory.lengths[1 - _ROUNDS_REMEMBERED :], [norm for _, norm in kept]]
            return list(current.updates)


def counts(result: Shareable, bins: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return what a site says of its data when it comes.

    Args:
        result: its answer.
        bins: of each histogram that may be in it, by name.

    Raises:
        FederationError: it could not do it, runs another oncofed, or says something else.
    """
    return read_answer(result, lambda answer: _read_counts(answer, bins))


def _read_counts(result: Shareable, bins: Mapping[str, int] | None) -> dict[str, Any]:
    numbers = wire.read_numbers_message(result)
    theirs = numbers.get("version")
    if isinstance(theirs, str) and theirs != oncofed.__version__:
        raise FederationError(
            f"it runs oncofed {one_line(theirs, _LONGEST_VERSION)}, the server {oncofed.__version__}. Install the same "
            "version at both: rounding and file formats may differ"
        )
    check_counts(numbers, oncofed.__version__, bins)
    return numbers


def read_answer(result: Shareable, read: Callable[[Shareable], T]) -> T:
    """Return what is read of a site's answer, which it can make of whatever it likes.

    Raises:
        FederationError: the site could not do its task, or the answer is not what the job declares.
    """
    reason = wire.refusal_reason(result)
    if reason:
        raise FederationError(reason)
    try:
        return read(result)
    except FederationError:
        raise
    except PolicyError as error:
        raise FederationError(f"its numbers are not those of the job: {error}") from None
    except Exception as error:  # noqa: BLE001 - what is malformed raises whatever it leads to
        raise FederationError(f"its answer is malformed ({type(error).__name__})") from None


def bounded(cases: Mapping[str, int], factor: float) -> dict[str, int]:
    """Return as how many cases each site counts: who says that it has very many would else make the model alone.

    Args:
        cases: of each site, as it says.
        factor: most times the median, of two in the middle the lower one.
    """
    if not cases:
        return {}
    most = max(int(factor * statistics.median_low(cases.values())), 1)
    return {site: min(count, most) for site, count in cases.items()}
