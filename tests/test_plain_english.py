"""Pages, help and messages are written in the field's words, as a colleague would say it.

A word that is listed here has a plain one, which the message names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
# Pattern -> what to write. Each was found in a page or a message, and stopped a reader.
_WORDS = {
    r"utili[sz]e[sd]?|utili[sz]ing": "use",
    r"leverag(e|es|ed|ing)": "use",
    r"seamless(ly)?": "leave it out, or say what does not happen",
    r"robustly": "say against what",
    r"in order to": "to",
    r"due to the fact that": "because",
    r"at this point in time": "now",
    r"prior to": "before",
    r"subsequent to": "after",
    r"simply|easily|obviously|of course": "leave it out: it may not be so for the reader",
    r"e\.g\.|i\.e\.|etc\.": "such as, that is, and so on",
    r"whilst|amongst": "while, among",
    r"thereof|therein|hereby|whereby|wherein": "of it, in it, by this, by which",
    r"aforementioned|abovementioned": "name it",
    r"shall": "must, or will",
    r"cutting[- ]edge|state[- ]of[- ]the[- ]art|blazing(ly)?|powerful": "say what it does, with a figure",
    r"hassle[- ]free|out of the box": "say what is needed",
    r"world[- ]class|best[- ]in[- ]class|next[- ]generation|game[- ]chang\w+": "say what is better, and by how much",
    r"sanity check": "check",
    r"master/slave|whitelist(ed)?|blacklist(ed)?": "server and client, allowed, refused",
    r"dummy": "made, or empty",
    r"grandfathered": "kept",
    r"he or she|his/her|s/he": "they",
    r"TBD|TODO|FIXME|XXX": "do it, or leave it out",
}
# In pages alone: the code speaks of sites that are told things.
_WORDS_OF_PAGES = {r"(is|are|was|were) (not )?told(?= with| as they| live|[.:;,])": "is reported"}
_LONGEST = 60
_PAGES = sorted(
    [
        *_ROOT.glob("*.md"),
        *(_ROOT / "docs").glob("*.md"),
        *(_ROOT / "jobs").glob("*/README.md"),
        *(_ROOT / "custom").rglob("*.md"),
        *(_ROOT / "custom").rglob("*.md.jinja"),
        *(_ROOT / "provisioning").glob("*.md"),
        _ROOT / "workspace" / "README.md",
    ]
)


def _prose(text: str) -> str:
    """Return a page without code, links' targets and generated parts."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def _flagged(text: str, words: dict[str, str] = _WORDS) -> list[str]:
    """Return each word that is listed, with its advice, in the text's order."""
    found = [
        (match.start(), f"{match[0]!r}: {advice}")
        for pattern, advice in words.items()
        for match in re.finditer(rf"\b({pattern})(?!\w)", text, re.IGNORECASE)
    ]
    return [advice for _, advice in sorted(found)]


def _sentences(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n|\n(?=[|#>-])", text):
        if not block.lstrip().startswith("|"):
            yield from re.split(r"(?<=[.!?;:])\s+", " ".join(block.split()))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(_ROOT).as_posix())
def test_a_page_is_in_plain_words(page: Path) -> None:
    text = _prose(page.read_text(encoding="utf-8"))
    assert _flagged(text, _WORDS | _WORDS_OF_PAGES) == []
    assert [sentence for sentence in _sentences(text) if len(sentence.split()) > _LONGEST] == []


def test_help_and_errors_are_in_plain_words() -> None:
    flagged = {}
    for file in sorted((_ROOT / "custom" / "oncofed").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            # A message is a text with spaces; names, paths and patterns have none.
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 2:
                found = _flagged(re.sub(r"`[^`]*`", "", node.value))
                if found:
                    flagged[f"{file.relative_to(_ROOT)}:{node.lineno}"] = found
    assert flagged == {}


def test_the_list_flags_and_advises() -> None:
    assert _flagged("We utilize a powerful model in order to win.") == [
        "'utilize': use",
        "'powerful': say what it does, with a figure",
        "'in order to': to",
    ]
    assert _flagged("a mistake is told with its line", _WORDS_OF_PAGES) == ["'is told': is reported"]
    assert _flagged("Its engineer is told which site refused it.", _WORDS_OF_PAGES) == []
    assert _flagged("A simplified module is used.") == []
    assert _flagged(_prose("It reads `dummy` and [a page](whitelist.md).")) == []
