"""Sites whose features are of different encoders do not train together."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.errors import EncodersDifferError, PolicyError
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Refusal, Result, SiteFacts
from oncofed.privacy.outbound import check_counts
from oncofed.rounds.encoders import common_encoder, difference, is_unknown
from oncofed.rounds.events import EncoderUnknown, Event, Excluded
from oncofed.rounds.in_memory import Delayed, InMemorySites, Site
from tiny_federation import TinySite, tiny_loop, tiny_sites

ONE, OTHER = "ab" * 32, "cd" * 32


def test_sites_that_agree_or_do_not_know_share_an_encoder() -> None:
    assert common_encoder({"east": {"encoder": ONE}, "west": {"encoder": ONE}, "north": {}}, False) == ONE
    assert common_encoder({"east": {"encoder": ONE}, "west": {"encoder": None}}, True) == ONE
    assert common_encoder({"east": {"encoder": None}, "west": {"encoder": None}, "north": {}}, False) is None
    assert [is_unknown(facts) for facts in ({"encoder": None}, {"encoder": ONE}, {})] == [True, False, False]


def test_sites_that_differ_are_told_each_digest_and_what_to_do() -> None:
    with pytest.raises(EncodersDifferError, match=r"east abababababab…, west cdcdcdcdcdcd….*task\.encoder\.digest"):
        common_encoder({"west": {"encoder": OTHER}, "east": {"encoder": ONE}}, True)


def test_a_site_that_does_not_know_is_refused_beside_one_that_does_unless_the_job_allows_it() -> None:
    with pytest.raises(EncodersDifferError, match=r"east abababababab…, west unknown.*task\.encoder\.unknown: allow"):
        common_encoder({"west": {"encoder": None}, "east": {"encoder": ONE}, "north": {}}, False)


def test_a_site_that_comes_late_must_agree_with_those_that_began() -> None:
    assert "of weights cdcdcdcdcdcd…" in difference({"encoder": OTHER}, ONE, True)
    assert "of weights unknown of the encoder, the others' of abab" in difference({"encoder": None}, ONE, False)
    known = difference({"encoder": ONE}, None, False)
    assert "no other site knows which its own are of (nothing is wrong here)" in known
    assert "task.encoder.unknown: allow" in known
    assert not difference({"encoder": None}, ONE, True)
    assert not difference({"encoder": OTHER}, None, True)
    for both in (ONE, None):
        assert not difference({"encoder": both}, both, False)
    assert not difference({}, ONE, False)


def _site(site: TinySite, encoder: str | None, seconds: float = 0) -> Site:
    """Return a site that also tells which encoder made its features, after a while."""

    def work(request: Request) -> Result | Refusal | Delayed:
        answer = site(request)
        if isinstance(answer, SiteFacts):
            return Delayed(SiteFacts({**answer.numbers, "encoder": encoder}), seconds)
        return answer

    return work


def _run(folder: Path, sites: dict[str, Site], **rounds: object) -> list[Event]:
    events: list[Event] = []
    settings = {"rounds": {"number": 1, **rounds}}
    loop = tiny_loop(folder, InMemorySites(sites), events.append, settings=settings)
    try:
        loop.run()
    finally:
        loop.close()
    return events


def test_a_run_ends_before_it_trains_where_sites_differ(tmp_path: Path) -> None:
    tiny = tiny_sites(east=3, west=3)
    with pytest.raises(EncodersDifferError, match=r"east abab.*, west cdcd"):
        _run(tmp_path, {"east": _site(tiny["east"], ONE), "west": _site(tiny["west"], OTHER)})
    assert not [request for site in tiny.values() for request in site.requests if isinstance(request, TrainRequest)]


def test_a_run_ends_before_it_trains_where_only_some_know(tmp_path: Path) -> None:
    tiny = tiny_sites(east=3, west=3)
    with pytest.raises(EncodersDifferError, match=r"east abab.*, west unknown"):
        _run(tmp_path, {"east": _site(tiny["east"], ONE), "west": _site(tiny["west"], None)})
    assert not [request for site in tiny.values() for request in site.requests if isinstance(request, TrainRequest)]


def test_a_run_says_who_does_not_know_and_leaves_out_who_comes_late_and_does(tmp_path: Path) -> None:
    tiny = tiny_sites(east=3, west=3, north=3)
    sites = {
        "east": _site(tiny["east"], None),
        "west": _site(tiny["west"], None),
        "north": _site(tiny["north"], OTHER, seconds=120),
    }
    slow = {**sites, "east": _slow(sites["east"], 300)}
    events = _run(tmp_path, slow, quorum=2, deadline_s=20.0)
    assert [event.site for event in events if isinstance(event, EncoderUnknown)] == ["east", "west"]
    ((site, reason),) = [(event.site, event.reason) for event in events if isinstance(event, Excluded)]
    assert site == "north"
    assert "its features are of weights cdcdcdcdcdcd…" in reason


def _slow(site: Site, seconds: float) -> Site:
    def work(request: Request) -> Result | Refusal | Delayed:
        answer = site(request)
        if isinstance(request, TrainRequest) and not isinstance(answer, Delayed):
            return Delayed(answer, seconds)
        return answer

    return work


def test_a_digest_may_leave_and_a_text_may_not() -> None:
    counts = {"train": 1, "validation": 0, "test": 1}
    check_counts({**counts, "encoder": ONE}, "1")
    with pytest.raises(PolicyError, match="encoder is not within its bounds"):
        check_counts({**counts, "encoder": "Mrs Miller's slides"}, "1")
