"""Renewal of a kit: what changes, stays and is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome
from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.facts import read_facts
from oncofed.alliance.kits import provision
from oncofed.alliance.sealing import changed_files, sign_folder
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.site.renewal import renew
from oncofed.site.service import require_unchanged

PEOPLE = {"eng@x.org": {"role": "lead"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Old and new kits of an alliance, and a namesake's."""
    folder = tmp_path_factory.mktemp("made")
    root, others = Authority.new("tiny"), Authority.new("tiny")
    kits = {}
    for label, days, authority in (("old", 30, root), ("new", 300, root), ("evil", 300, others)):
        spec = AllianceSpec(name="tiny", sites=("east", "west"), people=PEOPLE, valid_days=days)
        kits[label] = provision(spec, folder / label, authority)
        for kit in kits[label].iterdir():
            add_contents(kit, spec, kit.name, authority)
            sign_folder(kit, authority)
    return kits


@pytest.fixture
def kit(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["old"] / "east", tmp_path / "east"))


def _copied(kit: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(kit, folder)


def test_renewal_replaces_the_certificate_and_keeps_site_files(kit: Path, made: dict[str, Path]) -> None:
    (kit / "site.yaml").write_text("datasets: {balls: /data/balls}\n")
    (kit / "local" / "privacy.json.sample").write_text("mine")
    (kit / "deploy" / "compose.yaml").write_text("mine")
    require_unchanged(kit)
    (kit / "local" / "datasets.json").write_text("{}")
    (kit / "storage").mkdir()
    (kit / "storage" / "job").write_text("kept")
    old = read_facts(kit).certificate(kit)
    until, kept = renew(kit, _copied(made["new"] / "east"))
    new = read_facts(kit).certificate(kit)
    assert new.serial_number != old.serial_number
    assert until == new.not_valid_after_utc > old.not_valid_after_utc
    assert kept == ["deploy/compose.yaml", "local/privacy.json.sample"]
    assert (kit / "deploy" / "compose.yaml").read_text() == "mine"
    assert "/data/balls" in (kit / "site.yaml").read_text()
    assert (kit / "storage" / "job").read_text() == "kept"
    assert (kit / "startup" / "client.key").read_bytes() == (made["new"] / "east/startup/client.key").read_bytes()
    require_unchanged(kit)
    assert not list(kit.glob(".renewal"))
    # Repeating it does no harm: somebody may not know how far it got.
    renew(kit, _copied(made["new"] / "east"))


@pytest.mark.parametrize(
    ("newer", "said"),
    [
        ("new/west", "participant west"),
        ("evil/east", "root_fingerprint"),
        ("new/eng@x.org", "participant eng@x.org"),
    ],
)
def test_another_participants_kit_changes_nothing(kit: Path, made: dict[str, Path], newer: str, said: str) -> None:
    label, name = newer.split("/")
    before = {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}
    with pytest.raises(AllianceError, match=said):
        renew(kit, _copied(made[label] / name))
    assert {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()} == before


def test_an_older_or_sealed_kit_changes_nothing(
    kit: Path, made: dict[str, Path], run: Callable[..., Outcome], tmp_path: Path
) -> None:
    renew(kit, _copied(made["new"] / "east"))
    with pytest.raises(AllianceError, match="nothing was changed"):
        renew(kit, _copied(made["old"] / "east"))
    (tmp_path / "east.kit.age").write_text("age-encryption.org/v1\nbroken")
    (tmp_path / "password.txt").write_text("wrong\n")
    refused = run(
        "site", "renew", tmp_path / "east.kit.age", "--folder", kit, "--password-file", tmp_path / "password.txt"
    )
    assert (refused.status, "does not open" in refused.text) == (1, True)
    assert changed_files(kit) == []
    assert not list(kit.glob(".renewal"))


def test_an_interrupted_renewal_can_be_repeated(kit: Path, made: dict[str, Path]) -> None:
    """The worst moment: new keys with the old ``kit.json``."""
    shutil.rmtree(kit / "startup")
    shutil.copytree(made["new"] / "east" / "startup", kit / "startup")
    assert changed_files(kit)
    (kit / ".renewal").mkdir()
    renew(kit, _copied(made["new"] / "east"))
    assert changed_files(kit) == []
