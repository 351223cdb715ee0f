"""Outbound policy of one job at one site.

It also counts what was sent, and does not depend on FLARE.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from typing import Any, get_args

import torch
from torch import Tensor

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.sums import SCORES as SCORES_NAME
from oncofed.algorithms.sums import scores_of, summands
from oncofed.artifacts.training_profile import bins_of
from oncofed.data.moments import numbers_of
from oncofed.errors import FederationError, PolicyError
from oncofed.flare.security.masked_steps import MaskedSteps, OwnKeys
from oncofed.messages.compression import NotFiniteError, ReceivedUpdate, travelling_bytes
from oncofed.messages.requests import Split
from oncofed.messages.results import CombineResult, EvaluateResult, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import MaskedResult, SecureStepResult, score_form
from oncofed.models.weights import Digest, WeightLayout, Weights, sum_of_squares
from oncofed.privacy.covariates import withhold_sums
from oncofed.privacy.evaluations import without_thresholded
from oncofed.privacy.outbound import check_counts, check_numbers, most_scored, withhold
from oncofed.privacy.policy import Policy
from oncofed.privacy.pooled import SUMS
from oncofed.privacy.summed_scores import LOSS, SCORES
from oncofed.tasks import attention_may_leave, metrics_that_may_leave, sums_that_may_leave, task_class
from oncofed.training import Plan

# With fewer earlier rounds no update counts as unusual.
_FEWEST_ROUNDS = 3
# An update is unusual when it is far less similar to its predecessor than the job's earlier updates here. It is
# recorded, not held back: a change of the learning rate makes honest updates look like that, too.
_LEAST_SIMILARITY, _FAR_LESS = 0.05, 0.2
_SAMPLED_NUMBERS = 1 << 18
_ALLOWANCE = 1.1
# A job requests sums twice, and once more each time that its server was killed meanwhile.
_MOST_SUMS = 6
_NOBODY_HAS_SO_MANY = 1 << 40
_OF_TRAINING = ("profile", "covariates", "harmonization", "tiles")
# Names, framing and numbers of a message, in addition to its tensors.
_FRAMING_BYTES = 1 << 20


@dataclass(frozen=True)
class Approved:
    """A result that may leave.

    Attributes:
        result: with the numbers that may leave; the checked object itself where all may.
        facts: for the audit log.
    """

    result: Result
    facts: dict[str, Any]


class OutboundPolicy:
    """Checks a job's results before they leave a site.

    Args:
        plan: of the job.
        federation: of the job.
        policy: of the site.
        ends: when the job's hours at this site end, as ``time.time``; None: never.
        sent: bytes that left before, in an earlier process.
        own: the site's keys, for a job with secure aggregation.

    Attributes:
        stopped: why an update was held back before it was masked, after which nothing more leaves; else empty.
        masked: the steps of secure aggregation.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        federation: FederationPlan,
        policy: Policy,
        ends: float | None = None,
        sent: int = 0,
        own: OwnKeys | None = None,
    ) -> None:
        self.stopped = ""
        self._leaves = policy.leaves
        self._ends, self._sent = ends, sent
        self._exchange = federation.exchange
        self._algorithm = federation.algorithm()
        self._classes, self._metrics = plan.task.figure_names, metrics_that_may_leave(plan.task)
        self._lowest = task_class(plan.task.type).lowest_metric
        self._targets, self._attention = sums_that_may_leave(plan.task), attention_may_leave(plan.task)
        self._bins, self._covariates = bins_of(plan.data), numbers_of(plan.data.agreed_columns)
        self._slides = plan.data.may_be_slides
        self._combat = plan.sums_form if plan.data.harmonization.groups else None
        self._private = plan.privacy.differential_privacy is not None
        self._shares_noise = plan.privacy.shares_noise
        layout = plan.layout()
        self._like: Weights = layout.sent
        self._extra: Weights = self._algorithm.from_clients(layout)
        self._sums = federation.secure_aggregation is not None
        self._form, self._sums_scores = score_form(plan, federation), federation.sums_scores
        self.masked = MaskedSteps(own, *_forms(plan, federation, layout), bits=federation.bits)
        self._last_masked = ""
        self._norm = 0.0
        self._usual = UsualUpdates(policy.leaves.largest_norm)
        self._sums_sent = self._thresholded_sent = 0
        # Most cases to score a model on, as the site reported first; unknown to a later process of the job.
        self._most_cases: int | None = None

    def check(self, result: Result, size: int) -> Approved:
        """Check a result.

        Args:
            result: as the job's process would send it.
            size: its bytes.

        Raises:
            PolicyError: it may not leave.
            FederationError: its tensors are not those that the job declares.
        """
        if self.stopped:
            raise PolicyError(self.stopped)
        approved = self._check(result)
        self._spend(size)
        return replace(approved, facts={"bytes": size, **approved.facts})

    @singledispatchmethod
    def _check(self, result: Any) -> Approved:
        raise PolicyError(f"no result of oncofed: {type(result).__name__}")

    @_check.register
    def _(self, result: SiteFacts) -> Approved:
        if self._private and any(result.numbers.get(name) for name in _OF_TRAINING):
            raise PolicyError("figures of training patients without noise, which a job with differential privacy keeps")
        check_counts(result.numbers, oncofed.__version__, self._bins, self._covariates, self._slides, self._combat)
        self._most_cases = most_scored(result.numbers)
        numbers = dict(result.numbers)
        if not self._leaves.training_profile:
            numbers.pop("profile", None)
        told = numbers.get("tiles", {}).get("patients", 0)
        if not self._leaves.training_profile or told < self._leaves.minimum_patients:
            numbers.pop("tiles", None)
        if not self._leaves.pooled_figures:
            numbers.pop("covariates", None)
        combat = numbers.get("harmonization") or {"patients": 0}
        if not self._leaves.pooled_figures or combat["patients"] < self._leaves.minimum_patients:
            numbers.pop("harmonization", None)
        if not self._leaves.contributions:
            numbers.pop("contributions", None)
        if "covariates" in numbers:
            numbers["covariates"] = withhold_sums(numbers["covariates"], self._leaves.minimum_patients)
        return Approved(SiteFacts(numbers) if numbers != result.numbers else result, {})

    @_check.register
    def _(self, result: EvaluateResult) -> Approved:
        if self._sums_scores:
            self._check_numbers(result.numbers)
            self._refuse_own_scores(result.numbers)
            return Approved(result, self.masked.check_ready(result.ready))
        if result.ready:
            raise PolicyError("keys of a sum, which the job does not form of scores")
        numbers = self._told_scores(result.numbers)
        return Approved(EvaluateResult(numbers) if numbers != dict(result.numbers) else result, {})

    @_check.register
    def _(self, result: TrainResult) -> Approved:
        self._check_numbers(result.numbers)
        _check_count(result.cases)
        _check_count(result.steps)
        if self._sums_scores:
            self._refuse_own_scores(result.numbers)
        numbers = self._withheld(self._without_thresholded(result.numbers))
        if numbers != dict(result.numbers):
            result = replace(result, numbers=numbers)
        if self._sums:
            return Approved(result, self._check_ready(result))
        if not self._algorithm.schedule.reaches_server and not result.delta and not result.extra:
            return Approved(result, {})
        if self._leaves.secure_aggregation == "required":
            raise PolicyError("an update leaves under masks (privacy.secure_aggregation), or not at all")
        update = ReceivedUpdate(result.delta, self._like, self._exchange.update, result.extra, self._extra)
        largest = travelling_bytes(self._like, self._exchange.update) + travelling_bytes(self._extra, "native")
        return Approved(result, self._check_update(update, largest))

    def _check_ready(self, result: TrainResult) -> dict[str, Any]:
        if result.delta or result.extra:
            raise PolicyError("the job's updates leave under masks, found one without")
        facts = self.masked.check_ready(result.ready, (result.cases, result.steps))
        self.masked.require_norm()
        return facts

    @_check.register
    def _(self, result: SecureStepResult) -> Approved:
        if not self._sums:
            raise PolicyError("the job has no secure aggregation")
        return Approved(result, self.masked.check_step(result))

    @_check.register
    def _(self, result: MaskedResult) -> Approved:
        if not self._sums:
            raise PolicyError("the job has no secure aggregation")
        return Approved(result, self.masked.check_words(result))

    def check_before_masking(self, result: TrainResult, bound: float | None = None) -> dict[str, Any]:
        """Check an update that leaves masked, which nobody can do later.

        One that may not leave stops the job here, unless it is not finite.

        Args:
            result: the update.
            bound: of its length, which is told in its place where sites make noise together; None: its own is told.

        Returns:
            Facts for the audit log.

        Raises:
            PolicyError: it may not leave.
            FederationError: its tensors are not those that the job declares.
        """
        if self.stopped:
            raise PolicyError(self.stopped)
        largest = travelling_bytes(self._like, "native") + travelling_bytes(self._extra, "native")
        try:
            update = ReceivedUpdate(result.delta, self._like, "native", result.extra, self._extra)
            facts = self._check_update(update, largest, known=self._last_masked)
        except NotFiniteError:
            raise
        except (PolicyError, FederationError) as error:
            self.stopped = str(error)
            raise
        self._last_masked = str(facts["digest"])
        self.masked.note_checked(self._norm, self._figures(result.numbers))
        if bound is not None:
            self.masked.note_bound(bound)
        return facts

    def scores_before_masking(self, numbers: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """Check a result's numbers, whose scores leave in a sum; return those that may.

        Args:
            numbers: of the result.
            training: of an update; else of a model that was scored alone.

        Raises:
            PolicyError: they are not those that the job declares.
        """
        if self.stopped:
            raise PolicyError(self.stopped)
        try:
            if training:
                self._check_numbers(numbers)
                return self._withheld(self._without_thresholded(numbers))
            told = self._told_scores(numbers)
        except PolicyError as error:
            self.stopped = str(error)
            raise
        self.masked.note_checked(None, self._figures(told))
        return told

    @_check.register
    def _(self, result: CombineResult) -> Approved:
        if self._algorithm.schedule.reaches_server:
            raise PolicyError("the job has no site that averages updates")
        _check_count(result.cases)
        if not result.mean:
            return Approved(result, {})
        update = ReceivedUpdate(result.mean, self._like, "native")
        largest = travelling_bytes(self._like, "native") + travelling_bytes(self._extra, "native")
        return Approved(result, self._check_update(update, largest))

    def _told_scores(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's scores as they may leave.

        Raises:
            PolicyError: they are not those that the job declares.
        """
        self._check_numbers(numbers, sums=True)
        kept = self._withheld(self._without_extra_sums(numbers))
        told = self._without_thresholded(kept)
        self._thresholded_sent += told != kept
        return kept if self._thresholded_sent <= _MOST_SUMS else told

    def _withheld(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return numbers without what rests on too few patients, or without scores where none may leave."""
        rule, kept = self._leaves.scores, dict(numbers)
        if rule == "none" or (rule == "summed" and not self._sums_scores):
            kept.pop(LOSS, None)
            withhold(kept, _NOBODY_HAS_SO_MANY, self._targets, self._classes)
        else:
            withhold(kept, self._leaves.minimum_patients, self._targets, self._classes)
        return kept

    def _figures(self, numbers: Mapping[str, Any]) -> bytes:
        return self._form.bits(self._form.found_in(numbers)) if self._form else b""

    def _refuse_own_scores(self, numbers: Mapping[str, Any]) -> None:
        if own := SCORES & numbers.keys():
            raise PolicyError(f"{len(own)} scores of this site, which leave under masks alone in this job")

    def _check_numbers(self, numbers: Mapping[str, Any], sums: bool = False) -> None:
        if self._private and "loss" in numbers:
            raise PolicyError("a loss of training patients without noise, which a job with differential privacy keeps")
        if self._private and "gain" in numbers:
            raise PolicyError("a gain by training without noise, which a job with differential privacy keeps")
        check_numbers(
            numbers,
            self._classes,
            sums=sums,
            most=self._most_cases,
            metrics=self._metrics,
            lowest=self._lowest,
            targets=self._targets,
            attention=self._attention,
        )

    def _without_extra_sums(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return numbers without sums beyond the allowed count.

        Sums of one model reveal nobody; those of many models, or at many temperatures, would.
        """
        sums = SUMS & numbers.keys()
        self._sums_sent += bool(sums)
        if self._leaves.pooled_figures and self._sums_sent <= _MOST_SUMS:
            return dict(numbers)
        return {name: value for name, value in numbers.items() if name not in sums}

    def _without_thresholded(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return numbers without figures by a threshold, which many models would turn into answers."""
        evaluations = {name: numbers[name] for name in ("evaluation", "personal") if numbers.get(name)}
        return {**numbers, **{name: without_thresholded(one, self._metrics) for name, one in evaluations.items()}}

    def _check_update(self, update: ReceivedUpdate, largest: int, known: str = "") -> dict[str, Any]:
        """Check an update's size, norm and direction.

        The update whose digest is known was checked before: it is compared with others once.

        Returns facts for the audit log.
        """
        allowed = (self._leaves.mb_a_round or 0) * 1e6 or largest * _ALLOWANCE + _FRAMING_BYTES
        if update.nbytes > allowed:
            raise PolicyError(f"{update.nbytes / 1e6:.1f} MB, expected at most {allowed / 1e6:.1f}")
        norm, digest, sample = _read_through(update)
        self._norm = norm
        if digest == known:
            return {"tensors": len(update), "digest": digest}
        if not self._shares_noise:  # else whether it leaves would tell of patients by a part of the noise alone
            self._usual.check_norm(norm)
        return {"tensors": len(update), "digest": digest, **self._usual.compare_direction(sample)}

    def _spend(self, size: int) -> None:
        limit = self._leaves.mb_a_job
        if limit is not None and self._sent + size > limit * 1e6:
            raise PolicyError(f"the job has sent {self._sent / 1e6:.1f} of {limit:g} MB")
        if self._ends is not None and time.time() > self._ends:
            raise PolicyError("the job's hours here are over")
        self._sent += size


class UsualUpdates:
    """Norms and directions of a job's updates at this site.

    Args:
        largest_norm: most times the usual norm.
    """

    def __init__(self, largest_norm: float) -> None:
        self._largest_norm = largest_norm
        self._norms: list[float] = []
        self._similarities: list[float] = []
        self._last_sample: Tensor | None = None

    def check_norm(self, norm: float) -> None:
        """Compare an update's norm with those before it.

        Raises:
            PolicyError: it is many times the usual norm.
        """
        usual = statistics.median(self._norms) if len(self._norms) >= _FEWEST_ROUNDS else 0.0
        if usual and norm > usual * self._largest_norm:
            raise PolicyError(f"the update is {norm / usual:.0f} times as long as this job's usual one here")
        self._norms.append(norm)

    def compare_direction(self, sample: Tensor) -> dict[str, Any]:
        """Compare an update's direction with the one before.

        Returns ``similarity``, the cosine, and ``unusual`` where it is far lower than before. A picture in place of an
        update has another direction, even at the same norm.

        Args:
            sample: of the update's numbers.
        """
        last, self._last_sample = self._last_sample, sample
        if last is None or not sample.numel():
            return {}
        similarity = float(torch.nn.functional.cosine_similarity(last, sample, dim=0))
        usual = statistics.median(self._similarities) if len(self._similarities) >= _FEWEST_ROUNDS else 0.0
        self._similarities.append(similarity)
        facts: dict[str, Any] = {"similarity": round(similarity, 3)}
        if usual > _LEAST_SIMILARITY and similarity < usual * _FAR_LESS:
            facts["unusual"] = f"usually {usual:.3f}"
        return facts


def _forms(plan: Plan, federation: FederationPlan, layout: WeightLayout) -> tuple[Weights, Weights]:
    """Return what is summed of an update, and of a model's scores alone, without values."""
    form, algorithm = score_form(plan, federation), federation.algorithm()
    weights = summands(algorithm, layout.sent, algorithm.from_clients(layout), layout.trained)
    if form is None:
        return weights, {}
    words = torch.empty(form.words, device="meta")
    return {**weights, SCORES_NAME: words}, {scores_of(split): words for split in get_args(Split)}


def _check_count(count: Any) -> None:
    if not (isinstance(count, int) and 0 <= count < 1 << 40):
        raise PolicyError("its counts of cases and steps are not within their bounds")


def _read_through(update: ReceivedUpdate) -> tuple[float, str, Tensor]:
    """Return an update's norm, digest and sample.

    One tensor is held at a time. The sample is evenly spaced, as float32: enough to estimate the update's direction,
    and little to keep.
    """
    stride = max(1, update.floats // _SAMPLED_NUMBERS)
    squares, digest, sample = 0.0, Digest(), []
    for name in sorted(update):
        value = update[name]
        digest.add(name, value)
        if value.is_floating_point():
            squares += update.squares[name] if name in update.squares else sum_of_squares(value)
            sample.append(value.reshape(-1)[::stride].to(torch.float32, copy=True))
    return math.sqrt(squares), str(digest), torch.cat(sample) if sample else torch.empty(0)
