"""Access to folders of predictions, and their owners."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from oncofed.errors import SpecError
from oncofed.prediction.model import load_model
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from synthetic import JOB, make_site
from trained import make_run


@pytest.fixture(autouse=True)
def _usual_permissions() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


@pytest.mark.parametrize(("is_there", "expected"), [(False, "0o700"), (True, "0o755")])
def test_what_is_predicted_is_for_its_owner_alone(is_there: bool, expected: str, tmp_path: Path) -> None:
    images, out = make_site(tmp_path / "site", 1) / "imagesTr", tmp_path / "new" / "out"
    if is_there:
        out.mkdir(parents=True)
    model = load_model(make_run(tmp_path / "run"))
    predict(model, gather([images], out, model.job, tmp_path, workers=1), out, torch.device("cpu"), Options())
    assert (mode(out), mode(out / ".inputs"), mode(out / "cases")) == (expected, "0o700", "0o700")
    assert {mode(path) for path in out.iterdir() if path.is_file()} == {"0o600"}
    written = [path for path in (out / "cases").rglob("*") if path.is_file()]
    assert len(written) > 1
    assert {mode(path) for path in written} == {"0o600"}


def test_records_of_another_model_are_seen_behind_one_that_cannot_be_read(tmp_path: Path) -> None:
    images, out = make_site(tmp_path / "site", 3) / "imagesTr", tmp_path / "out"
    model = load_model(make_run(tmp_path / "run"))
    sources = gather([images], out, model.job, tmp_path, workers=1)
    predict(model, sources, out, torch.device("cpu"), Options())
    other = load_model(make_run(tmp_path / "other", JOB.replace("seed: 3", "seed: 4")))
    assert other.digest != model.digest
    for number in range(2):
        (out / "cases" / f"case_{number}" / "case.json").write_text("")
    with pytest.raises(SpecError, match="predictions of another model"):
        predict(other, sources, out, torch.device("cpu"), Options())
