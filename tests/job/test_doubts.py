"""What a person should know of a job's targets is told before a run starts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from commands import Outcome
from oncofed.job.site_data import checked_sites
from oncofed.site.datasets import check_datasets
from tabular import JOB, make_table_site, table_job

TARGETS = 'targets:\n  - {name: outcome, kind: class, classes: ["no", "yes"]}\n'
FINDINGS = f"{TARGETS}  - {{name: signs, kind: labels, findings: [oedema, effusion]}}\n"
LEAK = "column gone (2 texts) tells in all 48 patients the value of outcome. Is it known before the outcome is?"
TYPO = "signs: oedema: nobody was looked at; the dataset has edema, effusion"


def doubtful(folder: Path) -> Path:
    """Write a site with a column that is the outcome, and a finding that the job spells otherwise."""
    file = make_table_site(folder) / "dataset.json"
    values = json.loads(file.read_text())
    values["targets"]["signs"] = {"kind": "labels", "names": ["edema", "effusion"]}
    for number, entry in enumerate(values["training"]):
        entry["tags"]["gone"] = {"no": "here", "yes": "gone"}[entry["targets"]["outcome"]]
        entry["targets"]["signs"] = {"edema": number % 2 == 0, "effusion": number % 3 == 0}
    file.write_text(json.dumps(values))
    return folder


def doubtful_job() -> str:
    covariate = "    - {name: gone, categories: [here, gone]}\n"
    return JOB.replace("targets:\n", f"{covariate}targets:\n").replace(TARGETS, FINDINGS)


def test_a_run_tells_them_before_it_starts(tmp_path: Path) -> None:
    file = io.StringIO()
    sites = {"east": doubtful(tmp_path / "east"), "west": make_table_site(tmp_path / "west")}
    checked_sites(table_job(tmp_path, doubtful_job()), sites, Console(file=file, width=80))
    told = file.getvalue()
    assert f"found east: column that tells the outcome: {LEAK}" in told
    assert f"warning east: {TYPO}" in told
    assert "warning west: signs: no patient has it" in told
    assert "found west" not in told


def test_a_check_does_not_let_a_job_train_without_them(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    spec = table_job(tmp_path, doubtful_job())
    folder = doubtful(tmp_path / "east")
    checked = run("data", "check", tmp_path / "job.yaml", folder)
    assert checked.status == 3
    last = checked.text.partition("The job may train here")[2]
    assert "But first answer the finding above." in last
    assert checked.text.count(LEAK) == 1
    assert "to go on: take it out of data.covariates in the job" in checked.text
    assert TYPO in checked.text
    (check,) = [found for found in check_datasets({"flat": folder}, {"outcome": spec.plan()}) if "job" in found.name]
    assert (check.state, LEAK in check.found) == ("warn", True)
    assert "set aside" not in check.found
