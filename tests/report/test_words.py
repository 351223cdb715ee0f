"""Words that no page may say of a model or of a job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import oncofed

_PACKAGE = Path(oncofed.__file__).parent
_ROOT = _PACKAGE.parents[1]
_CLAIMS = re.compile(r"anonym|de-?identif|complian|hipaa|gdpr|guarantee", re.IGNORECASE)
_WRITTEN = sorted(
    [
        *(path for path in (_PACKAGE / "report").rglob("*") if path.suffix in {".py", ".html"}),
        *(_PACKAGE / "exposure").glob("*.py"),
        _PACKAGE / "privacy" / "statement.py",
        _PACKAGE / "cli" / "exposure.py",
    ]
)


@pytest.mark.parametrize("path", _WRITTEN, ids=lambda path: path.name)
def test_reports_and_cards_claim_nothing_that_a_law_defines(path: Path) -> None:
    assert not _CLAIMS.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["README.md", "docs/privacy.md", "docs/differential-privacy.md"])
def test_pages_say_such_words_only_to_forbid_them(name: str) -> None:
    text = " ".join((_ROOT / name).read_text(encoding="utf-8").split())
    said = [one for one in re.split(r"(?<=[.:]) ", text) if re.search(r"anonymous|de-identified|compliant", one)]
    assert all(one.startswith("Do not say") for one in said)
    assert "no differential privacy yet" not in text
