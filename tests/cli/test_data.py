"""``oncofed data`` as a site's admin types it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from commands import Outcome, left_running, oncofed, started, wait_for
from dicoms import make_series
from oncofed.data.planning import make_plan
from synthetic import make_site, make_volume

Run = Callable[..., Outcome]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of its own for every command."""
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def test_from_a_pacs_folder_to_the_verdict(run: Run, job: Path, workspace: Path, tmp_path: Path) -> None:
    make_series(tmp_path / "pacs")
    shown = run("data", "register", tmp_path / "pacs", "--dataset", "demo")
    assert shown.status == 0
    assert "demo: 1 cases, registered by oncofed, layout: DICOM" in shown.text
    assert "12x16x8" in shown.text
    values = json.loads(run("data", "register", tmp_path / "pacs", "--dataset", "demo", "--json").output)
    assert (values["cases"], values["entries"][0]["orientation"], values["entries"][0]["modality"]) == (1, "LPS", "MR")
    assert values["manifest"] == str(workspace / "datasets" / "demo" / "dataset.json")
    checked = run("data", "check", job, "demo")
    assert checked.status == 3
    assert "The job does not train here" in checked.text
    assert "0 with a mask of 1" in checked.text


def test_real_dicom_as_the_readme_says(run: Run, workspace: Path, real_data: Path) -> None:
    values = json.loads(run("data", "register", real_data / "dicom", "--dataset", "demo", "--json").output)
    shapes = sorted(tuple(entry["shape"]) for entry in values["entries"])
    assert shapes == [(34, 50, 40), (280, 320, 22), (280, 320, 22)]
    assert sorted(entry["spacing"][2] for entry in values["entries"]) == pytest.approx([1.0, 6.5, 6.5])


def test_a_dataset_that_fits_is_found_by_name(run: Run, job: Path, workspace: Path, tmp_path: Path) -> None:
    run("data", "register", make_site(tmp_path / "in"), "--dataset", "balls", "--labels", "shell,core")
    checked = run("data", "check", job, "balls")
    assert checked.status == 0, checked.text
    assert "The job may train here: 4 training, 1 validation, 1 test." in checked.text
    assert json.loads(run("data", "check", job, "balls", "--json").output)["may_train"]
    unknown = run("data", "check", job, "bals")
    assert unknown.status == 3
    assert f"Registered in {workspace / 'datasets'}: balls" in unknown.text


TARGETS = """\
schema: 1
name: two_targets
title: Two targets of one image
data: {dataset: flat, modality: xray, channels: [grey], patch: [32, 32]}
targets:
  - {name: lump, kind: class, classes: [absent, present]}
  - {name: site, kind: class, classes: [left, right]}
model: {network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}}
training: {steps_per_round: 1, batch_size: 2, learning_rate: 0.003, warmup_steps: 0}
rounds: {number: 1}
"""


