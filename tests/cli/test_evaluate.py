"""``oncofed evaluate`` as its users type it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from commands import Outcome
from oncofed.job.spec import parse_job
from oncofed.report.result import Result, SiteResult
from synthetic import make_site, write_job

Run = Callable[..., Outcome]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run's folder with the weights of the job's seed."""
    folder = tmp_path / "model"
    job = parse_job(write_job(folder))
    (folder / "model").mkdir()
    save_file(job.plan().initial_weights(), folder / "model" / "model.safetensors")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve cases, nine of one scanner."""
    folder = make_site(tmp_path / "data", 12)
    values = json.loads((folder / "dataset.json").read_text())
    for n, entry in enumerate(values["training"]):
        entry["vendor"] = "Siemens" if n < 9 else "[red]GE"
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def test_it_prints_scores_subgroups_and_where_the_files_are(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    done = run("evaluate", model, data, "--split", "all", "--workspace", tmp_path / "ws", "--by", "vendor")
    assert done.status == 0, done.text
    assert "all 12 0." in done.output.replace("\t", " ")
    assert "[red]GE\t3\twithheld: fewer than 5 patients" in done.output
    assert "Siemens\t9\twithheld: it would give others away" in done.output
    assert "Further columns for --by: slices, size, volume_ml" in done.output
    out = tmp_path / "ws" / "evaluations" / "balls-data"
    assert sorted(path.name for path in out.iterdir()) == ["cases.csv", "evaluation.html", "evaluation.json"]
    assert out.stat().st_mode & 0o777 == 0o700
    assert (out / "evaluation.html").stat().st_mode & 0o777 == 0o600


def test_json_output_is_the_shareable_record(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    job = parse_job(write_job(other))
    (other / "model").mkdir()
    weights = {name: value * 1.5 for name, value in job.plan().initial_weights().items() if value.is_floating_point()}
    save_file(job.plan().initial_weights() | weights, other / "model" / "model.safetensors")
    done = run("evaluate", model, data, "--split", "all", "--out", out, "--json", "--worst", "0", "--against", other)
    assert done.status == 0, done.text
    values = json.loads(done.output)
    assert values == json.loads((out / "evaluation.json").read_text())
    assert values["comparison"]["patients"] == 12
    assert "<svg" not in (out / "evaluation.html").read_text()


def test_an_option_adds_the_evaluation_to_the_models_card(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", model, data, "--split", "all", "--out", tmp_path / "out", "--worst", "0", "--card")
    refused = run(*arguments)
    assert (refused.status, "holds no result.json" in refused.text) == (2, True)
    site = SiteResult(
        train_cases=9, validation_cases=5, test_cases=5, federated=0.5, interval={"federated": (0.4, 0.6)}
    )
    values = {"job": "balls", "status": "completed", "backend": "simulate", "rounds": 2, "seed": 3}
    Result(**values, sites={"east": site}).write(model)
    assert run(*arguments).status == 0
    card = json.loads((model / "model" / "card.json").read_text())
    found = card["quantitative_analyses"]["evaluation"]
    assert found == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "## Evaluated on" in (model / "model" / "card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--by", "age"), 2, "no column 'age'; known are"),
        (("--by", "age:7"), 2, "is no range"),
        (("--margin", "0.1"), 2, "name the other one with --against"),
        (("--table", "nowhere.csv"), 3, "nowhere.csv: no such file"),
        (("--device", "tpu"), 2, "tpu"),
        (("--against", "nowhere"), 2, "nowhere: no such file or folder"),
    ],
)
def test_errors_are_one_line(
    run: Run, model: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = run("evaluate", model, data, "--split", "all", "--out", tmp_path / "out", *arguments)
    assert (done.status, words in done.text) == (status, True), done.text
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_no_model_and_no_dataset(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    assert "no such file or folder" in run("evaluate", tmp_path / "nowhere", data).text
    missing = run("evaluate", model, "nowhere", "--workspace", tmp_path)
    assert (missing.status, "neither a folder nor a registered dataset" in missing.text) == (3, True)


def test_a_folder_does_not_hide_its_registered_dataset(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = ("--workspace", tmp_path / "ws")
    shutil.copytree(data / "imagesTr", tmp_path / "in" / "new" / "imagesTr")
    shutil.copytree(data / "labelsTr", tmp_path / "in" / "new" / "labelsTr")
    monkeypatch.chdir(tmp_path / "in")
    assert run("data", "register", "new", "--dataset", "new", *workspace).status == 0
    done = run("evaluate", model, "new", "--split", "all", "--worst", "0", *workspace)
    assert done.status == 0, done.text
    assert "is taken" not in done.text
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("evaluate", model, "new", "--split", "all", "--worst", "0", *workspace)
    assert done.status == 0, done.text
    assert f"new: the dataset registered in {tmp_path / 'ws/datasets/new'} is taken, not the folder" in done.text
    shutil.copy(data / "dataset.json", tmp_path / "elsewhere/new")
    for part in ("imagesTr", "labelsTr"):
        shutil.copytree(data / part, tmp_path / "elsewhere/new" / part)
    done = run("evaluate", model, "new", "--split", "all", "--worst", "0", *workspace)
    assert done.status == 0, done.text
    assert f"new: the folder {tmp_path / 'elsewhere/new'} is taken, not the dataset that is registered so" in done.text


def test_too_few_patients_have_no_interval(run: Run, model: Path, tmp_path: Path) -> None:
    few = make_site(tmp_path / "few", 4)
    done = run("evaluate", model, few, "--split", "all", "--worst", "0", "--workspace", tmp_path / "ws")
    assert done.status == 0, done.text
    assert "too few to tell" in done.output
    assert "too few to tell" in (tmp_path / "ws/evaluations/balls-few/evaluation.html").read_text()
