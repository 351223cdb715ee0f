"""Registering a folder with a table of targets: images, DICOM, slides, masks; no date and no identity goes along."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dicoms import make_wsi, make_xray
from oncofed.cli.main import app
from oncofed.data.cases import usable_cases
from oncofed.data.contract import UNKNOWN, check_dataset, doubts
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Manifest
from oncofed.data.resolve import resolve
from oncofed.data.spec import DataSpec
from oncofed.data.target_columns import TableTargets, parse_targets
from oncofed.data.targets import DatasetTarget, FollowUp
from oncofed.data.time_order import KIND
from oncofed.errors import DataError
from oncofed.job.checks import dataset_notes
from oncofed.job.spec import parse_job
from oncofed.tasks.targets.base import head_of
from oncofed.tasks.targets.one_class import ClassTarget
from pictures import pictures, read
from slide_files import noisy, stained, tiled
from synthetic import make_site


def targets(*options: str) -> TableTargets:
    found = parse_targets(options)
    assert found is not None
    return found


def by_source(manifest: Manifest) -> dict[str, dict[str, object]]:
    return {entry.source or "": dict(entry.targets) for entry in manifest.entries}


OS = "os=survival:days,status"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_a_hospitals_table_needs_no_editing(tmp_path: Path, encoding: str) -> None:
    source = pictures(tmp_path / "in", *(f"p{n}.png" for n in range(4)))
    rows = ["Bild;MRN;OP-Datum;Letzter Kontakt;Status;Größe;Geschlecht;Geboren"]
    rows += [
        "p0;M0;01.02.2020;01.02.2021;verstorben;3,5;w;13.01.1950",
        "p1;M1;02.02.2020;02.02.2022;lebt;4,25 cm;m;1950",
    ]
    rows += ["p2;M2;03.02.2020;k.A.;k.A.;k.A.;m;", "p3;M3;04.02.2020;03.02.2019;lebt;2;w;"]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).encode(encoding))
    (tmp_path / "t.yaml").write_text(
        """\
columns: {image: Bild, patient: MRN}
targets:
  os: {kind: survival, start: OP-Datum, end: Letzter Kontakt, event: Status, unit: months,
       events: [verstorben], censored: [lebt], unknown: [k.A.]}
  size: {kind: value, column: Größe, unit: cm, unknown: [k.A.]}
