"""The documentation of ``dataset.json`` lists exactly its keys."""

from __future__ import annotations

import re
from pathlib import Path

from oncofed.data.manifest import Entry, Manifest

_PAGE = Path(__file__).parents[2] / "custom" / "oncofed" / "data" / "README.md"


def test_every_key_is_described() -> None:
    text = _PAGE.read_text(encoding="utf-8").partition("## `dataset.json`")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    described = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    fields = {field.alias or name for model in (Manifest, Entry) for name, field in model.model_fields.items()}
    assert described == fields
