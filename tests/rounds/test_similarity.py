"""How alike sites' updates are, and where that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from oncofed.algorithms import Update
from oncofed.algorithms.plan import FederationPlan
from oncofed.messages.requests import PrepareRequest, Request
from oncofed.messages.results import SiteFacts
from oncofed.report.gains import contributions_of
from oncofed.rounds.events import RoundEnded
from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.similarity import similarities
from tiny_federation import TinySite, tiny_loop, tiny_sites


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), sites=st.integers(2, 6))
def test_it_is_the_cosine_with_the_weighted_sum_of_the_others(seed: int, sites: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = [
        {n: torch.randn(k, generator=generator) for n, k in (("a", 7), ("b", 3), ("mean", 2))} for _ in range(sites)
    ]
    updates = [Update(f"s{n}", delta, cases=n + 1) for n, delta in enumerate(deltas)]
    found = similarities([*updates, Update("late", deltas[0], cases=9, staleness=1)], {"a", "b"})
    flat = [torch.cat([delta["a"], delta["b"]]) for delta in deltas]
    for number, own in enumerate(flat):
        others = torch.stack([(n + 1) * other for n, other in enumerate(flat) if n != number]).sum(0)
        assert found[f"s{number}"] == pytest.approx(float(cosine_similarity(own, others, dim=0)), abs=1e-3)
    assert "late" not in found


def test_one_site_alone_and_an_update_of_zeros_have_none() -> None:
    one = Update("a", {"w": torch.ones(2)}, cases=1)
    assert similarities([one], {"w"}) == {}
    assert similarities([one, Update("b", {"w": torch.zeros(2)}, cases=1)], {"w"}) == {}


class _Agreeing(TinySite):
    agrees = True

    def __call__(self, request: Request) -> Any:
        result = super().__call__(request)
        if isinstance(request, PrepareRequest):
            assert isinstance(result, SiteFacts)
            return SiteFacts({**result.numbers, "contributions": self.agrees})
        return result


@pytest.mark.parametrize(("asked", "agreed", "told"), [(True, True, True), (True, False, False), (False, True, False)])
def test_it_is_told_where_the_job_asks_and_all_sites_agree(
    tmp_path: Path, asked: bool, agreed: bool, told: bool
) -> None:
    sites = {name: _Agreeing(one.name, one.cases) for name, one in tiny_sites(east=3, north=4, west=5).items()}
    sites["west"].agrees = agreed
    events: list[Any] = []
    job = {"rounds": {"number": 2}, "evaluation": {"contributions": asked}}
    tiny_loop(tmp_path, InMemorySites(sites), events.append, settings=job).run()
    found = [event.similarity for event in events if isinstance(event, RoundEnded)]
    assert len(found) == 2
    assert all((one is not None) == told for one in found)
    assert not told or set(found[0]) == set(sites)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"secure_aggregation": {}}, "the server is given sums of updates alone"),
        ({"strategy": "cyclic"}, "with cyclic sites do not train"),
        ({"strategy": "swarm"}, "with swarm sites do not train"),
        ({"strategy": "fedbuff"}, "with fedbuff sites do not train"),
    ],
)
def test_it_is_refused_where_the_server_has_no_updates_of_one_model(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FederationPlan.model_validate({**settings, "evaluation": {"contributions": True}})


def test_rounds_count_by_what_they_gained() -> None:
    similarity = {1: {"a": 1.0, "b": 0.0}, 2: {"a": 0.0, "b": 0.5}, 3: {"a": -1.0}}
    found = contributions_of(similarity, {0: 0.1, 1: 0.4, 2: 0.5, 3: 0.3})
    assert found == {"b": pytest.approx(0.125), "a": pytest.approx(0.75)}
    assert list(found) == ["b", "a"]
    assert contributions_of({1: {"a": 0.2}}, {0: 0.5, 1: 0.4}) == {"a": 0.2}
    assert contributions_of({}, {}) == {}
