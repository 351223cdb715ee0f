"""The documentation's generated pages say everything that they list."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from oncofed.job.spec import JobSpec
from oncofed.tasks.registry import task_types

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "site"))

from settings_reference import settings_page


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    lines = [line for line in settings_page().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_each_setting_has_a_meaning(rows: list[list[str]]) -> None:
    assert len(rows) > 300
    assert [row[0] for row in rows if len(row) < 4 or not row[-1]] == []


def test_every_section_and_type_of_task_is_there(rows: list[list[str]]) -> None:
    names = {row[0].strip("`") for row in rows}
    assert {field.alias or name for name, field in JobSpec.model_fields.items()} <= names
    page = settings_page()
    assert [name for name in task_types() if f"#### Task {name}\n" not in page] == []
