"""Attention that is faithful moves the answer more than random tiles do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oncofed.data.case import Case
from oncofed.data.spec import DataSpec
from oncofed.tasks import SlideClassification, SlideClassificationSpec
from oncofed.tasks.deletion import (
    ORDERS,
    SHARES,
    curves_of,
    of_patients,
    over_all_sites,
    site_sums,
    slides_to_delete_from,
)
from oncofed.tasks.inferred import SlideScores

DATA = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64))
CPU = torch.device("cpu")
TILES = 200


class _Slides(SlideClassification):
    """Slides that are tumour by their highest tile, with attention as the test wants it."""

    sign = 1.0

    def infer(self, network: nn.Module, prepared: Any, device: torch.device) -> SlideScores:
        values = prepared["bags"][:, 0].double().numpy()
        return SlideScores(np.array([0.0, values.max()]), np.exp(self.sign * values), prepared["places"].numpy())


def _task(sign: float) -> _Slides:
    task = _Slides(SlideClassificationSpec(classes={0: "normal", 1: "tumour"}), DATA)
    task.sign = sign
    return task


def _slide(tiles: int = TILES) -> dict[str, torch.Tensor]:
    bags = torch.zeros(tiles, 3)
    bags[tiles // 3] = 4.0
    return {"bags": bags, "places": torch.zeros(tiles, 2), "slides": torch.zeros(tiles), "label": torch.tensor(1)}


def _curves(sign: float) -> np.ndarray:
    found = curves_of(_task(sign), nn.Identity(), _slide(), CPU, np.random.default_rng(0))
    assert found is not None
    return found


def test_the_tile_that_makes_the_label_moves_the_answer_when_it_is_the_first_to_go() -> None:
    most, random, least = _curves(sign=1.0)
    fall = 1 / (1 + np.exp(-4)) - 0.5
    assert most == pytest.approx([fall] * len(SHARES))
    assert least == pytest.approx([0] * len(SHARES))
    assert random[0] < fall / 2


def test_attention_to_other_tiles_is_seen_to_be_unfaithful() -> None:
    patients = {f"{number}": [_curves(sign=-1.0)] for number in range(6)}
    found = of_patients(patients)
    assert found is not None
    assert found.gain <= 0
    assert found.moved[ORDERS[2]][0] > found.moved[ORDERS[0]][0]


def test_patients_count_alike_however_many_slides_they_have() -> None:
    moved, still = np.ones((3, len(SHARES))), np.zeros((3, len(SHARES)))
    found = of_patients({"many": [moved] * 9, **{f"{n}": [still] for n in range(4)}})
    assert found is not None
    assert found.patients == 5
    assert found.moved[ORDERS[0]] == pytest.approx([0.2] * len(SHARES))


def test_of_fewer_than_five_patients_nothing_is_told() -> None:
    assert of_patients({f"{n}": [np.zeros((3, len(SHARES)))] * 5 for n in range(4)}) is None


def test_a_slide_of_one_tile_has_none_to_drop() -> None:
    assert curves_of(_task(1.0), nn.Identity(), _slide(1), CPU, np.random.default_rng(0)) is None


def test_sites_sums_make_the_means_over_all_their_patients() -> None:
    rng = np.random.default_rng(0)
    sites = [{f"{n}": [rng.random((3, len(SHARES)))] for n in range(count)} for count in (6, 9)]
    together = of_patients({f"{site}/{name}": one for site, of in enumerate(sites) for name, one in of.items()})
    sums = [site_sums(of, len(of)) for of in sites]
    found = over_all_sites([one for one in sums if one])
    assert found is not None
    assert together is not None
    assert found.patients == together.patients == 15
    assert found.gain == pytest.approx(together.gain, abs=1e-4)
    for name in ORDERS:
        assert found.moved[name] == pytest.approx(together.moved[name], abs=1e-4)
    assert found.interval is not None
    assert together.interval is not None
    assert found.interval == pytest.approx(together.interval, abs=0.1)


def test_a_site_tells_of_five_patients_or_more_and_of_no_difference_of_fewer() -> None:
    found = {f"{n}": [np.zeros((3, len(SHARES)))] for n in range(6)}
    assert site_sums(found, 6)
    assert site_sums(found, 11)
    assert site_sums(found, 7) is None
    assert site_sums(dict(list(found.items())[:4]), 4) is None
    assert over_all_sites([]) is None


@pytest.mark.parametrize("slides", [4, 100, 101, 102, 103, 104, 105, 300])
def test_slides_that_are_answered_again_leave_out_nobody_or_five(slides: int) -> None:
    cases = [Case(name=f"s{n}", patient=f"p{n}", image=Path(f"s{n}.svs"), label=n % 2) for n in range(slides)]
    drawn = slides_to_delete_from(cases)
    assert min(slides, 90) <= len(drawn) <= 100
    assert len(drawn) == slides or len(drawn) <= slides - 5