""",
        encoding="utf-8",
    )
    manifest = read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))
    assert manifest.targets == {
        "os": DatasetTarget(kind="survival", unit="months"),
        "size": DatasetTarget(kind="value", unit="cm"),
    }
    assert by_source(manifest) == {
        "p0.png": {"os": FollowUp(time=12.0246, event=True), "size": 3.5},
        "p1.png": {"os": FollowUp(time=24.0164, event=False), "size": 4.25},
        "p2.png": {},
        "p3.png": {"size": 2},
    }
    assert not manifest.quarantine
    assert {entry.name: entry.unread for entry in manifest.entries if entry.unread} == {
        "p3": {"os": "line 5: target os: ends before it starts (columns op-datum, letzter kontakt, status)"}
    }
    assert manifest.entries[0].tags == {"geschlecht": "w"}
    assert manifest.remarks == ["columns of the table that hold dates, which are left out of the dataset: geboren"]
    text = (tmp_path / "out" / "dataset.json").read_text()
    assert not any(date in text for date in ("2020", "2021", "2022", "2019", "1950", "M0", "M1"))


def test_findings_are_no_classes_where_the_user_says_so(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    (source / "t.csv").write_text("image,edema,mass\na.png,1,0\nb.png,0,1\n")
    assert read(source, tmp_path / "one").labels == {"0": "edema", "1": "mass"}
    manifest = read(source, tmp_path / "two", targets=targets("findings=labels:edema,mass"))
    assert manifest.labels == {}
    assert by_source(manifest)["a.png"] == {"findings": {"edema": True, "mass": False}}
    assert manifest.task == "classification"
    assert all(entry.unlabelled is None for entry in manifest.entries)


def test_a_label_may_be_a_target_as_well(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "t.csv").write_text("image,diagnosis,grade\na.png,naevus,1\nb.png,melanoma,2\n")
    (tmp_path / "t.yaml").write_text(
        "columns: {label: diagnosis}\ntargets: {type: {kind: class, column: diagnosis}, grade: {kind: grade}}\n"
    )
    manifest = read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))
    assert manifest.labels == {"0": "melanoma", "1": "naevus"}
    assert [(entry.label, entry.targets) for entry in manifest.entries] == [
        (1, {"type": "naevus", "grade": "1"}),
        (0, {"type": "melanoma", "grade": "2"}),
    ]


def test_lines_of_one_patient_that_contradict_each_other(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(6)))
    rows = ["0,A,10,1", "1,A,10,0", "2,B,20,1", "3,B,20,1", "4,C,5,0", "4,C,6,0", "5,,7,1"]
    (source / "t.csv").write_text("\n".join(["image,patient,days,status", *rows]))
    manifest = read(source, tmp_path / "out", targets=targets(OS))
    assert sorted(by_source(manifest)) == ["2.png", "3.png", "5.png"]
    assert {bad.reason for bad in manifest.quarantine} == {
        "line 2: target os: lines 2 and 3 are of one patient and contradict each other",
        "line 3: target os: lines 2 and 3 are of one patient and contradict each other",
        "line 6: target os: lines 6 and 7 are of one patient and contradict each other",
    }
    assert [bad.name for bad in manifest.quarantine] == ["0", "1", "4"], "an image of two lines is one case"
    assert not manifest.left_out, "an image that is set aside is named by the table"


def test_images_of_several_times_agree_on_the_end(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(4)))
    rows = ["0,A,2020-01-01,2020-03-01,1", "1,A,2020-02-01,2020-03-01,1", "2,B,2020-01-01,2020-03-01,1"]
    (source / "t.csv").write_text("\n".join(["image,patient,scan,end,dead", *rows, "3,B,2020-01-01,2020-03-02,1"]))
    manifest = read(source, tmp_path / "out", targets=targets("os=survival:scan,end,dead"))
    assert [entry.targets["os"] for entry in manifest.entries] == [
        FollowUp(time=60, event=True),
        FollowUp(time=29, event=True),
    ]
    assert len(manifest.quarantine) == 2


def test_one_image_twice_with_other_targets(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    (source / "t.csv").write_text("image,grade\na.png,1\na.png,2\nb.png,1\nb.png,1\n")
    manifest = read(source, tmp_path / "out", targets=targets("grade=grade"))
    assert list(by_source(manifest)) == ["b.png"]
    assert [bad.reason for bad in manifest.quarantine] == [
        "lines 2 and 3 of the table name one image and say another grade each. Leave one row an image"
    ]


def test_dicom_by_patient_and_study(tmp_path: Path) -> None:
    values = np.ones((30, 20), np.uint16) * np.arange(20, dtype=np.uint16)
    for number, patient in enumerate(("P1", "P2", "P3", "P4")):
        make_xray(
            tmp_path / "in",
            values + np.uint16(number),
            f"{number}.dcm",
            PatientID=patient,
            StudyInstanceUID=f"1.2.{number}",
        )
    rows = ["P1;;100;dead;II;f", "P2;;200;alive;I;m", "P2;;200;alive;I;m", "P3;;300;alive;I;m", "P3;;301;alive;I;f"]
    rows += ["P4;;400;alive;;m", ";1.2.3;;;III;", "P9;;1;1;I;", "P8;;-4;1;I;"]
    (tmp_path / "t.csv").write_text("\n".join(["MRN;study;days;status;grade;sex", *rows]))
    (tmp_path / "t.yaml").write_text("""\
columns: {patient: MRN}
targets:
  os: {kind: survival, time: days, event: status}
  grade: {kind: grade, grades: [I, II, III]}
