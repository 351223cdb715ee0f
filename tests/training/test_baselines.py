from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oncofed.data.cases import pool_cases, read_cases
from oncofed.job.spec import JobSpec
from oncofed.training.baselines import Baseline, BaselinePool


@pytest.mark.slow
def test_baselines_take_the_same_steps_and_score_on_each_sites_test_cases(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    plan = spec.plan()
    cases = {site: read_cases(folder, plan.data.split, plan.seed) for site, folder in two_sites.items()}
    tests = {site: c.test for site, c in cases.items()}
    seen: list[int] = []
    with BaselinePool(plan, tmp_path) as pool:
        pooled, east = pool_cases(cases), cases["east"]
        pool.start(
            [
                Baseline("pooled", pooled, tests, pooled.validation),
                Baseline("east", east, {"east": tests["east"]}, east.validation),
            ]
        )
        assert pool.total_steps == 2 * plan.total_steps
        scores = pool.collect(seen.append)
    assert set(scores["pooled"]) == {"east", "west"}
    assert set(scores["east"]) == {"east"}
    assert scores["pooled"]["west"].cases == len(tests["west"])
    assert load_file(tmp_path / "pooled.safetensors").keys() == load_file(tmp_path / "east.safetensors").keys()
    assert seen == sorted(seen)


@pytest.mark.parametrize(("folder", "way"), [("/tmp", "forkserver"), ("/tmp/" + "deep/" * 20, "spawn")])
def test_where_the_temporary_folder_is_too_deep_for_sockets_nothing_is_forked(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, way: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("tempfile.tempdir", folder)
    assert BaselinePool(spec.plan(), tmp_path)._context.get_start_method() == way
