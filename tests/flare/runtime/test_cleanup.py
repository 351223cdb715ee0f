from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from oncofed.flare.folders import INITIAL_MODEL, forget_job
from oncofed.flare.runtime.cleanup import SiteCleanup

JOB = str(uuid.uuid4())
STAYS = {"events.jsonl", "test_cases.csv", "ended", "model/model.safetensors"}


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    kept = ["checkpoint.safetensors", "site.safetensors", ".server.safetensors.x.unfinished", "code/scratch", *STAYS]
    for path in [f"oncofed/{JOB}/{name}" for name in kept] + [f"{JOB}/app/config/{INITIAL_MODEL}", f"{JOB}/log.txt"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_cleanup_keeps_records_and_results(kit: Path) -> None:
    forget_job(kit, JOB)
    assert _files(kit / "oncofed" / JOB) == STAYS
    assert _files(kit / JOB) == {"log.txt"}
    forget_job(kit, JOB)
    forget_job(kit, str(uuid.uuid4()))


def test_cleanup_removes_a_link_but_not_its_target(kit: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    (elsewhere / "a.nii").touch()
    (kit / "oncofed" / JOB / "link").symlink_to(elsewhere)
    forget_job(kit, JOB)
    assert _files(kit / "oncofed" / JOB) == STAYS
    assert _files(elsewhere) == {"a.nii"}


def _tell(kit: Path, told: Any, running: tuple[str, ...] = ()) -> Any:
    workspace, engine = SimpleNamespace(get_root_dir=lambda: str(kit)), SimpleNamespace(get_all_job_ids=lambda: running)
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace, private=True)
    fl_ctx.get_engine = lambda *args, **kwargs: engine  # type: ignore[method-assign]
    return SiteCleanup()._delete_ended("", Shareable({"jobs": told}), fl_ctx).get_header("oncofed.done")


def test_cleanup_skips_a_job_that_is_still_ending(kit: Path) -> None:
    before = _files(kit)
    assert _tell(kit, [JOB], running=(JOB,)) == []
    assert _files(kit) == before
    assert _tell(kit, [JOB]) == [JOB]
    assert _files(kit / "oncofed" / JOB) == STAYS


@pytest.mark.attack(
    "a site is told to forget a job whose name leads to another folder",
    by="a server that was broken into",
    logged="nowhere: nothing is done",
)
@pytest.mark.parametrize("told", [["../startup"], [".."], [""], ["/"], [f"{JOB}/.."], [7], "x", None, [JOB.upper()]])
def test_cleanup_removes_only_jobs(kit: Path, told: Any) -> None:
    before = _files(kit)
    assert _tell(kit, told) == []
    assert _files(kit) == before