""")
    manifest = read(
        tmp_path / "in", tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml"))
    )
    assert by_source(manifest) == {
        "0.dcm": {"os": FollowUp(time=100, event=True), "grade": "II"},
        "1.dcm": {"os": FollowUp(time=200, event=False), "grade": "I"},
        "2.dcm": {"grade": "I"},
        "3.dcm": {"os": FollowUp(time=400, event=False), "grade": "III"},
    }
    assert {entry.source: entry.tags.get("sex") for entry in manifest.entries}["1.dcm"] == "m"
    assert not manifest.quarantine
    (unread,) = (entry.unread for entry in manifest.entries if entry.source == "2.dcm")
    assert "lines 5 and 6 are of one patient and contradict each other" in unread["os"]
    assert any("match no image of the folder, 2: line 9, line 10" in remark for remark in manifest.remarks)
    again = read(tmp_path / "in", tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))
    assert again.targets == manifest.targets
    assert again.entries == manifest.entries


def test_masks_have_targets_of_their_patients(tmp_path: Path) -> None:
    source = make_site(tmp_path / "in", 6)
    named = sorted(path.name.removesuffix(".nii.gz") for path in (source / "imagesTr").iterdir())
    (source / "dataset.json").unlink()
    rows = [f"{name},{100 + n},{n % 2},liver|tumour" for n, name in enumerate(named)]
    (tmp_path / "t.csv").write_text("\n".join(["case,days,status,looked_for", *rows]))
    (tmp_path / "t.yaml").write_text(
        "columns: {patient: case}\ntargets: {os: {kind: survival, time: days, event: status}}\n"
    )
    manifest = read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))
    assert manifest.task == "segmentation"
    assert all(isinstance(entry.label, str) for entry in manifest.entries)
    assert [entry.targets["os"] for entry in manifest.entries] == [
        FollowUp(time=100 + n, event=bool(n % 2)) for n in range(6)
    ]
    assert manifest.entries[0].looked_for == ["liver", "tumour"]
    (tmp_path / "t.csv").write_text("case,days,status\nX,1,1\n")
    with pytest.raises(DataError, match=r"t.csv: no row is of a patient of .*, whose images are of 'case_0'"):
        read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))


JOB = """\
schema: 1
name: j
title: J
data: {dataset: out, modality: xray, channels: [grey], patch: [32, 32], minimum_cases: 2}
targets:
  - {name: grade, kind: grade, grades: ["1", "2", "3"]}
  - {name: ill, kind: class, classes: ["no", "yes"]}
