"""Whether attention is faithful: what happens to an answer without the tiles that it attended to.

Deletion as in Samek et al. (IEEE TNNLS 28, 2017), for tiles: a slide is answered again without its most attended tiles,
without as many random ones, and without its least attended ones. Attention that tells what the answer rests on moves it
more than chance does, and its least attended tiles move it least. In a federation each site does so with its own test
slides, and sums over five patients or more leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from oncofed.data.case import Case
from oncofed.data.inputs import Prepared
from oncofed.data.sample import sample_cases
from oncofed.errors import DataError
from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.over_sites import figure
from oncofed.tasks.patient_statistics import RESAMPLES
from oncofed.tasks.resampling import interval

# Shares of a slide's tiles that are dropped, one tile at least.
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Which ones.
ORDERS = ("most attended tiles", "random tiles", "least attended tiles")
_DRAWS = 2
# Slides that are answered again without tiles, of a site: enough for an interval, few enough to wait for.
_MOST_SLIDES = 100
# Digits of sums that leave a site; further ones could carry hidden information.
DIGITS_OF_MOVES = 4
# Entries of a prepared bag with one row a tile.
_OF_TILES = frozenset({"bags", "places", "slides"})

Curves = NDArray[np.float64]


class Deletion(StrictModel):
    """How far answers move without some of their tiles; means over patients."""

    patients: int = Field(description="test patients whose slides were answered again")
    shares: tuple[float, ...] = Field(description="of a slide's tiles that were dropped")
    moved: dict[str, tuple[float, ...]] = Field(
        description="which tiles -> for each share, how far the answer moved: the largest change of its numbers, as a "
        "share of what they may span; of several targets the mean"
    )
    gain: float = Field(description="without the most attended tiles less without random ones, mean over the shares")
    interval: tuple[float, float] | None = Field(description="of gain, 95 %, over patients")


@runtime_checkable
class AttentiveTask(Protocol):
    """A task whose answers come with attention over tiles.

    Attributes:
        network_kind: of its networks; "bag" where they look at tiles.
    """

    network_kind: str

    def prepared(self, case: Case) -> Prepared:
        """Return a prepared case; see ``ScoringTask``."""

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Any:
        """Return an answer with ``attention``; see ``InferenceTask``."""

    def shares(self, found: Any) -> Mapping[str, NDArray[np.float64]]:
        """Return an answer's bounded numbers as shares of what they may span."""


def deletion(
    task: object, network: nn.Module, cases: Sequence[Case], device: torch.device, seed: int
) -> Deletion | None:
    """Answer cases again without some of their tiles.

    Args:
        task: of the network.
        network: on ``device``; it is left in evaluation mode.
        cases: slides of patients who chose nothing.
        device: where the network is.
        seed: of the random tiles.

    Returns:
        None for networks without attention, for answers without bounds such as Cox's log risk, and for fewer than five
        patients.
    """
    if not isinstance(task, AttentiveTask) or task.network_kind != "bag":
        return None
    return of_patients(curves_by_patient(task, network, cases, device, seed))


def curves_by_patient(
    task: object,
    network: nn.Module,
    cases: Sequence[Case],
    device: torch.device,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[Curves]]:
    """Return patient -> how far the answers for the slides move, (order, share) each; see ``deletion``.

    None for networks without attention, and for slides that cannot be read.
    """
    if not isinstance(task, AttentiveTask) or task.network_kind != "bag":
        return {}
    network.eval()
    found: dict[str, list[Curves]] = {}
    for number, case in enumerate(cases):
        if should_stop():
            break
        random = np.random.default_rng((seed, number))
        try:
            curves = curves_of(task, network, task.prepared(case), device, random)
        except DataError:  # it was set aside when it was scored
            continue
        if curves is not None:
            found.setdefault(case.patient, []).append(curves)
    return found


