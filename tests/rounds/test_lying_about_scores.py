"""A server that asks for sums of scores from which a site's own would follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from masking_sites import CASES, MaskingSite, masking_sites
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.sums import FACTORS, SCORES, scores_of, shares_in_sum, summands
from oncofed.messages.requests import EvaluateRequest, Request, TrainRequest
from oncofed.messages.results import Refusal
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskRequest,
    RevealRequest,
    ShareKeysRequest,
    base_digest,
    plan_digest,
    protocol_round,
    read_ready,
    score_form,
    scoring_digest,
    scoring_round,
)
from oncofed.privacy.secure_aggregation import Aggregator, Confirmation, KeyShares, Layout, MaskedInput, Reveal, Rules
from oncofed.privacy.summed_scores import SummedScores
from oncofed.rounds.sums import unverified
from tiny_federation import LAYOUT, PLAN, WEIGHTS, score_of

SUMMED: dict[str, Any] = {"secure_aggregation": {"scores": "summed"}}
_SENT = {name: value for name, value in WEIGHTS.items() if name != "fixed"}


class _Refused(Exception):
    """A site refused a step."""


class _Server:
    """Forms the sums that it likes."""

    def __init__(self, sites: dict[str, MaskingSite]) -> None:
        self._sites, self._federation = sites, FederationPlan.model_validate(SUMMED)
        self._algorithm = self._federation.algorithm()
        form = score_form(PLAN, self._federation)
        assert form
        self._form = form

    def train(self, names: Sequence[str], number: int, score: Sequence[str] | None = None) -> SummedScores:
        """Return the scores of the sites' sum of a round, whose model is always the same."""
        request = TrainRequest(weights=_SENT, round=number, attempt=1)
        tensors = summands(self._algorithm, LAYOUT.sent, self._algorithm.from_clients(LAYOUT), LAYOUT.trained)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()} | {SCORES: (self._form.words,)}
        return self._sum(names, request, protocol_round(number, 0), base_digest(_SENT, {}), shapes, SCORES, score)

    def evaluate(self, names: Sequence[str]) -> SummedScores:
        """Return the scores of the sites' sum on validation patients."""
        request, name = EvaluateRequest(weights=_SENT, round=1, attempt=1), scores_of("validation")
        number = protocol_round(scoring_round(self._federation.rounds.number, "validation"), 0)
        digest = scoring_digest(_SENT, "validation")
        return self._sum(names, request, number, digest, {name: (self._form.words,)}, name, None)

    def _sum(
        self,
        names: Sequence[str],
        request: Request,
        number: int,
        digest: str,
        shapes: dict[str, tuple[int, ...]],
        name: str,
        score: Sequence[str] | None,
    ) -> SummedScores:
        weigh = partial(shares_in_sum, self._algorithm, self._federation.exchange.largest_weight)
        digest_of_plan = plan_digest(PLAN, self._federation)
        one = Aggregator("job", digest_of_plan, Rules(), verify=unverified, weigh=weigh)
        results = {site: self._call(site, request) for site in names}
        messages = [read_ready(results[site].ready, site) for site in names]
        peers = one.peers([advertisement for advertisement, _ in messages])
        one.begin(number, 1, digest, Layout(shapes, FACTORS))
        roster = one.roster([ready for _, ready in messages], score)
        content = {"peers": [peer.to_fields() for peer in peers], "roster": roster.to_fields()}
        step = {"round": 1, "attempt": 1}
        asked: Request = ShareKeysRequest(**step, content=content)
        forwarded = one.forward([KeyShares.from_fields(self._call(site, asked).content) for site in names])
        for site, shares in forwarded.items():
            masked = self._call(site, MaskRequest(**step, content=shares.to_fields()))
            one.add(MaskedInput.from_fields({**masked.content, "words": dict(masked.words)}))
        asked = ConfirmRequest(**step, content=one.survivors().to_fields())
        signed = one.confirmations([Confirmation.from_fields(self._call(site, asked).content) for site in names])
        asked = RevealRequest(**step, content=signed.to_fields())
        found = one.unmask([Reveal.from_fields(self._call(site, asked).content) for site in names])
        return self._form.decoded(found.tensors[name])

    def _call(self, site: str, request: Request) -> Any:
        result = self._sites[site](request)
        if isinstance(result, Refusal):
            raise _Refused(result.reason)
        return result


def _server(folder: Path, **changes: int) -> _Server:
    sites = masking_sites(folder, SUMMED, **{**CASES, **changes})
    for one in sites.values():
        plain = one.site._train

        def train(request: TrainRequest, plain: Any = plain) -> Any:
            result = plain(request)
            # Other batches, another update.
            result.delta["w"].add_(request.round * 1e-5)
            return result

        one.site._train = train  # type: ignore[method-assign]
    return _Server(sites)


_OTHERS = "a server that sums one model's scores twice, without one of the sites"


@pytest.mark.attack(_OTHERS, by="each site: one set of sites for all of a job's sums", logged="the run's incidents")
@pytest.mark.parametrize("again", ["round", "scoring"])
def test_one_sites_scores_are_not_the_difference_of_two_sums(tmp_path: Path, again: str) -> None:
    server, everybody = _server(tmp_path), sorted(CASES)
    first = server.train(everybody, 1)
    assert first.mean == pytest.approx(sum(score_of(site, WEIGHTS) for site in CASES) / 4, abs=1e-3)
    without = [site for site in everybody if site != "west"]
    asked: Callable[[Sequence[str]], SummedScores]
    asked = partial(server.train, number=2) if again == "round" else server.evaluate
    with pytest.raises(_Refused, match="expected those of east, north, south, west as before"):
        asked(without)


def test_a_site_that_comes_later_adds_no_scores(tmp_path: Path) -> None:
    server, three = _server(tmp_path), ["east", "north", "south"]
    first = server.train(three, 1)
    with pytest.raises(_Refused, match="expected those of east, north, south as before"):
        server.train(sorted(CASES), 2)
    # Its update may be in the sum, with the scores of the others.
    assert server.train(sorted(CASES), 3, three).mean == first.mean
    assert server.train(sorted(CASES), 4, ()).mean is None


def test_the_set_is_remembered_by_a_site_that_is_started_again(tmp_path: Path) -> None:
    server, everybody = _server(tmp_path), sorted(CASES)
    server.train(everybody, 1)
    for site in server._sites.values():
        site.start()
    with pytest.raises(_Refused, match="as before"):
        server.train(everybody[:3], 2)