model: {network: resnet18}
rounds: {number: 1}
"""


def test_a_cell_that_cannot_be_read_costs_its_target_alone(tmp_path: Path) -> None:
    """Of a table of patients: each image is one case, and says which line and column keeps a target from it."""
    source = pictures(tmp_path / "in", *(f"p{n}.png" for n in range(8)))
    rows = ["p0,1,no,<5", "p1,7,no,3", "p2,2,maybe,3", "p3,7,maybe,", "p4,1,yes,3", "p4,2,yes,3", "p5,,,", "p9,9,yes,1"]
    rows += ["p7,1,yes,3,4"]
    (tmp_path / "t.csv").write_text("\n".join(["patient,grade,ill,size", *rows]))
    said = targets("grade=grade:grade:1<2", "ill=class:ill:no|yes", "size=value:size:ml")
    manifest = read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=said)
    assert by_source(manifest) == {
        "p0.png": {"grade": "1", "ill": "no"},
        "p1.png": {"ill": "no", "size": 3},
        "p2.png": {"grade": "2", "size": 3},
        "p4.png": {"ill": "yes", "size": 3},
        "p5.png": {},
        "p6.png": {},
    }
    unread = {entry.name: entry.unread for entry in manifest.entries if entry.unread}
    assert unread == {
        "p0": {"size": "line 2: target size: column size says '<5', expected one number"},
        "p1": {"grade": "line 3: target grade: column grade says '7', expected 1 < 2"},
        "p2": {"ill": "line 4: target ill: column ill says 'maybe', expected no, yes"},
        "p4": {
            "grade": "lines 6 and 7 of the table name one patient and say another grade each. Leave one row a patient"
        },
    }
    assert {bad.name: bad.reason for bad in manifest.quarantine} == {
        "p3": "line 5: target grade: column grade says '7', expected 1 < 2; "
        "line 5: target ill: column ill says 'maybe', expected no, yes",
        "p7": "line 10 has 5 fields, expected 4: quote a field that holds the separator",
    }
    assert {entry.name: entry.unlabelled for entry in manifest.entries if entry.unlabelled} == {
        "p5": "line 8 of the table, of its patient, states nothing that is learned",
        "p6": "no row of the table is of its patient",
    }
    (remark,) = manifest.remarks
    assert "match no image of the folder, 1: line 9. Expected the images' patients" in remark
    (tmp_path / "job.yaml").write_text(JOB)
    plan = parse_job(tmp_path / "job.yaml").plan()
    report = check_dataset(tmp_path / "out", plan.data, plan.supervision(), plan.seed)
    assert [found.case for found in report.warnings if found.kind == UNKNOWN] == ["p1", "p2", "p4"], "not of size"
    assert "2 of 8 cases are set aside (25%), more than 5%" in report.why_not


def test_a_mask_that_cannot_be_used_costs_no_target(tmp_path: Path) -> None:
    """Empty, of another size, damaged, of a value without a name: said with case and reason, and the rest is used."""
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(7)))
    rows = [f"{n}.png,{n}_seg.png,p{n},{'' if n == 5 else 'yes'}" for n in range(7)]
    for number in range(7):
        mask = np.zeros((16, 16) if number == 2 else (8, 9), np.uint8)
        mask[4:8, 4:8] = 0 if number in (1, 5) else 7 if number == 4 else 1
        Image.fromarray(mask).save(source / f"{number}_seg.png")
    (source / "3_seg.png").write_bytes(b"no picture")
    (source / "t.csv").write_text("\n".join(["image,label,patient,ill", *rows]))
    manifest = read(source, tmp_path / "out", targets=targets("ill=class:ill"), labels={1: "lesion"})
    assert {bad.name: bad.reason for bad in manifest.quarantine} == {"5": "its label is empty: no voxel of any class"}
    assert {entry.name for entry in manifest.entries} == {"0", "1", "2", "3", "4", "6"}
    (tmp_path / "job.yaml").write_text("""\
schema: 1
name: j
title: J
data: {dataset: out, modality: xray, channels: [grey], patch: [32, 32], max_bad_share: 0.5}
targets:
  - {name: drawn, kind: mask, classes: {1: lesion}}
  - {name: ill, kind: class, classes: ["no", "yes"]}
