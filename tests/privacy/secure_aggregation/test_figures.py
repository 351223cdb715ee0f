"""Whose scores a sum has, and which figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.privacy.secure_aggregation import AggregationFailed, ProtocolError, Roster, Rules
from oncofed.privacy.secure_aggregation.figures import added_by, bits_of, figures_summed, sites_scored
from secure_sums import BASE, Federation

_BITS = bits_of([1, 9], 12)


def _begun(sites: int, having: int, rules: Rules | None = None) -> tuple[Federation, Roster]:
    """Begin a sum, in which the first sites have scores."""
    one = Federation(sites, rules=rules)
    one.begin()
    readies = [
        site.ready(1, 2, BASE, one.cases[name], 10, one.norm(name), _BITS if at < having else b"\0\0")
        for at, (name, site) in enumerate(one.participants.items())
    ]
    one.aggregator.begin(1, 2, BASE, one.aggregator._under_way("").layout)
    return one, one.aggregator.roster(readies, None)


@given(st.sets(st.integers(0, 99)))
def test_bits_are_the_figures(added: set[int]) -> None:
    assert added_by(bits_of(added, 100)) == added
    assert len(bits_of(added, 100)) == 13


def test_a_sum_has_scores_of_enough_sites_and_always_of_the_same() -> None:
    _, roster = _begun(5, 4)
    four = tuple(ready.site for ready in roster.readies)[:4]
    assert roster.scored == four
    assert sites_scored(roster.readies, None, 5) == ()
    assert sites_scored(roster.readies, four[:3], 3) == four[:3]
    assert sites_scored(roster.readies, [*four, "site-04"], 3) == ()
    assert _begun(5, 2)[1].scored == ()


def test_sites_with_other_figures_add_their_mean_alone() -> None:
    _, roster = _begun(5, 4)
    assert figures_summed(roster, frozenset({1})) == {1, 9}
    other = replace(roster.readies[0], figures=bits_of([1], 12))
    mixed = replace(roster, readies=(other, *roster.readies[1:]))
    assert figures_summed(mixed, frozenset({1})) == {1}
    # A site whose scores are not in the sum does not count.
    assert figures_summed(replace(mixed, scored=roster.scored[1:]), frozenset({1})) == {1, 9}


@pytest.mark.attack(
    "a server that sums the scores of fewer sites than a policy asks for, or of others than have one",
    by="each site's check of the roster",
    logged="the site's log; the run's incidents",
)
def test_scores_of_too_few_sites_are_refused() -> None:
    sites, roster = _begun(6, 6, Rules(smallest_sum=5))
    site = sites.participants["site-00"]
    for scored, match in (
        (roster.scored[:4], "the sum of scores has 4 sites, expected at least 5"),
        ((*roster.scored[:5], "site-09"), "sites without scores"),
        (tuple(reversed(roster.scored)), "not sorted"),
    ):
        with pytest.raises(ProtocolError, match=match):
            site.share_keys(replace(roster, scored=scored))
    strangers = Rules(smallest_sum=5, peers=frozenset({"AB"}))
    sites, roster = _begun(6, 6)
    sites.participants["site-00"]._rules = strangers
    with pytest.raises(ProtocolError, match="names as peers"):
        sites.participants["site-00"].share_keys(roster)


@pytest.mark.attack(
    "a server that loses one site's scores on the way, for the difference to another sum",
    by="each site: all whose scores are in the sum share, upload and sign, or nothing is revealed",
    logged="the site's log; the run's incidents",
)
@pytest.mark.parametrize("step", ["share", "upload", "confirm"])
def test_no_site_whose_scores_are_in_the_sum_is_lost(step: str) -> None:
    sites, roster = _begun(5, 5)
    first, last = sites.names[0], sites.names[-1]
    without = sites.names[:-1]
    forwarded = sites.share(roster)
    if step == "share":
        one = forwarded[first]
        fewer = replace(one, sealed={name: part for name, part in one.sealed.items() if name != last})
        with pytest.raises(ProtocolError, match=f"{last} has not shared its keys"):
            sites.participants[first].mask(fewer, sites.updates[first])
        with pytest.raises(AggregationFailed, match="needs all of its sites"):
            sites.share(roster, without)
        return
    masked = {name: sites.mask(name, forwarded) for name in sites.names}
    for name in without:
        sites.aggregator.add(masked[name])
    if step == "upload":
        with pytest.raises(AggregationFailed, match="needs all of its sites"):
            sites.aggregator.survivors()
        sites.aggregator.add(masked[last])
        survivors = replace(sites.aggregator.survivors(), sites=tuple(without))
        with pytest.raises(ProtocolError, match=f"{last} is not among the survivors"):
            sites.participants[first].confirm(survivors)
        return
    sites.aggregator.add(masked[last])
    survivors = sites.aggregator.survivors()
    signed = [sites.participants[name].confirm(survivors) for name in sites.names]
    with pytest.raises(AggregationFailed, match="needs all of its sites"):
        sites.aggregator.confirmations(signed[:-1])
    whole = sites.aggregator.confirmations(signed)
    fewer_signed = replace(whole, signatures={name: whole.signatures[name] for name in without})
    with pytest.raises(ProtocolError, match=f"{last} has not confirmed the roster"):
        sites.participants[first].reveal(fewer_signed)
    sites.participants[first].reveal(whole)


@pytest.mark.attack(
    "a server that says more sites have a score than do, so that the sum is one site's",
    by="each site's check of the signed roster",
    logged="the site's log; the run's incidents",
)
def test_a_server_cannot_add_a_sites_figures() -> None:
    sites = Federation(3)
    roster = sites.begin()
    changed = replace(roster.readies[1], figures=b"\x01")
    lying = replace(roster, readies=(roster.readies[0], changed, roster.readies[2]))
    with pytest.raises(ProtocolError, match="READY of site-01 is not signed"):
        sites.participants["site-00"].share_keys(lying)


def test_an_update_with_other_scores_is_the_same_update() -> None:
    """Else it could be masked again after it was revealed."""
    sites = Federation(3, shapes={"w": (3,), "@scores": (2,)}, factors={"@scores": 1 / 16})
    sites.run()
    for update in sites.updates.values():
        update["@scores"] = update["@scores"] + 1
    again = sites.share(sites.begin(2))
    with pytest.raises(ProtocolError, match="of this very update"):
        sites.mask(sites.names[0], again)
