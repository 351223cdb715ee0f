"""Files that only their owner can read."""

import os
import stat

import pytest

from oncofed.atomic import write_whole
from oncofed.private_files import open_private, random_secret, write_private


@pytest.fixture(autouse=True)
def _open_mask():
    """Whatever the user's umask lets through, these files do not."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_reads_a_private_file(tmp_path):
    path = tmp_path / "new" / "key"
    write_private(path, b"secret")
    assert (path.read_bytes(), mode(path), mode(path.parent)) == (b"secret", 0o600, 0o700)
    path.chmod(0o644)
    write_private(path, b"other")
    assert (path.read_bytes(), mode(path)) == (b"other", 0o600)


def test_a_file_that_is_opened_private_is_so_from_its_first_byte(tmp_path):
    with open(tmp_path / "table", "w", opener=open_private) as file:
        assert mode(tmp_path / "table") == 0o600
        file.write("case")


def test_a_secret_is_made_once_and_stays(tmp_path):
    path = tmp_path / "salt"
    secret = random_secret(path)
    assert (len(secret), mode(path)) == (32, 0o600)
    assert random_secret(path) == secret
    assert random_secret(tmp_path / "other") != secret


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "list"
    write_whole(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
