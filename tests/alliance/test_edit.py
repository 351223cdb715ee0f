"""A new name in an alliance.yaml that keeps its form."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome
from oncofed.alliance.edit import add_participant
from oncofed.alliance.issued import Alliance
from oncofed.alliance.spec import read_alliance
from oncofed.errors import SpecError

TEXT = """\
# The alliance of two
sites:
  east:
    organisation: "East"    # by the river
    # recipient: age1...

# Who looks after it
people:
  eng@x.org: {role: lead}   # submits
port: 9000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "alliance.yaml"
    path.write_text(TEXT)
    return path


def _new_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_adding_a_name_adds_one_line_and_keeps_comments(file: Path) -> None:
    spec = add_participant(file, "sites", "west", {"organisation": "West", "contact": "a, b: c", "recipient": None})
    assert spec.sites["west"].contact == "a, b: c"
    assert read_alliance(file) == spec
    assert _new_lines(TEXT, file.read_text()) == ["+   west: {organisation: West, contact: 'a, b: c'}"]
    assert file.read_text().index("# recipient") < file.read_text().index("west")
    once = file.read_text()
    add_participant(file, "people", "bob@x.org", {"role": "member"})
    assert _new_lines(once, file.read_text()) == ["+   bob@x.org: {role: member}"]


@pytest.mark.parametrize(
    "text", ["sites: [east]\n", "sites:\n- east  # one\n", "sites: {east: {}}\n", "sites:\n  east:\n"]
)
def test_a_site_can_be_added_to_every_notation(file: Path, text: str) -> None:
    file.write_text(text)
    assert list(add_participant(file, "sites", "west", {"organisation": "West"}).sites) == ["east", "west"]


def test_the_default_people_stay(file: Path) -> None:
    file.write_text("sites: [east]\n")
    before = read_alliance(file).people
    after = add_participant(file, "people", "bob@x.org", {"role": "lead"}).people
    assert {name: after[name] for name in before} == before
    assert list(after)[-1] == "bob@x.org"


@pytest.mark.parametrize(
    ("group", "name", "values", "said"),
    [
        ("sites", "east", {}, "has east already"),
        ("sites", "EAST", {}, "given to two participants"),
        ("sites", "../west", {}, "left as it was"),
        ("sites", "west", {"organisation": "a b"}, "organisation"),
        ("people", "bob", {"role": "lead"}, "left as it was"),
        ("people", "bob@x.org", {"role": "king"}, "role"),
    ],
)
def test_an_invalid_addition_leaves_the_file_unchanged(
    file: Path, group: str, name: str, values: dict[str, str], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        add_participant(file, group, name, values)  # type: ignore[arg-type]
    assert file.read_text() == TEXT
    assert [path.name for path in file.parent.iterdir()] == ["alliance.yaml"]


def test_a_site_with_its_own_key_is_added_without_a_kit(file: Path, run: Callable[..., Outcome]) -> None:
    added = run("alliance", "add-site", file, "west", "--organisation", "West", "--own-key")
    assert added.status == 0, added.text
    added = run("alliance", "add-user", file, "bob@x.org", "--organisation", "West", "--role", "member", "--own-key")
    assert added.status == 0, added.text
    spec = read_alliance(file)
    assert set(spec.everybody) >= {"west", "bob@x.org"}
    assert Alliance(file.parent / "home").without_kit(spec) == ["localhost", "east", "eng@x.org"]
