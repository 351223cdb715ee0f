"""Files that only their owner can read."""

import os
import stat
import subprocess
import sys

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


def _in_another_process(path, before=""):
    """Return another process's exit status and the secret that it found."""
    code = f"import os, sys\nfrom pathlib import Path\nfrom oncofed.private_files import random_secret\n{before}\n"
    code += "sys.stdout.buffer.write(random_secret(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=False)
    return done.returncode, done.stdout


def test_a_process_killed_while_it_makes_a_secret_leaves_none(tmp_path):
    path = tmp_path / "salt"
    killed, _ = _in_another_process(path, before="os.fsync = lambda descriptor: os.kill(os.getpid(), 9)")
    assert (killed, path.exists()) == (-9, False)
    assert len(random_secret(path)) == 32


@pytest.mark.parametrize("links", [True, False])
def test_two_processes_agree_on_a_secret(tmp_path, monkeypatch, links):
    path, theirs, link = tmp_path / "salt", [], os.link

    def second(source, target):
        theirs.append(_in_another_process(path))
        if not links:
            raise PermissionError(1, "Operation not permitted")  # as on exFAT
        link(source, target)

    monkeypatch.setattr(os, "link", second)
    ours = random_secret(path)
    assert theirs == [(0, ours)]
    assert (len(ours), mode(path), list(tmp_path.iterdir())) == (32, 0o600, [path])


def test_a_secret_is_made_on_a_drive_without_links(tmp_path, monkeypatch):
    def unknown(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    secret = random_secret(tmp_path / "salt")
    assert (len(secret), mode(tmp_path / "salt")) == (32, 0o600)
    assert random_secret(tmp_path / "salt") == secret
    assert list(tmp_path.iterdir()) == [tmp_path / "salt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "list"
    write_whole(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