model: {network: unet, channels: [8, 16], residual_units: 1}
rounds: {number: 1}
""")
    plan = parse_job(tmp_path / "job.yaml").plan()
    report = check_dataset(tmp_path / "out", plan.data, plan.supervision(), plan.seed)
    said = {found.case: found.what for found in report.warnings if found.kind == "mask left out"}
    assert said.keys() == {"1", "2", "3", "4"}
    assert "label is empty" in said["1"]
    assert [(row.found, row.verdict) for row in report.rows if row.aspect == "masks"] == [
        ("2 of 6 cases have one", "fits")
    ]
    command = CliRunner().invoke(app, ["data", "resolve", str(tmp_path / "out")])
    assert "--empty-label leave-out" in command.output
    assert "(or nothing-there)" in command.output
    checked = CliRunner().invoke(app, ["data", "check", str(tmp_path / "job.yaml"), str(tmp_path / "out")])
    assert "to go on: oncofed data resolve" in checked.output
    assert "--empty-label leave-out" in checked.output
    assert "have no lesion: 4. Where it was forgotten" in " ".join(checked.output.split()), "an empty one is named once"
    assert "expected the image's (9, 8)" in said["2"]
    assert "its label file" in said["3"]
    assert "holds the values 7" in said["4"]
    assert [problem.case for problem in report.set_aside] == ["5"]
    found = usable_cases(tmp_path / "out", plan.data, plan.supervision(), plan.seed, "here")
    assert {case.name: case.label == 0 for case in found.cases} == {
        "0": False,
        "1": True,
        "2": True,
        "3": True,
        "4": True,
        "6": False,
    }
    resolve(tmp_path / "out", {"empty-label": "nothing-there"})
    found = usable_cases(tmp_path / "out", plan.data, plan.supervision(), plan.seed, "here")
    assert {case.name for case in found.cases if case.label != 0} == {"0", "1", "5", "6"}


def test_a_table_of_covariates_alone(tmp_path: Path) -> None:
    source = make_site(tmp_path / "in", 3)
    (source / "dataset.json").unlink()
    (tmp_path / "t.csv").write_text("MRN;Age\ncase_0;61\ncase_1;70\n")
    (tmp_path / "t.yaml").write_text("columns: {patient: MRN}\n")
    manifest = read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(str(tmp_path / "t.yaml")))
    assert [entry.tags for entry in manifest.entries] == [{"age": "61"}, {"age": "70"}, {}]
    assert all(isinstance(entry.label, str) for entry in manifest.entries)


def test_slides_in_a_table_and_of_dicom(tmp_path: Path) -> None:
    tiled(tmp_path / "in" / "s1.tif", noisy(stained()))
    (tmp_path / "t.csv").write_text("image,days,status\ns1.tif,12,1\n")
    manifest = read(tmp_path / "in", tmp_path / "out", table=tmp_path / "t.csv", task="slides", targets=targets(OS))
    assert by_source(manifest) == {"s1.tif": {"os": FollowUp(time=12, event=True)}}
    make_wsi(tmp_path / "dicom", noisy(stained()), patient="MRN-3")
    (tmp_path / "p.csv").write_text("patient,days,status\nMRN-3,12,0\n")
    manifest = read(tmp_path / "dicom", tmp_path / "out2", table=tmp_path / "p.csv", targets=targets(OS))
    assert [entry.targets for entry in manifest.entries] == [{"os": FollowUp(time=12, event=False)}]


def test_a_registered_dataset_is_registered_again_with_its_targets(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    entries = [
        {"image": "a.png", "targets": {"os": {"time": 3, "event": True}}, "looked_for": ["x"]},
        {"image": "b.png"},
    ]
    declared = {"os": {"kind": "survival", "unit": "days"}}
    (source / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    manifest = read(source, tmp_path / "out")
    assert manifest.targets == {"os": DatasetTarget(kind="survival", unit="days")}
    assert [entry.targets for entry in manifest.entries] == [{"os": FollowUp(time=3, event=True)}, {}]
    assert manifest.entries[0].looked_for == ["x"]


def test_a_split_by_date_keeps_patients_whole_and_no_date(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(7)))
    rows = [
        "0,A,2019-05-01",
        "1,B,2020-06-01",
        "2,C,2021-12-31",
        "3,D,2022-01-01",
        "4,A,2022-03-01",
        "5,E,",
        "6,B,2020-02-01",
    ]
    (source / "t.csv").write_text("\n".join(["image,patient,exam,days,status", *(f"{row},{10},1" for row in rows)]))
    (tmp_path / "t.yaml").write_text("""\
targets: {os: {kind: survival, time: days, event: status}}
split: {column: exam, validation_from: 2021-01-01, test_from: 2022-01-01}
""")
    manifest = read(source, tmp_path / "out", targets=targets(str(tmp_path / "t.yaml")))
    lists = {split: [entry.name for s, entry in manifest.by_split() if s == split] for split, _ in manifest.by_split()}
    assert lists == {"training": ["1", "6"], "validation": ["2"], "test": ["0", "3", "4"]}
    assert [bad.reason for bad in manifest.quarantine] == [
        "line 7: column exam has no date, by which it is dealt to a list"
    ]
    assert "2022" not in (tmp_path / "out" / "dataset.json").read_text()
    (source / "t.csv").write_text("image,patient,exam,days,status,split\n0,A,2019-05-01,1,1,train\n")
    with pytest.raises(DataError, match=r"has a column split, and --targets deals by exam. Leave one of them out"):
        read(source, tmp_path / "out", targets=targets(str(tmp_path / "t.yaml")))


def test_lists_that_go_back_in_time_are_told(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(20)))
    days = ["k.A.", *(f"{n % 28 + 1:02}.{n // 4 + 1:02}.2021" for n in range(1, 20))]
    (tmp_path / "t.yaml").write_text("""\
