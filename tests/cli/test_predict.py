"""``oncofed predict`` as its users type it."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from commands import Outcome, press_ctrl_c, started, wait_for
from dicoms import make_series
from synthetic import make_site, make_textures
from trained import CLASSIFIER, FLAT, make_run

Run = Callable[..., Outcome]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Volumes in a folder with spaces and non-ASCII letters."""
    folder = tmp_path / "Bilder für später"
    shutil.copytree(make_site(tmp_path / "site", 3) / "imagesTr", folder)
    return folder


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def test_from_a_model_and_a_folder_to_labels_sizes_and_a_page(
    run: Run, trained: Path, images: Path, tmp_path: Path
) -> None:
    shown = run("predict", trained, images, "--out", tmp_path / "out")
    assert shown.status == 0, shown.text
    assert "3 of 3 cases case class volume ml longest mm short axis mm longest 3D mm pieces" in shown.text
    assert "3 predicted Files:" in shown.text
    assert f"Look: {tmp_path / 'out' / 'predictions.html'}" in shown.text
    assert "Research only: a person decides." in shown.text
    assert (tmp_path / "out/cases/case_1/case_1_seg.nii.gz").is_file()
    again = run("predict", trained / "model", images, "--out", tmp_path / "out", "--no-page", "--json")
    values = json.loads(again.output)
    assert (values["predicted"], values["there_before"]) == ([], ["case_0", "case_1", "case_2"])
    assert values["page"] is None
    assert values["cases"][0]["figures"][0]["name"] == "shell"


def test_bad_cases_are_set_aside_and_set_the_exit_status(run: Run, trained: Path, images: Path, tmp_path: Path) -> None:
    (images / "case_1.nii.gz").write_bytes(b"\x1f\x8b not gzip at all")
    colour = np.random.default_rng(0).normal(size=(20, 20, 20, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(colour, np.eye(4)), images / "colour.nii.gz")
    shown = run("predict", trained, images, "--out", tmp_path / "out")
    assert shown.status == 3
    assert "set aside case_1: its image file" in shown.text
    assert "set aside colour: its image has 3 channels, expected 1: image" in shown.text
    assert "2 predicted; 2 set aside" in shown.text
    assert len((tmp_path / "out/set_aside.csv").read_text().splitlines()) == 3


def test_outputs_are_left_out_by_name(run: Run, tmp_path: Path) -> None:
    images = make_textures(tmp_path / "in", ["broad", "narrow"], 1, colours=1)
    trained = make_run(tmp_path / "run", CLASSIFIER)
    shown = run("predict", trained, images, "--out", tmp_path / "out", "--no-page", "--without", "evidence")
    assert shown.status == 0, shown.text
    names = sorted(path.name for path in (tmp_path / "out/cases/0-0").iterdir())
    assert names == ["0-0_classes.json", "case.json"]
    shown = run("predict", trained, images, "--out", tmp_path / "other", "--without", "tarot")
    assert shown.status == 2
    assert "tarot: no such output. Known: boxes, classes, dicom, evidence, " in shown.text


def test_no_predictable_input_is_an_error(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    empty = run("predict", trained, tmp_path / "in", "--out", tmp_path / "out")
    assert empty.status == 3
    assert "in: no image found (found no file" in empty.text
    Image.new("L", (9, 9), 3).save(tmp_path / "in" / "a.png")
    flat = run("predict", trained, tmp_path / "in", "--out", tmp_path / "out")
    assert flat.status == 3
    assert "none of the 1 case can be predicted" in flat.text


def test_a_colour_picture_for_a_grey_model_is_predicted_in_grey(run: Run, tmp_path: Path) -> None:
    grey = make_run(tmp_path / "flat", FLAT)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = run("predict", grey, tmp_path / "a.png", "--out", tmp_path / "out")
    assert shown.status == 0, shown.text
    assert (tmp_path / "out/cases/a/a_seg.png").is_file()


def test_loose_dicom_and_a_dataset_by_name_together(run: Run, trained: Path, tmp_path: Path) -> None:
    make_series(tmp_path / "pacs")
    run("data", "register", make_site(tmp_path / "site", 2), "--dataset", "balls")
    shown = run("predict", trained, tmp_path / "pacs", "balls", "--out", tmp_path / "out", "--json")
    assert shown.status == 0, shown.text
    assert len(json.loads(shown.output)["predicted"]) == 3


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "job.yaml").unlink(), r"no job.yaml, which says what the model was trained for"),
        (lambda run: shutil.rmtree(run / "model"), "model.safetensors: no such file. A run that ended early has no"),
        (lambda run: (run / "model/model.safetensors").write_bytes(b"x"), "the file is cut off or damaged"),
        (
            lambda run: (run / "provenance.json").write_text(
                (run / "provenance.json").read_text().replace('"model": "', '"model": "0')
            ),
            "the weights are not those that provenance.json was written for",
        ),
    ],
)
def test_a_file_that_is_no_model_is_one_line(
    run: Run, trained: Path, images: Path, tmp_path: Path, break_it: Callable[[Path], object], said: str
) -> None:
    break_it(trained)
    shown = run("predict", trained, images, "--out", tmp_path / "out")
    assert shown.status == 2
    assert said in shown.text
    assert not (tmp_path / "out" / "cases").exists()


