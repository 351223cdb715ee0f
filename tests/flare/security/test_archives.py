"""The server's checks of a submitted job's archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from oncofed.flare.folders import JOB_PACK
from oncofed.flare.security.archives import check_submissions, pack_of_submission


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of an archive that FLARE accepts."""
    monkeypatch.setattr(JobMetaValidator, "validate", lambda *_: (True, "", {}))
    check_submissions(pytest.fail)
    return tmp_path / "job.zip"


def _take(archive: Path, *packs: str) -> bytes | None:
    with zipfile.ZipFile(archive, "w") as file:
        for folder in packs:
            file.writestr(f"job/{folder}/config/{JOB_PACK}", b"a pack, " * 9)
    return _taken(archive)


def _taken(archive: Path) -> bytes | None:
    valid, error, _ = JobMetaValidator().validate("job", str(archive))
    assert (valid, error) == (True, "")
    return pack_of_submission()


def test_the_one_pack_of_a_job_is_found(taken: Path) -> None:
    assert _take(taken, "app") == b"a pack, " * 9
    assert _take(taken) is None
    assert _take(taken, "app", "other") is None


def test_a_broken_pack_in_an_archive_is_none(taken: Path) -> None:
    _take(taken, "app")
    taken.write_bytes(taken.read_bytes().replace(b"a pack, ", b"A PACK, ", 1))
    assert _taken(taken) is None
