"""An alliance's folder: foundation and new kits."""

from __future__ import annotations

import stat
from pathlib import Path

import pyrage
import pytest

from oncofed.alliance.authority import Authority
from oncofed.alliance.facts import read_facts
from oncofed.alliance.issued import Alliance, SealedKit
from oncofed.alliance.sealing import unseal
from oncofed.alliance.site_settings import read_settings
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError

PASSWORD = "correct horse battery"
KEY = pyrage.x25519.Identity.generate()
# A password takes a second each time, by design; an age key none.
SEALED_FOR = {"recipient": str(KEY.to_public())}
SPEC = AllianceSpec(
    name="tiny",
    server="fl.example.org",
    sites={"east": SEALED_FOR},
    people={"eng@x.org": {"role": "lead"}},
    **SEALED_FOR,
)
MORE = SPEC.model_copy(update={"sites": AllianceSpec(sites={"east": SEALED_FOR, "west": SEALED_FOR}).sites})


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.txt"
    path.write_text(str(KEY))
    return path


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Alliance, dict[str, SealedKit]]:
    alliance = Alliance(tmp_path_factory.mktemp("alliance") / "home")
    return alliance, {kit.name: kit for kit in alliance.issue(SPEC, PASSWORD)}


def test_only_its_password_or_key_opens_a_kit(
    founded: tuple[Alliance, dict[str, SealedKit]], key: Path, tmp_path: Path
) -> None:
    alliance, kits = founded
    assert {name: kit.kind for name, kit in kits.items()} == {
        "fl.example.org": "server",
        "east": "site",
        "eng@x.org": "person",
    }
    assert [name for name, kit in kits.items() if kit.password] == ["eng@x.org"]
    for name, kit in kits.items():
        unseal(kit.file, tmp_path / name, kit.password, None if kit.password else key)
        facts = read_facts(tmp_path / name)
        assert (facts.participant, facts.kind, facts.alliance) == (name, kit.kind, "tiny")
        assert facts.root_fingerprint == alliance.issued().root_fingerprint
        guide = (tmp_path / name / "guide.html").read_text()
        assert name in guide
        assert facts.root_fingerprint in guide
    assert read_settings(tmp_path / "east").datasets == {}
    assert "monai==" in (tmp_path / "east" / "constraints.txt").read_text()
    assert "site start --folder /srv/oncofed/east" in (tmp_path / "east" / "deploy" / "oncofed.service").read_text()
    assert "TCP port 8002" in (tmp_path / "east" / "guide.html").read_text()


def test_the_alliances_folder_holds_no_open_secret(founded: tuple[Alliance, dict[str, SealedKit]]) -> None:
    alliance, kits = founded
    assert stat.S_IMODE(alliance.home.stat().st_mode) == 0o700
    files = [path for path in alliance.home.rglob("*") if path.is_file()]
    assert len(files) == 6  # the root's two, the list, three kits
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        content = path.read_bytes()
        assert b"PRIVATE KEY" not in content, path
        assert str(kits["eng@x.org"].password).encode() not in content, path


@pytest.fixture
def open_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open each root only once: its password takes seconds."""
    roots: dict[Path, Authority] = {}
    load = Authority.load

    def once(folder: Path, password: str) -> Authority:
        return roots.get(folder) or roots.setdefault(folder, load(folder, password))

    monkeypatch.setattr(Authority, "load", once)


@pytest.mark.usefixtures("open_root")
def test_adding_a_site_changes_no_other_kit(
    founded: tuple[Alliance, dict[str, SealedKit]], key: Path, tmp_path: Path
) -> None:
    alliance, kits = founded
    before = {kit.file: kit.file.read_bytes() for kit in kits.values()}
    (west,) = alliance.issue(MORE, PASSWORD)
    assert west.name == "west"
    assert {file: file.read_bytes() for file in before} == before
    unseal(west.file, tmp_path / "west", None, key)
    certificate = read_facts(tmp_path / "west").certificate(tmp_path / "west")
    certificate.verify_directly_issued_by(Authority.load(alliance.home, PASSWORD).certificate)
    assert f"{certificate.serial_number:x}" == alliance.issued().participants["west"].certificates[0].serial
    assert list(alliance.issue(MORE, PASSWORD)) == []


@pytest.mark.usefixtures("open_root")
def test_changes_that_break_issued_kits_are_refused(founded: tuple[Alliance, dict[str, SealedKit]]) -> None:
    alliance, _ = founded
    with pytest.raises(AllianceError, match="does not open"):
        list(alliance.issue(SPEC, "wrong"))
    with pytest.raises(AllianceError, match=r"port: found 9000, but the alliance .* 8002"):
        list(alliance.issue(SPEC.model_copy(update={"port": 9000}), PASSWORD))
    other = AllianceSpec(sites={"east": {"organisation": "Other"}}).sites
    with pytest.raises(AllianceError, match="east: kind, role or organisation differ"):
        list(alliance.issue(SPEC.model_copy(update={"sites": other}), PASSWORD))
    with pytest.raises(AllianceError, match="never written over"):
        Authority.new("evil").save(alliance.home, PASSWORD)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AllianceError, match="is not empty and holds no alliance"):
        list(Alliance(tmp_path).issue(SPEC, PASSWORD))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("open_root")
def test_an_interrupted_kit_is_made_again(tmp_path: Path) -> None:
    alliance = Alliance(tmp_path / "home")
    people = AllianceSpec(sites=("east",), people={"eng@x.org": {"role": "lead", **SEALED_FOR}}).people
    spec = SPEC.model_copy(update={"people": people})
    kits = alliance.issue(spec, PASSWORD)
    first = next(kits)
    kits.close()
    assert list(alliance.issued().participants) == [first.name]
    assert not list(alliance.home.glob(".making-*")), "keys were left open"
    assert [kit.name for kit in alliance.issue(spec, PASSWORD)] == ["east", "eng@x.org"]


def test_kits_are_sealed_in_parallel(tmp_path: Path) -> None:
    spec = AllianceSpec(name="tiny", sites=("east", "west"), people={}, **SEALED_FOR)
    kits = {kit.name: kit for kit in Alliance(tmp_path / "home").issue(spec, PASSWORD)}
    assert kits["east"].password != kits["west"].password
    with pytest.raises(AllianceError, match="does not open"):
        unseal(kits["west"].file, tmp_path / "west", kits["east"].password)
    unseal(kits["west"].file, tmp_path / "west", kits["west"].password)
