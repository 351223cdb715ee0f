"""Summarises trust warnings of many cases.

Reasons of one kind are joined, with the range of their values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from oncofed.data.grouping import counted, named

# Verdict -> words for people.
VERDICTS = {"outside": "not like what the model was trained on", "look": "look closely"}
_LIKELY_CAUSES = {
    "the network is unsure": "it may have been trained too briefly",
    "models of the run differ": "they may have been trained too briefly, or their sites' images differ",
}
# Fewest cases for a statement about most of them.
_FEWEST_FOR_MOST = 3
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\d)")


def warning_lines(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (verdict, cases and reason), the most common first.

    Args:
        records: contents of ``case.json``.
    """
    return [(verdict, _line(cases, len(records))) for verdict, cases in _kinds(records)]


def common_warnings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings that hold for most cases."""
    of = len(records)
    return [f"{verdict}: {_line(cases, of)}" for verdict, cases in _kinds(records) if _are_most(len(cases), of)]


def _kinds(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group reasons that differ only in numbers.

    Returns (verdict, (case, reason) of each).
    """
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for record in records:
        trust = record["trust"] or {}
        for reason in trust.get("reasons") or ():
            kind = VERDICTS[trust["verdict"]], _NUMBER.sub("#", reason)
            kinds.setdefault(kind, []).append((record["name"], reason))
    return sorted(((verdict, cases) for (verdict, _), cases in kinds.items()), key=lambda one: -len(one[1]))


def _are_most(count: int, of: int) -> bool:
    return count * 2 > of >= _FEWEST_FOR_MOST


def _line(cases: Sequence[tuple[str, str]], of: int) -> str:
    words = "".join(_with_ranges([reason for _, reason in cases]))
    if len(cases) == 1:
        return f"{cases[0][0]}: {words}"
    if _are_most(len(cases), of):
        cause = next((f"; {cause}" for start, cause in _LIKELY_CAUSES.items() if words.startswith(start)), "")
        return f"{len(cases):,} of {counted(of, 'case')}: {words}{cause}"
    return f"{counted(len(cases), 'case')}: {words}: {named([name for name, _ in cases])}"


def _with_ranges(texts: Iterable[str]) -> Iterator[str]:
    """Yield a text's parts, numbers replaced by their ranges."""
    texts = list(texts)
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    for between, values in zip(_NUMBER.split(texts[0]), [*columns, ()], strict=True):
        yield between
        low, high = (min(values, key=float), max(values, key=float)) if values else ("", "")
        yield low if float(low or 0) == float(high or 0) else f"{low} to {high}"