columns: {date: Date of CT}
targets: {big: {kind: class, column: big}}
""")

    def warnings(test: range) -> list[str]:
        lists = ["test" if n in test else "train" for n in range(20)]
        rows = [f"{n},p{n},{day},{'yes' if n % 2 else 'no'},{lists[n]}" for n, day in enumerate(days)]
        (source / "t.csv").write_text("\n".join(["image,patient,Date of CT,big,split", *rows]))
        manifest = read(source, tmp_path / "out", targets=targets(str(tmp_path / "t.yaml")))
        assert "2021" not in manifest.model_dump_json()
        assert [entry.tags.get("days_since_first", "") for entry in manifest.entries if entry.name == "5"] == ["35"]
        target = head_of(ClassTarget(name="big", classes=("no", "yes"))).settings
        wanted = Supervision("targets", targets=(target,))
        found = doubts(tmp_path / "out", DataSpec(dataset="any", modality="xray", patch=(32, 32)), wanted, 1)
        return [finding.what for finding in found if finding.kind == KIND]

    (what,) = warnings(range(8))
    assert "the former was examined first in 100% of pairs (Mann-Whitney, p < 0.01)" in what
    (tmp_path / "job.yaml").write_text("""\
schema: 1
name: j
title: J
data: {dataset: out, modality: xray, patch: [32, 32]}
targets: [{name: big, kind: class, classes: ["no", "yes"]}]
model: {network: resnet18}
rounds: {number: 1}
""")
    job = parse_job(tmp_path / "job.yaml")
    (note,) = dataset_notes(job, tmp_path / "out")
    assert note.startswith("dataset out: tested on earlier patients: of a test patient")
    assert dataset_notes(job, tmp_path / "none") == []
    assert not warnings(range(12, 20)), "later ones"
    assert not warnings(range(3)), "the dates of two are no proof"
    assert not warnings(range(0, 20, 2)), "dealt by turns"


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("image,days,status", ["os=survival:time,status"], r"target os: has no column time, found image, days, status"),
        ("image,days,status", ["os=survival:status,days"], r"t.csv: target os: line 2: column days has other numbers"),
        ("file,days,status", [OS], r"found the columns file; expected image.*columns: .patient: MRN"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, header: str, options: list[str], message: str) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "t.csv").write_text(f"{header}\na.png,12,1\nb.png,13,0\n")
    with pytest.raises(DataError, match=message):
        read(source, tmp_path / "out", table=tmp_path / "t.csv", targets=targets(*options))


def test_targets_without_a_table_are_asked_for(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a.png", "b.png")
    with pytest.raises(DataError, match=r"--targets names columns, and no table was found. Name it: --labels TABLE"):
        read(source, tmp_path / "out", targets=targets(OS))


def test_the_command(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(6)))
    (tmp_path / "t.csv").write_text("\n".join(["image,days,status,grade", *(f"{n},{n},1,{n % 3}" for n in range(6))]))
    arguments = ["data", "register", str(source), "--dataset", "d", "--labels", str(tmp_path / "t.csv"), "--json"]
    arguments += ["--targets", OS, "--targets", "grade=grade", "--workspace", str(tmp_path / "w")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["targets"]["grade"] == {"kind": "grade", "unit": "", "names": ["0", "1", "2"]}
    assert found["labelled"] == "labels: 6 of 6 patients (100 %)"
