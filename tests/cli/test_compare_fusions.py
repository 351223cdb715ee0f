"""``oncofed job compare --fusions``: what a table adds to the image, on the same patients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from commands import left_running, oncofed
from tabular import JOB, make_table_site

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.mark.thorough
def test_image_and_table_are_compared_with_the_table_alone(tmp_path: Path) -> None:
    sites = {name: make_table_site(tmp_path / name, 80, seed, 50.0 + 5 * seed) for seed, name in enumerate(("a", "b"))}
    job = tmp_path / "job" / "job.yaml"
    job.parent.mkdir()
    job.write_text(JOB.replace("steps_per_round: 30", "steps_per_round: 5"))
    out = tmp_path / "compared"
    folders = [argument for name, folder in sites.items() for argument in ("--site", f"{name}={folder}")]
    arguments = [*folders, "--backend", "simulate", "--json", "--out", out]
    done = oncofed("job", "compare", job, "--fusions", "concat,table", *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    concat, table = json.loads(done.stdout)["rows"]
    assert [row["strategy"] for row in (concat, table)] == ["concat", "table"]
    assert concat["paired"] is None
    assert table["paired"]["patients"] == 32
    low, high = table["paired"]["interval"] or (-1, 1)  # two models that make no mistake differ in no draw
    assert low <= table["paired"]["difference"] <= high

    run = out / "concat-seed-1"
    result = json.loads((run / "result.json").read_text())
    for values in (*result["sites"].values(), result["mean"]):
        assert 0 <= values["table"] <= 1
    assert "<b>Table</b>" in (run / "report.html").read_text()
    weights = load_file(out / "table-seed-1" / "model" / "model.safetensors")
    assert 45 < float(weights["row.0.numbers_mean"]) < 60, "over both sites"
    assert 5 < float(weights["row.0.numbers_spread"]) < 15
    assert left_running(tmp_path) == []
