from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oncofed.artifacts.provenance import write_provenance
from oncofed.errors import SpecError
from oncofed.job.spec import parse_job
from oncofed.models.weights import digest_of
from oncofed.prediction.model import load_model
from synthetic import write_job

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with untrained weights.

    As ``job run`` leaves it.
    """
    job = parse_job(write_job(tmp_path / "run"))
    weights = job.plan().initial_weights()
    (tmp_path / "run" / "model").mkdir()
    save_file(weights, tmp_path / "run" / "model" / "model.safetensors")
    write_provenance(tmp_path / "run" / "provenance.json", weights, {"job": job.name}, tmp_path)
    return tmp_path / "run"


def test_a_run_gives_its_network_and_digest(run: Path) -> None:
    model = load_model(run)
    expected = model.job.plan().build_network().eval()
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(model.network(CPU)(image), expected(image))
    assert model.digest == digest_of(model.weights, hashlib.sha256).hexdigest() == model.provenance["model"]


@pytest.mark.parametrize("inside", ["model", "model/model.safetensors", "job.yaml"])
def test_files_in_a_run_lead_to_the_run(run: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(run / inside).folder == run
    monkeypatch.chdir(run)
    assert load_model(Path(inside)).digest == load_model(run).digest
    monkeypatch.chdir(run / "model")
    assert load_model(Path()).digest == load_model(run).digest


def test_a_sites_kept_model_is_found_from_its_jobs_folder_or_within(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kit" / "oncofed" / "0123"
    kept.mkdir(parents=True)
    for name in ("job.yaml", "provenance.json"):
        (run / name).rename(run / "model" / name)
    (run / "model").rename(kept / "model")
    for path in (kept, kept / "model", kept / "model" / "model.safetensors"):
        model = load_model(path)
        assert (model.folder, model.provenance["model"]) == (kept, model.digest)
    save_file({"weight": torch.zeros(2)}, kept / "model" / "model.safetensors")
    with pytest.raises(SpecError, match="not those that"):
        load_model(kept)


def test_a_bundle_is_a_model_and_within_its_run_the_runs_model(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    values = model.job.model_dump(mode="json", by_alias=True)
    bundle = model.job.plan().write_bundle(run / "model", "Balls", model.weights, values)
    assert bundle
    found = load_model(bundle)
    assert (found.folder, found.digest, found.provenance) == (run, model.digest, model.provenance)
    shutil.move(bundle, tmp_path / "alone")
    alone = load_model(tmp_path / "alone")
    assert (alone.folder, alone.digest, alone.provenance) == (tmp_path / "alone", model.digest, {})
    assert alone.job.plan() == model.job.plan()
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(alone.network(CPU)(image), model.network(CPU)(image))


def test_a_file_that_is_no_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(SpecError, match=r"a\.nii: no model of oncofed"):
        load_model(tmp_path / "a.nii")


def test_weights_that_differ_from_the_provenance_are_refused(run: Path) -> None:
    said = json.loads((run / "provenance.json").read_text())
    said["provenance"]["model"] = "0" * 64
    (run / "provenance.json").write_text(json.dumps(said))
    with pytest.raises(SpecError, match=r"not those that provenance\.json was written for"):
        load_model(run)


def test_weights_of_another_network_are_refused(run: Path) -> None:
    (run / "provenance.json").unlink()
    save_file({"weight": torch.zeros(2)}, run / "model" / "model.safetensors")
    with pytest.raises(SpecError, match="not those of the job balls"):
        load_model(run).network(CPU)


@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_a_file_that_is_cut_off_or_missing_is_named(run: Path, content: bytes | None) -> None:
    file = run / "model" / "model.safetensors"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.safetensors: "):
        load_model(run)


def test_a_folder_without_a_job_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no job\.yaml"):
        load_model(tmp_path)
    with pytest.raises(SpecError, match="no such file or folder"):
        load_model(tmp_path / "nowhere")
