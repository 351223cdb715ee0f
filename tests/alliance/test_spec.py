"""``alliance.yaml``, and messages about its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.alliance.spec import AllianceSpec, read_alliance
from oncofed.errors import SpecError

GOOD = """\
schema: 1
name: tiny
server: fl.example.org
port: 8002
sites:
  east: {organisation: East, contact: it@east.org}
  west:
people:
  admin@x.org: {role: project_admin}
  eng@x.org: {role: lead, organisation: East}
"""


def test_an_alliance_is_read(tmp_path: Path) -> None:
    file = tmp_path / "alliance.yaml"
    file.write_text(GOOD)
    spec = read_alliance(file)
    assert list(spec.sites) == ["east", "west"]
    assert (spec.sites["east"].contact, spec.sites["west"].organisation) == ("it@east.org", "oncofed")
    assert spec.engineer == "eng@x.org"
    assert spec.route_of("east") == ("fl.example.org", 8002)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port: 8002", "port: 80020", r":4: port: found 80020; .*65535"),
        ("port: 8002", "prot: 8002", r":4: unknown setting prot; allowed here: schema, name, server"),
        (
            "organisation: East, contact",
            "organization: East, contact",
            r":6: .*organization; allowed here: organisation",
        ),
        ("organisation: East,", "organisation: Fred Hutch,", r":6: sites.east.organisation: found 'Fred Hutch'"),
        ("fl.example.org", "https://fl.example.org", r":3: server: found 'https://fl.example.org'"),
        ("role: lead", "role: boss", r":10: people.eng@x.org.role: found 'boss'.*lead"),
        ("  west:\n", "  east:\n", r":7: sites.east is given twice, first on line 6"),
        ("  west:\n", "  EAST:\n", r":7: sites\.EAST: EAST, east: given to two participants"),
        ("  west:\n", "  'we st':\n", r"sites.*we st"),
        ("eng@x.org: {", "eng: {", r"people.*eng"),
        ("contact: it@east.org", "recipient: age1short", r":6: sites.east.recipient: found 'age1short'"),
        ("  east: {organisation: East, contact: it@east.org}\n  west:\n", "- [a]\n", r"found \['a'\] among the names"),
        ("name: tiny", f"name: {'x' * 5000}", r":2: name: found 'x{199}…; "),
        (GOOD, "- a\n", r":1: found list, expected settings such as 'name: my_alliance'"),
        (GOOD, "a: [\n", r"not YAML"),
    ],
)
def test_a_mistake_is_reported_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "alliance.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(SpecError, match=message):
        read_alliance(file)


def test_an_unknown_route_or_relay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"routes\.north: found north, which is no site"):
        AllianceSpec(sites=("east",), routes={"north": ("proxy", 1)})


def test_the_example_is_valid() -> None:
    spec = read_alliance(Path(__file__).parents[2] / "provisioning" / "alliance.yaml")
    assert len(spec.sites) == 4
