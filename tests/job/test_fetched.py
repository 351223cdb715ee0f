"""A submitted job's result, fetched from what its rounds left at the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attentive_sites import JOB, train_attentive
from oncofed.alliance.session import EngineerSession
from oncofed.job.flare import export_job
from oncofed.job.remote import fetch
from oncofed.report.result import Result, read_result
from oncofed.rounds.events import EVENTS_FILE, EventLog
from oncofed.tasks.deletion import WHY_NOT_OVER_SITES

pytest.importorskip("h5py")


class Nearby(EngineerSession):
    """A session whose server's files lie here; nothing is asked over the network."""

    def __init__(self, left: Path) -> None:
        self._left = left

    def status(self, job_id: str) -> str:
        """Return that it ended well."""
        del job_id
        return "FINISHED:COMPLETED"

    def download(self, job_id: str, folder: Path) -> Path:
        """Copy what the job left, and return the server's part."""
        shutil.copytree(self._left, folder / job_id)
        return next((folder / job_id).rglob(EVENTS_FILE)).parent


def _fetched(folder: Path, patients: dict[str, int], job: str = JOB) -> tuple[Result, str]:
    """Train at sites of so many patients; return the fetched result and its report."""
    log = EventLog(folder / "left" / "workspace" / EVENTS_FILE)
    spec = train_attentive(folder, patients, log.write, job)
    log.close()
    shutil.copytree(folder / "run" / "models", folder / "left" / "workspace" / "models")
    export_job(spec, folder / "left" / "job")
    fetch(Nearby(folder / "left"), "id", folder / "fetched")
    return read_result(folder / "fetched"), (folder / "fetched" / "report.html").read_text()


def test_the_sites_deletion_test_is_in_the_result_and_its_report(tmp_path: Path) -> None:
    result, report = _fetched(tmp_path, {"east": 12, "west": 12})
    assert result.status == "completed"
    assert result.attention is not None
    assert (result.attention.patients, result.attention_left_out) == (14, "")
    assert "was not tested" not in report


@pytest.mark.parametrize(("network", "patients"), [("attention_mil", 6), ("mean_pooling", 12)])
def test_why_attention_was_not_tested_is_told(network: str, patients: int, tmp_path: Path) -> None:
    """Each site has too few test patients, or the head attends to nothing."""
    job = JOB.replace("attention_mil, arguments: {hidden: 4, attention: 2}", f"{network}, arguments: {{hidden: 4}}")
    result, report = _fetched(tmp_path, {"east": patients, "west": patients}, job)
    assert result.status == "completed"
    assert (result.attention, result.attention_left_out) == (None, WHY_NOT_OVER_SITES)
    assert f"was not tested: {WHY_NOT_OVER_SITES}" in report
    assert (tmp_path / "fetched" / "model" / "bundle" / "configs" / "metadata.json").is_file()
