"""Sealed kits: who can open them, and detected changes."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pyrage
import pytest

from oncofed.alliance import passwords
from oncofed.alliance.authority import Authority
from oncofed.alliance.passwords import lock, unlock
from oncofed.alliance.sealing import changed_files, new_password, seal, sign_folder, unseal
from oncofed.errors import AllianceError

PASSWORD = "7K2QF-9M3XA-00000-ABCDE"
# A password takes a second each time, by design; an age key none.
KEY = pyrage.x25519.Identity.generate()
RECIPIENT = str(KEY.to_public())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.txt"
    path.write_text(f"# created: today\n{KEY}\n")
    return path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new("tiny")


@pytest.fixture
def kit(tmp_path: Path, authority: Authority) -> Path:
    folder = tmp_path / "kit"
    (folder / "startup").mkdir(parents=True)
    (folder / "local").mkdir()
    (folder / "startup" / "rootCA.pem").write_bytes(authority.certificate_pem)
    (folder / "startup" / "client.key").write_text("a key")
    (folder / "startup" / "start.sh").write_text("#!/bin/sh\n")
    (folder / "startup" / "start.sh").chmod(0o700)
    (folder / "local" / "resources.json").write_text("{}")
    sign_folder(folder, authority)
    return folder


@pytest.fixture
def sealed(kit: Path, tmp_path: Path) -> Path:
    seal(kit, tmp_path / "east.kit.age", PASSWORD)
    return tmp_path / "east.kit.age"


def test_an_opened_kit_is_unchanged(sealed: Path, kit: Path, tmp_path: Path) -> None:
    unseal(sealed, tmp_path / "out", PASSWORD)
    for path in kit.rglob("*"):
        if path.is_file():
            opened = tmp_path / "out" / path.relative_to(kit)
            assert opened.read_bytes() == path.read_bytes()
            assert stat.S_IMODE(opened.stat().st_mode) == (0o700 if path.suffix == ".sh" else 0o600)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert changed_files(tmp_path / "out") == []
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert b"a key" not in sealed.read_bytes()


def test_only_the_recipients_key_opens_a_kit(kit: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(str(pyrage.x25519.Identity.generate()))
    seal(kit, tmp_path / "east.kit.age", None, RECIPIENT)
    with pytest.raises(AllianceError, match=r"the key in .*other.txt does not open"):
        unseal(tmp_path / "east.kit.age", tmp_path / "out", None, tmp_path / "other.txt")
    unseal(tmp_path / "east.kit.age", tmp_path / "out", None, key)
    assert changed_files(tmp_path / "out") == []


def _left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name == "out" or path.name.startswith(".")]


@pytest.mark.parametrize("where", [0.02, 0.5, 0.99])
def test_one_changed_byte_is_detected(kit: Path, key: Path, tmp_path: Path, where: float) -> None:
    sealed = tmp_path / "east.kit.age"
    seal(kit, sealed, None, RECIPIENT)
    content = bytearray(sealed.read_bytes())
    content[int(len(content) * where)] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(AllianceError, match=r"does not open|no sealed kit"):
        unseal(sealed, tmp_path / "out", None, key)
    assert _left_over(tmp_path) == []


def test_a_wrong_password_and_a_wrong_file_are_named(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(AllianceError, match="this password does not open"):
        unseal(sealed, tmp_path / "out", "wrong")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AllianceError, match="is no sealed kit"):
        unseal(tmp_path / "notes.txt", tmp_path / "out", PASSWORD)
    with pytest.raises(AllianceError, match="No such file"):
        unseal(tmp_path / "nothing", tmp_path / "out", PASSWORD)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(AllianceError, match="is not empty"):
        unseal(sealed, tmp_path / "full", PASSWORD)
    assert _left_over(tmp_path) == []


@pytest.mark.attack(
    "a kit whose archive leads out of its folder, or is a bomb", by="the opener of kits", logged="the command's error"
)
@pytest.mark.parametrize("name", ["../evil.sh", "/etc/evil", "startup/../../evil", "a\\..\\evil", "link"])
def test_paths_outside_the_kit_are_refused(key: Path, tmp_path: Path, name: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = ((stat.S_IFLNK if name == "link" else stat.S_IFREG) | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    (tmp_path / "east.kit.age").write_bytes(pyrage.encrypt(packed.getvalue(), [KEY.to_public()]))
    with pytest.raises(AllianceError, match="outside of its folder"):
        unseal(tmp_path / "east.kit.age", tmp_path / "out", None, key)
    assert _left_over(tmp_path) == []
    assert not (tmp_path / "evil.sh").exists()


def test_a_too_large_archive_is_refused(key: Path, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(65 << 20))
    (tmp_path / "east.kit.age").write_bytes(pyrage.encrypt(packed.getvalue(), [KEY.to_public()]))
    with pytest.raises(AllianceError, match="more than a kit"):
        unseal(tmp_path / "east.kit.age", tmp_path / "out", None, key)


def test_a_kit_with_another_signature_is_refused(kit: Path, key: Path, tmp_path: Path) -> None:
    sign_folder(kit, Authority.new("evil"))
    seal(kit, tmp_path / "east.kit.age", None, RECIPIENT)
    with pytest.raises(AllianceError, match="not signed by the alliance"):
        unseal(tmp_path / "east.kit.age", tmp_path / "out", None, key)


def test_changed_files_of_an_open_kit_are_named(kit: Path) -> None:
    (kit / "startup" / "start.sh").write_text("#!/bin/sh\nevil\n")
    (kit / "startup" / "client.key").unlink()
    (kit / "startup" / "more.sh").touch()
    assert changed_files(kit) == [
        "startup/client.key is missing",
        "startup/start.sh was changed",
        "startup/more.sh does not belong to it",
    ]


def test_passwords_differ() -> None:
    passwords = {new_password() for _ in range(100)}
    assert len(passwords) == 100
    assert all(
        len(password) == 23 and set(password) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ-") for password in passwords
    )


def test_a_busy_machine_is_not_reported_as_a_wrong_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passwords, "_SECONDS_BETWEEN_TRIES", 0.0)
    head, _, rest = lock(b"a key", PASSWORD).partition(b"\n--- ")
    lines = head.split(b"\n")
    lines[1] = lines[1].rsplit(b" ", 1)[0] + b" 40"  # age would take twelve days for this many steps
    with pytest.raises(AllianceError, match="too busy to try the password of east"):
        unlock(b"\n".join(lines) + b"\n--- " + rest, PASSWORD, "east.kit.age")