def test_a_table_of_targets_becomes_a_job(run: Run, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = ["File;MRN;Lump;Stage"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
        lump = "n.a." if number > 37 else ("yes", "no")[number % 3 > 0]
        rows.append(f"{number}.png;M{number};{lump};{'T1' if lump == 'yes' else 'T2'}")
    (tmp_path / "clinic.csv").write_text("\n".join(rows))
    (tmp_path / "targets.yaml").write_text(
        'columns: {image: File, patient: MRN}\ntargets: {lump: {kind: class, values: {"yes": present, "no": absent}}}\n'
    )
    (tmp_path / "job.yaml").write_text(TARGETS)
    table = ["--labels", tmp_path / "clinic.csv", "--targets", tmp_path / "targets.yaml"]
    shown = run("data", "register", tmp_path / "in", "--dataset", "flat", *table)
    assert shown.status == 0, shown.text
    assert "labels: 38 of 40 patients (95 %)" in shown.text
    checked = run("data", "check", tmp_path / "job.yaml", "flat")
    assert "38 of 40 patients have it; present 13, absent 25" in " ".join(checked.text.split())
    assert "site: no patient has it: nothing is learned of it here" in checked.text
    assert "column stage (2 texts) tells in all 38 patients the value of lump" in checked.text
    found = json.loads(run("data", "check", tmp_path / "job.yaml", "flat", "--json").output)
    assert found["may_train"]
    assert found["targets"][0]["cells"] == {"": {"present": 13, "absent": 25}}
    assert found["cases"] == {"training": 24, "validation": 6, "test": 8}


def test_a_bad_case_is_shown_with_its_reason_and_sets_the_exit_status(
    run: Run, job: Path, workspace: Path, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "in", 30)
    (site / "imagesTr" / "case_2.nii.gz").write_bytes(b"")
    registered = run("data", "register", site, "--dataset", "balls")
    assert registered.status == 0
    assert (
        "set aside case_2 (imagesTr/case_2.nii.gz): its image file imagesTr/case_2.nii.gz is empty" in registered.text
    )
    checked = run("data", "check", job, "balls")
    assert checked.status == 3
    assert "set aside case_2: its image file" in checked.text
    assert "The job may train here" in checked.text
    assert "without the 1 set aside" in checked.text


def test_profile_page_and_json(run: Run, workspace: Path, tmp_path: Path) -> None:
    run("data", "register", make_site(tmp_path / "in"), "--dataset", "balls", "--labels", "shell,core")
    profile = json.loads(run("data", "profile", "balls", "--json").output)
    assert profile["cases"] == 6
    page = (workspace / "datasets" / "balls" / "profile.html").read_text()
    assert "It stays at the site" in page
    assert page.count("data:image/png;base64") == 6
    for source in ("<script", "<link", 'src="http', "@import"):
        assert source not in page


def test_split_makes_sites_by_case_attributes(run: Run, job: Path, workspace: Path, tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 12)
    (site / "dataset.json").unlink()
    rows = [f"imagesTr/case_{n}.nii.gz,labelsTr/case_{n}.nii.gz,{'AB'[n % 2]}" for n in range(12)]
    (site / "list.csv").write_text("image,label,scanner\n" + "\n".join(rows))
    run("data", "register", site, "--dataset", "balls", "--labels", str(site / "list.csv"))
    split = run("data", "split", "balls", "--by", "scanner", "--out", tmp_path / "sites", "--json")
    assert {name: part["cases"] for name, part in json.loads(split.output).items()} == {"A": 6, "B": 6}
    assert run("data", "check", job, tmp_path / "sites" / "A").status == 0
    wrong = run("data", "split", "balls", "--by", "stain", "--out", tmp_path / "more")
    assert wrong.status == 3
    assert "no case has 'stain'. Expected some of modality, scanner, size, vendor" in wrong.text


def test_deidentify_says_what_it_did_not_copy(run: Run, workspace: Path, tmp_path: Path) -> None:
    make_series(tmp_path / "in")
    (tmp_path / "in" / "broken.dcm").write_bytes(b"")
    outcome = run("data", "deidentify", tmp_path / "in", tmp_path / "out")
    assert outcome.status == 1
    assert "8 DICOM" in outcome.text
    assert "not copied broken.dcm: is empty (0 bytes)" in outcome.text
    assert (workspace / "deidentify" / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "My Data"], "expected lower case letters, digits, _ and -"),
        (["--labels", "a=b"], "expected VALUE=NAME"),
        (["--labels", "missing.csv"], "missing.csv: no such file"),
    ],
)
def test_mistakes_in_arguments_are_explained(
    run: Run, workspace: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = run("data", "register", make_site(tmp_path / "in"), *arguments)
    assert outcome.status in {2, 3}
    assert message in outcome.text


def test_an_unwritable_target_is_named(run: Run, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    outcome = run("data", "register", make_site(tmp_path / "in"), "--out", tmp_path / "taken" / "set")
    assert outcome.status == 1
    assert "Expected a folder that can be written to" in outcome.text


def test_plan_writes_a_job(run: Run, workspace: Path, tmp_path: Path) -> None:
    axes = ("right", "anterior", "superior")
    mean = {f"log2_size_{axis}": 5.0 for axis in axes} | {f"log2_spacing_{axis}": 0.0 for axis in axes}
    plan = make_plan({"mean": mean}, {"a": 9}, "mri", 3, 8)
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    arguments = ("job", "plan", "hippocampus_segmentation", tmp_path / "plan.json", "--out", tmp_path / "new.yaml")
    written = run(*arguments)
    assert written.status == 0
    assert "data.patch" in written.text
    assert run("job", "check", tmp_path / "new.yaml").status == 0
    assert "exists" in run(*arguments).text
    (tmp_path / "plan.json").write_text("{}")
    wrong = run(*arguments[:-1], tmp_path / "other.yaml")
    assert wrong.status == 2
    assert "no plan" in wrong.text


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_stopped_registering_resumes(tmp_path: Path, sent: signal.Signals) -> None:
    site = tmp_path / "in"
    for sub in ("images", "labels"):
        (site / sub).mkdir(parents=True)
    cases = 300
    often = "import oncofed.data.index as index; index._SECONDS_AT_RISK = 0.1"  # else two seconds, with many more cases
    for sub, values in zip(("images", "labels"), make_volume(1, side=48), strict=True):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{sub}.nii.gz")
        for number in range(cases):
            (site / sub / f"c{number}.nii.gz").hardlink_to(tmp_path / f"{sub}.nii.gz")
    out, log = tmp_path / "set", tmp_path / "log.txt"
    index = out / ".index.sqlite"
    with started("data", "register", site, "--out", out, log=log, before=often) as process:
        wait_for(lambda: index.is_file() and index.stat().st_size > 60_000, "some cases were read")
        os.killpg(process.pid, sent) if sent == signal.SIGINT else process.kill()
        assert process.wait(300) == (130 if sent == signal.SIGINT else -9)
        wait_for(lambda: left_running(tmp_path) == [], "its processes ended", 60)
    assert not (out / "dataset.json").exists()
    assert "Traceback" not in log.read_text()
    done = oncofed("data", "register", site, "--out", out, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "dataset.json").read_text())["training"]) == cases


def test_split_in_parts(run: Run, workspace: Path, tmp_path: Path) -> None:
    run("data", "register", make_site(tmp_path / "in", 16), "--dataset", "balls", "--labels", "shell,core")
    wanted = ("data", "split", "balls", "--parts", 3, "--out")
    sized = run(*wanted, tmp_path / "sized", "--skew", "size:0.5", "--json")
    counts = [part["cases"] for part in json.loads(sized.output).values()]
    assert sum(counts) == 16
    assert counts == sorted(counts, reverse=True) != [6, 5, 5]
    skewed = run(*wanted, tmp_path / "skewed", "--skew", "dirichlet:1", "--seed", 4)
    assert skewed.status == 0
    assert "--site site-1=" in skewed.text.replace("\n", "")
    for arguments, message in (
        (("--skew", "dirichlet"), "expected none, size, size:RATIO"),
        (("--by", "size"), "--by with --parts names groups"),
        (("--least", "9"), "16 patients for training are too few for 3 sites of at least 9"),
    ):
        wrong = run(*wanted, tmp_path / "wrong", *arguments)
        assert wrong.status in {2, 3}
        assert message in wrong.text
    neither = run("data", "split", "balls", "--out", tmp_path / "wrong")
    assert neither.status == 2
    assert "expected --by, --parts, or both" in neither.text
