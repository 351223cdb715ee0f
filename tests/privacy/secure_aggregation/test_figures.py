"""Figures that a sum has, or a site leaves out of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.privacy.secure_aggregation import ProtocolError, Roster, Rules, threshold
from oncofed.privacy.secure_aggregation.figures import added_by, bits_of, figures_of_enough
from secure_sums import Federation


def _roster(sites: int, adding: int, figures: int = 12) -> Roster:
    """Return a roster whose first sites add figure 9."""
    one = Federation(sites)
    roster = one.begin()
    bits = bits_of([9], figures)
    readies = tuple(replace(r, figures=bits if at < adding else b"\0\0") for at, r in enumerate(roster.readies))
    return replace(roster, readies=readies)


@given(st.sets(st.integers(0, 99)))
def test_bits_are_the_figures(added: set[int]) -> None:
    assert added_by(bits_of(added, 100)) == added
    assert len(bits_of(added, 100)) == 13


@pytest.mark.parametrize("sites", range(3, 13))
def test_three_sites_are_left_whichever_are_lost(sites: int) -> None:
    lost = sites - max(threshold(sites), 3)
    for adding in range(sites + 1):
        roster = _roster(sites, adding)
        shared = [ready.site for ready in roster.readies]
        found = figures_of_enough(roster, shared, Rules())
        assert found == (frozenset({9}) if adding - lost >= 3 else frozenset())


def test_who_shared_no_keys_does_not_count() -> None:
    roster = _roster(8, 5)
    shared = [ready.site for ready in roster.readies]
    assert figures_of_enough(roster, shared, Rules()) == {9}  # of 8 sites, 2 may be lost
    assert figures_of_enough(roster, shared[1:], Rules()) == {9}  # of these 7, one
    assert figures_of_enough(roster, shared[3:], Rules()) == frozenset()
    # A policy that asks for more sites in the sum lets fewer be lost.
    assert figures_of_enough(_roster(8, 3), shared, Rules(smallest_sum=8)) == {9}


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