def test_results_of_two_models_do_not_mix(run: Run, trained: Path, images: Path, tmp_path: Path) -> None:
    run("predict", trained, images, "--out", tmp_path / "out", "--no-page")
    other = make_run(tmp_path / "other", (trained / "job.yaml").read_text().replace("seed: 3", "seed: 4"))
    shown = run("predict", other, images, "--out", tmp_path / "out")
    assert shown.status == 2
    assert "holds predictions of another model" in shown.text


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    run: Run, trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = nib.save, []

    def full(image: object, path: Path) -> None:
        calls.append(path)
        if "_seg" in path.name and len(calls) > 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        usual(image, path)

    monkeypatch.setattr(nib, "save", full)
    shown = run("predict", trained, images, "--out", tmp_path / "out")
    assert shown.status == 1
    assert f"{tmp_path / 'out'}: No space left on device. Free space and give the command again: it goes" in shown.text
    assert [path.name for path in (tmp_path / "out/cases").iterdir()] == ["case_0"]
    said = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (said["complete"], [case["name"] for case in said["cases"]]) == (False, ["case_0"])
    assert said["notes"][-1].startswith("not finished: cases/ may hold more than is listed")
    monkeypatch.undo()
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_or_interrupted_command_resumes_to_the_same_bytes(run: Run, trained: Path, tmp_path: Path) -> None:
    images = make_site(tmp_path / "many", 16) / "imagesTr"
    out, log = tmp_path / "out", tmp_path / "log.txt"

    def whole() -> list[Path]:
        return list((out / "cases").glob("[!.]*/case.json")) if out.exists() else []

    for stop in ("kill", "interrupt"):
        before = len(whole())
        with started("predict", trained, images, "--out", out, "--no-page", log=log) as process:
            wait_for(lambda before=before: len(whole()) > before or process.poll() is not None, "a case is whole")
            process.kill() if stop == "kill" else press_ctrl_c(process)
            assert process.wait(300) == (-9 if stop == "kill" else 130), log.read_text()
        assert before < len(whole()) < 16
        assert not json.loads((out / "predictions.json").read_text())["complete"]
    assert "Traceback" not in log.read_text()
    assert run("predict", trained, images, "--out", out, "--no-page").status == 0
    assert run("predict", trained, images, "--out", tmp_path / "one go", "--no-page").status == 0

    def contents(folder: Path) -> dict[str, str]:
        files = [path for path in (folder / "cases").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert contents(out) == contents(tmp_path / "one go")
