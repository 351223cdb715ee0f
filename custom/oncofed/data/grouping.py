"""Summarise many findings: alike ones together, with examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

EXAMPLES = 3
# Parts that vary between cases with the same fault: quoted names, files, numbers.
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*/\S+|\S+\.[A-Za-z]\w*(?=\s|$)|[-+]?\d[\d.,:x]*")


def kind_of(text: str) -> str:
    """Return a finding's kind: its words without names and numbers."""
    return _VARYING.sub("…", text)


def by_kind(items: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Return kind -> (case, what), the most frequent kind first."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for case, what in items:
        kinds.setdefault(kind_of(what), []).append((case, what))
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def finding_lines(items: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of findings; many as kind and three examples.

    Args:
        items: (case, what was found).
    """
    lines = []
    for kind, found in by_kind(items).items():
        if len(found) == 1:
            lines.append(f"{found[0][0]}: {found[0][1]}")
            continue
        if len({what for _, what in found}) == 1:
            lines.append(f"{len(found):,} cases: {found[0][1]}: {named([case for case, _ in found])}")
            continue
        lines.append(f"{len(found):,} cases: {kind}")
        lines += [f"  {line}" for line in examples(found)]
    return lines


def examples(found: Sequence[tuple[str, str]]) -> list[str]:
    """Return three findings of a kind, and how many more."""
    lines = [f"{case}: {what}" for case, what in found[:EXAMPLES]]
    return [*lines, f"… and {len(found) - EXAMPLES:,} more"] if len(found) > EXAMPLES else lines


def named(names: Sequence[str], count: int | None = None) -> str:
    """Return three names, and how many more.

    ``count``: number of all, if not all are given.
    """
    more = (count or len(names)) - EXAMPLES
    return ", ".join(names[:EXAMPLES]) + (f" and {more:,} more" if more > 0 else "")


def millimetres(length: float) -> str:
    """Return a length as people write it: 0.7, 12.5, 2,000."""
    return f"{length:,.0f}" if abs(length) >= 1000 else f"{length:.4g}"


def counted(count: int, noun: str) -> str:
    """Return "1 case", "2 cases"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