def slides_to_delete_from(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the test slides that are answered again: those of all patients, or of five fewer at least.

    Of the same cases they are the same in each job, so that no two jobs tell of few patients by their difference.
    """
    people = {case.patient for case in cases}
    drawn = sample_cases(cases, _MOST_SLIDES, 0)
    left = len(people) - len({case.patient for case in drawn})
    return sample_cases(cases, _MOST_SLIDES - LEAST_PATIENTS, 0) if 0 < left < LEAST_PATIENTS else drawn


WHY_NOT_OVER_SITES = (
    f"no site has {LEAST_PATIENTS} test patients and a policy that lets sums over them leave, the network has no "
    "attention, or its answers have no bounds"
)


def why_left_out(cases: Sequence[Case]) -> str:
    """Return why cases were not answered again, where ``deletion`` returned None."""
    if len({case.patient for case in cases}) < LEAST_PATIENTS:
        return f"there are fewer than {LEAST_PATIENTS} test patients"
    return (
        f"the network has no attention, its answers have no bounds, or fewer than {LEAST_PATIENTS} test patients have "
        "slides of several tiles"
    )


def of_patients(found: Mapping[str, Sequence[Curves]]) -> Deletion | None:
    """Return means over patients, each of the mean of its slides; None of fewer than five."""
    if len(found) < LEAST_PATIENTS:
        return None
    each, gains = _of_each(found)
    draws = np.random.default_rng(0).integers(0, len(gains), (RESAMPLES, len(gains)))
    moved = {name: tuple(curve.tolist()) for name, curve in zip(ORDERS, each.mean(axis=0), strict=True)}
    return Deletion(
        patients=len(found),
        shares=SHARES,
        moved=moved,
        gain=float(gains.mean()),
        interval=interval(gains[draws].mean(axis=1), len(gains)),
    )


def site_sums(found: Mapping[str, Sequence[Curves]], whole: int) -> dict[str, Any] | None:
    """Return sums over a site's patients; None of fewer than five, or where as few of all are missing.

    Args:
        found: patient -> curves of each slide.
        whole: test patients of the site.

    Returns:
        patients: their number; moved: for each of ``ORDERS`` and ``SHARES`` the sum of how far answers moved; gain: sum
        and sum of squares.
    """
    if len(found) < LEAST_PATIENTS or 0 < whole - len(found) < LEAST_PATIENTS:
        return None
    each, gains = _of_each(found)
    return {
        "patients": len(found),
        "moved": each.sum(axis=0).round(DIGITS_OF_MOVES).tolist(),
        "gain": [round(float(one), DIGITS_OF_MOVES) for one in (gains.sum(), np.square(gains).sum())],
    }


def over_all_sites(sums: Iterable[Mapping[str, Any]]) -> Deletion | None:
    """Return means over the patients of all sites, of sites' sums; None where no site sent any."""
    told = list(sums)
    gain = figure((one["patients"], *one["gain"]) for one in told) if told else None
    if gain is None:
        return None
    means = np.sum([one["moved"] for one in told], axis=0) / gain.patients
    return Deletion(
        patients=gain.patients,
        shares=SHARES,
        moved={name: tuple(curve.tolist()) for name, curve in zip(ORDERS, means, strict=True)},
        gain=gain.mean,
        interval=gain.interval,
    )


def _of_each(found: Mapping[str, Sequence[Curves]]) -> tuple[Curves, NDArray[np.float64]]:
    """Return each patient's curves, (patient, order, share), and gain, (patient,)."""
    each = np.array([np.mean(curves, axis=0) for curves in found.values()])
    return each, (each[:, 0] - each[:, 1]).mean(axis=1)


@torch.no_grad()
def curves_of(
    task: AttentiveTask, network: nn.Module, prepared: Prepared, device: torch.device, random: np.random.Generator
) -> Curves | None:
    """Return how far one slide's answer moves, (order, share); None where it cannot be told.

    Args:
        task: of the network.
        network: on ``device``, in evaluation mode.
        prepared: the slide.
        device: where the network is.
        random: draws random tiles.
    """
    if "bags" not in prepared:
        return None
    whole = task.infer(network, prepared, device)
    before, tiles = task.shares(whole), len(prepared["bags"])
    if getattr(whole, "attention", None) is None or tiles < 2 or not before:
        return None

    def moved(order: NDArray[np.int64], share: float) -> float:
        dropped = min(max(1, math.ceil(share * tiles)), tiles - 1)
        kept = torch.from_numpy(np.sort(order[dropped:]))
        left = {name: values[kept] if name in _OF_TILES else values for name, values in prepared.items()}
        after = task.shares(task.infer(network, left, device))
        return float(np.mean([np.abs(after[name] - numbers).max() for name, numbers in before.items()]))

    falling = np.argsort(-whole.attention, kind="stable")
    drawn = [random.permutation(tiles) for _ in range(_DRAWS)]
    rows = [
        [moved(falling, share) for share in SHARES],
        [float(np.mean([moved(order, share) for order in drawn])) for share in SHARES],
        [moved(falling[::-1].copy(), share) for share in SHARES],
    ]
    return np.array(rows)
