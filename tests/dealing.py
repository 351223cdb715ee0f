"""How tests are dealt out to the processes that run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
# The last tests are fast, so that no process ends long after the others.
_SHARE_WITH_SLOW = 0.85


def add_group(item: pytest.Item) -> None:
    """Keep a file's tests together, as fixtures are shared.

    Slow tests that share nothing with their file's others go to any process.
    """
    if "slow" not in item.keywords or _shares_a_fixture(item):
        item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(_ROOT))))


def interleaved(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return tests with groups of slow ones between the others.

    A slow test mostly waits for its federation's processes, and the others use the cores meanwhile. Large groups of
    slow tests begin first.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        groups.setdefault(marker.args[0] if marker else item.nodeid, []).append(item)
    sizes = [sum("slow" in item.keywords for item in group) for group in groups.values()]
    slow = [group for size, group in sorted(zip(sizes, groups.values(), strict=True), key=lambda s: -s[0]) if size]
    fast = [group for size, group in zip(sizes, groups.values(), strict=True) if not size]
    places = [(_SHARE_WITH_SLOW * number / len(slow), group) for number, group in enumerate(slow)]
    places += [(number / len(fast), group) for number, group in enumerate(fast)]
    return [item for _, group in sorted(places, key=lambda place: place[0]) for item in group]


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether a test uses a module-scoped fixture."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009 - pytest has no public name for it
    return any(found.scope == "module" for several in definitions.values() for found in several)
