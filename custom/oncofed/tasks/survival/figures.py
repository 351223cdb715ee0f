"""Figures of a survival model over patients.

Each takes risks, larger for an earlier event, or predicted survival, and is None where the patients cannot tell it.
Follow-ups beyond the horizon count as without event by then.

They are written out in arrays since an interval takes hundreds of draws of patients; torchsurv and scikit-survival,
against which they are tested, count pairs of patients one after the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.survival.follow_up import Floats, FollowUps

# Risk groups of the calibration, where there are enough patients.
GROUPS = 5


def pairs_ahead(risks: Floats, known: FollowUps) -> tuple[Floats, Floats]:
    """Return each patient's comparable pairs, and those ranked right.

    Right are those in which the risk is larger; they come first.

    A pair is comparable where the patient had the event and the other was still without: followed longer, or as long
    and censored. Equal risks count as half.

    It takes n log² n: two patients' places in time, as binary numbers, first differ in one digit, and for each digit
    the later half of each block is sorted by risk once.

    Args:
        risks: (patient,).
        known: their follow-ups.

    Returns:
        Two arrays, (patient,); zero where there was no event.
    """
    count = len(risks)
    ahead, comparable = np.zeros(count), np.zeros(count)
    if not count:
        return ahead, comparable
    order = np.lexsort((~known.events, known.times))
    steps = (np.diff(known.times[order]) > 0) | np.diff((~known.events[order]).astype(int)).astype(bool)
    place = np.empty(count, np.int64)
    place[order] = np.append(0, np.cumsum(steps))
    rank = np.unique(risks, return_inverse=True)[1].astype(np.int64)
    for digit in range(int(place.max()).bit_length()):
        block, later = place >> (digit + 1), (place >> digit) & 1 == 1
        early = known.events & ~later
        keys = block * (count + 1)
        others = np.sort(keys[later] + rank[later])
        begin = np.searchsorted(others, keys[early])
        end = np.searchsorted(others, keys[early] + count)
        below, up_to = (np.searchsorted(others, keys[early] + rank[early], side=side) for side in ("left", "right"))
        ahead[early] += (below + up_to) / 2 - begin
        comparable[early] += end - begin
    return ahead, comparable


def concordance(risks: Floats, known: FollowUps, horizon: float) -> float | None:
    """Return Harrell's concordance of events by the horizon.

    Harrell et al., JAMA, 1982: of comparable pairs, the share in which the earlier event had the larger risk.
    """
    return _share(pairs_ahead(risks, known), known.events_by(horizon).astype(float))


def uno_concordance(risks: Floats, known: FollowUps, horizon: float) -> float | None:
    """Return Uno's concordance.

    It does not depend on when patients are censored.

    Uno et al., Statistics in Medicine, 2011: pairs weighted by the inverse square of the share not yet censored.
    """
    by_then = known.events_by(horizon)
    weights = np.zeros(len(risks))
    weights[by_then] = known.uncensored(known.times[by_then]) ** -2.0 if by_then.any() else 0.0
    return _share(pairs_ahead(risks, known), weights)


def auc_at(risks: Floats, known: FollowUps, horizon: float) -> float | None:
    """Return the time-dependent AUC at the horizon.

    Of events by then against patients without.

    Cumulative cases and dynamic controls; Uno et al., JASA, 2007; Hung and Chiang, 2010.
    """
    ill, well = known.events_by(horizon), known.free_at(horizon)
    if not ill.any() or not well.any():
        return None
    weights, others = 1 / known.uncensored(known.times[ill]), np.sort(risks[well])
    below, up_to = (np.searchsorted(others, risks[ill], side=side) for side in ("left", "right"))
    return float((weights * (below + up_to) / 2).sum() / (weights.sum() * len(others)))


def brier_at(survival: Floats, known: FollowUps, time: float) -> float | None:
    """Return the mean squared error of survival at a time.

    Graf et al., Statistics in Medicine, 1999. None where nobody is followed up to it.

    Args:
        survival: predicted, (patient,).
        known: their follow-ups.
        time: at which.
    """
    ill, well = known.events_by(time), known.free_at(time)
    if not well.any():
        return None
    misses = np.sum(survival[ill] ** 2 / known.uncensored(known.times[ill])) if ill.any() else 0.0
    hits = np.sum((1 - survival[well]) ** 2) / known.uncensored(np.array([time]))[0]
    return float((misses + hits) / len(survival))


def integrated_brier(survival: Floats, known: FollowUps, times: Floats) -> float | None:
    """Return the mean of ``brier_at`` over time.

    From zero to the last of the times.

    At zero, where all survive, it is zero; between the times it is taken to be linear.

    Args:
        survival: predicted at each time, (patient, time).
        known: their follow-ups.
        times: ascending, (time,).
    """
    scores = [brier_at(column, known, float(time)) for column, time in zip(survival.T, times, strict=True)]
    told = [score for score in scores if score is not None]
    if len(told) < len(scores):
        return None
    return float(np.trapezoid([0.0, *told], [0.0, *times]) / times[-1])


def calibration_error(risks: Floats, known: FollowUps, horizon: float) -> float | None:
    """Return the mean distance of predicted and observed risk.

    At the horizon, over risk groups.

    Observed is one minus Kaplan and Meier's survival of the group. Of groups in which nobody is followed up to the
    horizon it is not known; they are left out.

    Args:
        risks: predicted probabilities of an event by the horizon, (patient,).
        known: their follow-ups.
        horizon: as stated.
    """
    distances, patients = 0.0, 0
    for group in risk_groups(risks):
        own = FollowUps(known.times[group], known.events[group])
        observed = 1 - own.survival(np.array([horizon]))[0]
        if not np.isnan(observed):
            distances += len(group) * abs(observed - risks[group].mean())
            patients += len(group)
    return float(distances / patients) if patients else None


def risk_groups(risks: Floats) -> list[NDArray[np.int64]]:
    """Return patients in groups by predicted risk.

    Groups are of equal size, of five patients at least.
    """
    number = max(1, min(GROUPS, len(risks) // LEAST_PATIENTS))
    return list(np.array_split(np.argsort(risks, kind="stable"), number)) if len(risks) else []


def _share(pairs: tuple[Floats, Floats], weights: Floats) -> float | None:
    ahead, comparable = ((weights * part).sum() for part in pairs)
    return float(ahead / comparable) if comparable > 0 else None
