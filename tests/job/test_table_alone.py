"""What a table tells by itself, beside an image's model: as a baseline, and in a comparison of fusions."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from oncofed.data.cases import pool_cases
from oncofed.errors import SpecError
from oncofed.job.compare import outcomes_of_test, with_fusions
from oncofed.models.weights import weights_of
from oncofed.tasks.comparison import compare
from oncofed.training import Trainer
from oncofed.training.baselines import Baseline, BaselinePool
from tabular import IMAGE, JOB, TABLE_ALONE, make_table_site, table_cases, table_job


def test_the_table_alone_is_trained_beside_the_images_of_the_same_cases(tmp_path: Path) -> None:
    spec = table_job(tmp_path).changed({"training": {"steps_per_round": 20}})
    table = spec.plan().of_table_alone()
    assert table is not None
    assert (table.model.network, table.task.type) == ("table", "table_targets")
    assert table.of_table_alone() is None
    cases = pool_cases({"here": table_cases(spec, make_table_site(tmp_path / "set", 60))})
    baselines = [
        Baseline(name, cases, {"here": cases.test}, cases.validation, plan)
        for name, plan in (("pooled", None), ("table", table))
    ]
    with BaselinePool(spec.plan(), tmp_path) as pool:
        pool.start(baselines)
        found = pool.collect()
    assert {name: found[name]["here"].patients for name in found}["table"] == found["pooled"]["here"].patients
    assert (found["table"]["here"].mean or 0) > 0.8


def test_each_way_to_use_the_table_is_a_job(tmp_path: Path) -> None:
    spec = table_job(tmp_path)
    specs = with_fusions(spec, ["none", "concat", "film", "table"])
    sizes = {
        name: sum(value.numel() for value in weights_of(one.plan().build_network()).values())
        for name, one in specs.items()
    }
    assert sizes["table"] < 1000 < sizes["none"] < sizes["concat"] < sizes["film"]
    with pytest.raises(SpecError, match=r"fusion.*sum"):
        with_fusions(spec, ["sum"])
    with pytest.raises(SpecError, match=r"name columns in data.covariates"):
        with_fusions(table_job(tmp_path, JOB.replace(IMAGE, TABLE_ALONE)), ["none"])


def test_two_ways_are_compared_on_the_same_patients(tmp_path: Path) -> None:
    specs = with_fusions(table_job(tmp_path), ["none", "table"])
    folder = make_table_site(tmp_path / "set", 120)
    outcomes = {}
    for name, spec in specs.items():
        trainer = Trainer(spec.plan(), table_cases(spec, folder), "here")
        trainer.train(30 if name == "table" else 1)
        save_file(trainer.weights(), tmp_path / f"{name}.safetensors")
        outcomes[name] = outcomes_of_test(spec, {"here": folder}, tmp_path / f"{name}.safetensors")
    patients = [patient for patient, _ in outcomes["none"]]
    assert patients == [patient for patient, _ in outcomes["table"]]
    task = specs["table"].plan().build_task()
    found = compare(task, patients, [one for _, one in outcomes["table"]], [one for _, one in outcomes["none"]])
    assert found.patients == len(set(patients))
    assert found.difference is not None
    assert found.difference > 0.2
