"""Groups of few patients, and those that would give them away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oncofed.suppression import withheld

_GROUPS = st.lists(st.frozensets(st.integers(0, 30)), max_size=7)


def _of(*sizes: int) -> list[frozenset[int]]:
    """Return groups of so many patients each, of whom none is in two."""
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [frozenset(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def test_one_small_group_takes_the_next_smallest_along() -> None:
    assert withheld(_of(30, 17, 3), 5) == {1, 2}
    assert withheld(_of(30, 17, 5), 5) == set()
    assert withheld(_of(3), 5) == {0}
    assert withheld(_of(12), 5) == set()
    assert withheld([], 5) == set()


def test_small_groups_that_hide_each_other_stand_alone() -> None:
    assert withheld(_of(30, 4, 3), 5) == {1, 2}  # 7 patients together
    assert withheld(_of(30, 2, 2, 9), 5) == {1, 2, 3}  # 4 together would be what is left of the total


def test_what_is_withheld_anyway_hides_others() -> None:
    assert withheld(_of(30, 17, 9), 5, {1}) == {1, 2}
    assert withheld(_of(30, 17, 9), 5, {1, 2}) == {1, 2}
    assert withheld([frozenset(), *_of(30, 9)], 5, {0}) == {0}  # nobody is in it: nothing follows from it


@given(_GROUPS)
def test_no_group_of_few_patients_follows_from_the_total(groups: list[frozenset[int]]) -> None:
    hidden = withheld(groups, 5)
    shown = [group for n, group in enumerate(groups) if n not in hidden]
    assert all(not group or len(group) >= 5 for group in shown)
    rest = [groups[n] for n in hidden if groups[n]]
    everyone = [group for group in groups if group]
    if rest and len(rest) < len(everyone):
        assert len(rest) >= 2
        assert len(frozenset().union(*rest)) >= 5
