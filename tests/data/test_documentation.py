"""The documentation of ``dataset.json`` lists exactly its keys."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

from oncofed.data.manifest import Entry, Manifest
from oncofed.data.target_columns import parse_targets

_PAGE = Path(__file__).parents[2] / "custom" / "oncofed" / "data" / "README.md"


def test_the_example_of_targets_is_valid(tmp_path: Path) -> None:
    text = _PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r'```yaml title="targets.yaml"\n(.*?)```', text, re.DOTALL)
    (tmp_path / "targets.yaml").write_text(dedent(example), encoding="utf-8")
    found = parse_targets([str(tmp_path / "targets.yaml")])
    assert found is not None
    in_short = parse_targets(re.findall(r'--targets "?(\w+=[^"\s]+)', text))
    assert in_short is not None
    kinds = {target.kind for target in found.targets.values()}
    assert kinds == {target.kind for target in in_short.targets.values()}
    rows = text.partition("| kind | columns | cells |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == kinds


def test_every_key_is_described() -> None:
    text = _PAGE.read_text(encoding="utf-8").partition("## `dataset.json`")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    described = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    fields = {field.alias or name for model in (Manifest, Entry) for name, field in model.model_fields.items()}
    assert described == fields
