from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncofed.alliance.kits import APPROVED_CLASSES
from oncofed.errors import SpecError
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec, read_any_job
from oncofed.training import Plan


def _class_paths(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["path"]] if "path" in value else []
        return own + [p for v in value.values() for p in _class_paths(v)]
    if isinstance(value, list):
        return [p for v in value for p in _class_paths(v)]
    return []


def test_an_exported_job_is_json_only_and_names_approved_classes_only(spec: JobSpec, tmp_path: Path) -> None:
    paths = set()
    for job in (spec, read_any_job("federated_profile")):
        folder = export_job(job, tmp_path / "exported" / job.name)
        files = [f for f in folder.rglob("*") if f.is_file()]
        assert {f.suffix for f in files} == {".json"}
        assert not list(folder.rglob("custom"))
        paths |= {p for f in files for p in _class_paths(json.loads(f.read_text()))}
    assert paths == set(APPROVED_CLASSES)


def test_the_whole_plan_travels(spec: JobSpec, tmp_path: Path) -> None:
    config = export_job(spec, tmp_path / "exported") / "app" / "config"
    server = json.loads((config / "config_fed_server.json").read_text())
    client = json.loads((config / "config_fed_client.json").read_text())
    assert Plan.model_validate(server["workflows"][0]["args"]["plan"]) == spec.plan()
    assert Plan.model_validate(client["executors"][0]["executor"]["args"]["plan"]) == spec.plan()


def test_only_a_job_folder_is_replaced_and_only_with_force(spec: JobSpec, tmp_path: Path) -> None:
    folder = export_job(spec, tmp_path / "exported")
    with pytest.raises(SpecError, match="exists"):
        export_job(spec, folder)
    export_job(spec, folder, force=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("chapter 1")
    with pytest.raises(SpecError, match="exists"):
        export_job(spec, precious, force=True)
    assert (precious / "thesis.txt").exists()
