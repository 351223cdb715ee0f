"""Follow-ups of patients, and Kaplan-Meier's curves over them.

Events of a time come before the censoring of that time, throughout: who is censored at a time had no event by then.
With it the inverse weights of censoring add up to the number of patients (Efron's redistribution to the right), so that
a weighted mean of shares is a share, and no event has an infinite weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FollowUps:
    """Times and events of patients.

    Attributes:
        times: (patient,), in the job's unit.
        events: whether the event came at that time, (patient,).
    """

    times: Floats
    events: NDArray[np.bool_]

    def events_by(self, horizon: float) -> NDArray[np.bool_]:
        """Return who had the event by a time, (patient,)."""
        return self.events & (self.times <= horizon)

    def free_at(self, horizon: float) -> NDArray[np.bool_]:
        """Return who had no event by a time, (patient,)."""
        free: NDArray[np.bool_] = (self.times > horizon) | ((self.times == horizon) & ~self.events)
        return free

    def survival(self, at: Floats) -> Floats:
        """Return the share without event, by Kaplan and Meier.

        JASA, 1958. Up to and including the times.

        NaN beyond the last follow-up, unless it ended with an event of all who were left.

        Args:
            at: (time,).
        """
        if not len(self.times):
            return np.full(len(at), np.nan)
        times, events, _, at_risk = self._counts
        left = np.append(1.0, np.cumprod(1 - events / at_risk))
        found = left[np.searchsorted(times, at, side="right")]
        return np.where((at > times[-1]) & (left[-1] > 0), np.nan, found)

    def uncensored(self, before: Floats) -> Floats:
        """Return the share not censored before times.

        By Kaplan and Meier.

        Args:
            before: (time,).
        """
        times, events, censored, at_risk = self._counts
        exposed = np.maximum(at_risk - events, 1)
        left = np.append(1.0, np.cumprod(1 - censored / exposed))
        found: Floats = left[np.searchsorted(times, before, side="left")]
        return found

    @cached_property
    def _counts(self) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct times, with events, censored and at risk."""
        times, place, of_time = np.unique(self.times, return_inverse=True, return_counts=True)
        events = np.bincount(place[self.events], minlength=len(times))
        at_risk = of_time[::-1].cumsum()[::-1]
        return times, events, of_time - events, at_risk


def by_patient(answers: Floats, truths: Floats, patients: Sequence[str]) -> tuple[Floats, FollowUps, list[str]]:
    """Return mean answers and follow-ups of patients, with their keys.

    Of a patient's images of several days those count that were followed longest, the earliest.

    Args:
        answers: (image, values).
        truths: time and event of each, (image, 2).
        patients: key of each image's patient.
    """
    numbers: dict[str, int] = {}
    of_image = np.array([numbers.setdefault(patient, len(numbers)) for patient in patients], np.int64)
    times = np.full(len(numbers), -1.0)
    np.maximum.at(times, of_image, truths[:, 0])
    kept = truths[:, 0] == times[of_image]
    means, events = np.zeros((len(numbers), answers.shape[1])), np.zeros(len(numbers), dtype=bool)
    np.add.at(means, of_image[kept], answers[kept])
    np.logical_or.at(events, of_image[kept], truths[kept, 1] > 0)
    counts = np.bincount(of_image[kept], minlength=len(numbers))
    return means / np.maximum(counts, 1)[:, None], FollowUps(times, events), list(numbers)
