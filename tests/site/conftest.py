"""A small alliance with open kits, for site admins' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.local import free_port
from oncofed.alliance.sealing import sign_folder
from oncofed.alliance.spec import AllianceSpec

PEOPLE = {"admin@x.org": {"role": "project_admin"}, "eng@x.org": {"role": "lead"}}


@pytest.fixture
def kits(tmp_path: Path) -> dict[str, Path]:
    """Open kits of a server, two sites and two people."""
    spec = AllianceSpec(name="tiny", sites=("east", "west"), port=free_port(), people=PEOPLE)
    authority = Authority.new(spec.name)
    folder = provision(spec, tmp_path / "alliance", authority)
    for kit in folder.iterdir():
        add_contents(kit, spec, kit.name, authority)
        sign_folder(kit, authority)
    return {kit.name: kit for kit in folder.iterdir()}
