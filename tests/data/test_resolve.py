"""Decisions about findings: recorded, applied, and taken back."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oncofed.audit import AuditLog
from oncofed.data.answers import ANSWERS, answer_to
from oncofed.data.cases import read_cases, usable_cases
from oncofed.data.contract import Report, check_dataset
from oncofed.data.decisions import decided, in_words
from oncofed.data.inputs import Patches
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Entry, Manifest, read_manifest, write_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.resolve import JobFindings, open_findings, resolve, take_back
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from synthetic import make_site, make_volume

CLASSES = {1: "shell", 2: "core"}
DATA = DataSpec(dataset="balls", patch=(16, 16, 16))


def check(folder: Path, data: DataSpec = DATA) -> Report:
    return check_dataset(folder, data, Supervision(classes=CLASSES), seed=1)


def _save(path: Path, values: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _copy(folder: Path, number: int, of: int, label: bool = True) -> None:
    for sub in ("imagesTr", "labelsTr") if label else ("imagesTr",):
        shutil.copy(folder / sub / f"case_{of}.nii.gz", folder / sub / f"case_{number}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A registered dataset of 20 cases with faults.

    3 and 4 are copies of 1, 6 of 5 with another label; 8 and 9 are constant.
    """
    site = make_site(tmp_path / "in", 20)
    _copy(site, 3, of=1)
    _copy(site, 4, of=1)
    _copy(site, 6, of=5, label=False)
    for number in (8, 9):
        _save(site / "imagesTr" / f"case_{number}.nii.gz", np.zeros((20, 20, 20), np.float32))
    return _register(tmp_path)


def _register(root: Path) -> Path:
    register(RegisterOptions(root / "in", "balls", root / "set", labels={0: "background", **CLASSES}, workers=1))
    return root / "set"


def _edit(dataset: Path, change: Callable[[Manifest], Manifest]) -> None:
    write_manifest(dataset, change(read_manifest(dataset)))


def _names(folder: Path) -> set[str]:
    return {case.name for case in read_cases(folder, DATA.split, 1, Supervision(classes=CLASSES))}


def test_a_refused_dataset_trains_after_one_command(dataset: Path) -> None:
    before = check(dataset)
    assert not before.may_train
    resolve(dataset, {"copies": "keep-one", "constant": "leave-out", "conflicting": "keep-one"}, "seen")
    after = check(dataset)
    assert after.clean, (after.findings, after.why_not)
    left = {"case_3", "case_4", "case_6", "case_8", "case_9"}
    assert _names(dataset) == {f"case_{n}" for n in range(20)} - left
    assert not usable_cases(dataset, DATA, Supervision(classes=CLASSES), 1, "east").set_aside
    assert len(read_manifest(dataset).entries) == 18
    assert [words.partition(";")[0] for words in after.decided] == [
        "conflicting keep-one: 2 cases, 1 left out",
        "copies keep-one: 3 cases, 2 left out",
        "constant leave-out: 2 cases, 2 left out",
    ]


def _label(dataset: Path, number: int, of: int) -> None:
    """Give a case the label of another one."""
    labels = dataset.parent / "in" / "labelsTr"
    shutil.copy(labels / f"case_{of}.nii.gz", labels / f"case_{number}.nii.gz")


def test_contradicting_copies_are_not_resolved_silently(dataset: Path) -> None:
    outcome = resolve(dataset, {"copies": "keep-one", "constant": "leave-out"})
    assert any("the labels of 1 groups of copies contradict: case_5" in line for line in outcome.messages)
    report = check(dataset)
    assert [(f.kind, f.case, f.about) for f in report.findings] == [
        ("copies with conflicting labels", "case_6", ("case_5", "case_6"))
    ]
    assert not report.may_train
    with pytest.raises(DataError, match=r"The labels of 1 groups of copies contradict.*--conflicting leave-out"):
        resolve(dataset, {"copies": "keep-one"})
    resolve(dataset, {"conflicting": "leave-out"})
    assert check(dataset).clean
    assert not _names(dataset) & {"case_5", "case_6"}


@pytest.mark.parametrize("changed", [1, 4])
def test_copies_contradicting_after_the_decision_are_reported_again(dataset: Path, changed: int) -> None:
    resolve(dataset, {"copies": "keep-one", "constant": "leave-out", "conflicting": "leave-out"})
    assert check(dataset).clean
    _label(dataset, changed, of=12)
    _register(dataset.parent)
    assert [f.kind for f in check(dataset).findings] == ["copies with conflicting labels"]
    assert {"case_1", "case_3", "case_4"} <= _names(dataset)
    _label(dataset, changed, of=3)
    _register(dataset.parent)
    assert check(dataset).clean


def test_the_commands_of_a_check_work_in_their_order(dataset: Path) -> None:
    _label(dataset, 4, of=12)
    _register(dataset.parent)
    kinds = dict.fromkeys(finding.kind for finding in check(dataset).findings)
    assert list(kinds) == ["copies with conflicting labels"]
    for kind in kinds:
        answer = answer_to(kind)
        assert answer
        resolve(dataset, {answer.finding: next(iter(answer.actions))})
    assert not check(dataset).findings


def test_registering_again_keeps_decisions_and_reports_new_findings(dataset: Path) -> None:
    resolve(dataset, {"copies": "keep-one", "conflicting": "keep-one", "constant": "leave-out"})
    site = dataset.parent / "in"
    assert check(_register(dataset.parent)).clean
    _copy(site, 12, of=1)
    _save(site / "imagesTr" / "case_10.nii.gz", np.full((20, 20, 20), 3, np.float32))
    report = check(_register(dataset.parent))
    assert {(f.kind, f.case) for f in report.findings} == {("duplicate image (checksum)", "case_12")}
    assert [problem.case for problem in report.set_aside] == ["case_10"]


@pytest.mark.parametrize("action", ["keep-one", "same-patient", "leave-out"])
def test_a_changed_case_is_used_again(dataset: Path, action: str) -> None:
    finding = "copies" if action == "same-patient" else "conflicting"
    resolve(dataset, {finding: action})
    _save(dataset.parent / "in" / "imagesTr" / "case_6.nii.gz", make_volume(77)[0])
    _register(dataset.parent)
    assert {"case_5", "case_6"} <= _names(dataset)


def test_a_copy_replaces_a_kept_case_that_is_removed(dataset: Path) -> None:
    resolve(dataset, {"copies": "keep-one"})
    assert "case_1" in _names(dataset)
    site = dataset.parent / "in"
    entries = json.loads((site / "dataset.json").read_text())["training"]
    kept = [entry for entry in entries if "case_1.nii" not in entry["image"]]
    (site / "dataset.json").write_text(json.dumps({"training": kept}))
    _register(dataset.parent)
    names = _names(dataset)
    assert "case_1" not in names
    assert len(names & {"case_3", "case_4"}) == 1


def test_one_patient_keeps_all_copies_on_one_side(dataset: Path) -> None:
    resolve(dataset, {"copies": "same-patient", "constant": "leave-out"})
    assert check(dataset).clean
    patients = {e.name: e.patient for e in decided(read_manifest(dataset)).entries}
    assert len({patients[f"case_{n}"] for n in (1, 3, 4)}) == 1
    assert patients["case_5"] == patients["case_6"] != patients["case_1"]
    for seed in range(8):
        cases = read_cases(dataset, DATA.split, seed, Supervision(classes=CLASSES))
        parts = [{case.name for case in part} for part in (cases.train, cases.validation, cases.test)]
        assert any({"case_1", "case_3", "case_4"} <= part for part in parts)


def test_joining_is_by_patient_and_through_chains() -> None:
    def entry(name: str, patient: str, checksum: str) -> Entry:
        return Entry(image=f"{name}.nii", name=name, patient=patient, checksum=checksum * 64)

    entries = [entry("a1", "A", "1"), entry("a2", "A", "2"), entry("b1", "B", "1"), entry("b2", "B", "3")]
    entries += [entry("c1", "C", "3"), entry("d1", "D", "4")]
    decision = {"finding": "copies", "action": "same-patient", "groups": [["a1", "b1"], ["b2", "c1"]]}
    content = {e.name: (e.checksum or "")[:16] for e in entries}
    values = {"training": [*map(Entry.model_dump, entries)], "decisions": [{**decision, "content": content}]}
    values["decisions"][0] |= {"who": "w", "time": "2026-01-01"}  # type: ignore[operator]
    manifest = decided(Manifest.model_validate(values))
    assert [e.patient for e in manifest.entries] == ["A"] * 5 + ["D"]
    assert decided(manifest) == manifest


def test_labelled_copies_are_kept_before_others_then_those_of_the_test_list() -> None:
    def entry(name: str, **values: object) -> Entry:
        return Entry.model_validate({"image": name, "name": name, "checksum": "1" * 64, "patient": name, **values})

    group = {"finding": "copies", "action": "keep-one", "who": "w", "time": "2026"}

    def kept(**lists: list[Entry]) -> list[str | None]:
        names = [str(e.name) for entries in lists.values() for e in entries]
        decision = {**group, "groups": [names], "content": dict.fromkeys(names, "1" * 16)}
        return [e.name for e in decided(Manifest.model_validate({"decisions": [decision], **lists})).entries]

    assert kept(training=[entry("a"), entry("b", label=1)]) == ["b"]
    assert kept(training=[entry("a", label=1)], test=[entry("b", label=1)]) == ["b"]
    assert kept(training=[entry("a", label=1)], test=[entry("b")]) == ["a"]


def test_similar_images_may_be_kept_but_not_identical_files(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 12)
    values = np.asarray(nib.load(site / "imagesTr" / "case_1.nii.gz").dataobj)
    _save(site / "imagesTr" / "case_3.nii.gz", (values * 1.3 + 0.1).astype(np.float32))
    _copy(site, 6, of=5)
    folder = _register(tmp_path)
    outcome = resolve(folder, {"copies": "keep-all"})
    assert "1 groups hold the same file twice" in " ".join(outcome.messages)
    assert [(f.kind, f.case) for f in check(folder).findings] == [("duplicate image (checksum)", "case_6")]
    assert len(_names(folder)) == 12


def _two_lists(manifest: Manifest) -> Manifest:
    first, second, *rest = manifest.training
    rest[0] = rest[0].model_copy(update={"patient": first.patient})
    return manifest.model_copy(update={"test": [first, second], "training": rest})


@pytest.mark.parametrize(
    ("action", "training", "test"),
    [("keep-in-test", 7, 2), ("move-to-training", 9, 1), ("leave-out", 7, 1)],
)
def test_patients_in_two_lists(tmp_path: Path, action: str, training: int, test: int) -> None:
    make_site(tmp_path / "in", 10)
    folder = _register(tmp_path)
    _edit(folder, _two_lists)
    assert not check(folder).may_train
    with pytest.raises(DataError, match=r"is in both (training|validation) and test"):
        read_cases(folder, DATA.split, 1, Supervision(classes=CLASSES))
    resolve(folder, {"patients": action})
    manifest = decided(read_manifest(folder))
    assert (len(manifest.training), len(manifest.test)) == (training, test)
    assert check(folder).may_train


def test_copies_across_lists_become_one_patient_with_a_follow_up(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 10)
    _copy(site, 3, of=0)
    folder = _register(tmp_path)
    _edit(folder, lambda m: m.model_copy(update={"test": m.training[:2], "training": m.training[2:]}))
    outcome = resolve(folder, {"copies": "same-patient"}, dry_run=True)
    assert outcome.messages == [
        "still open: same patient in two splits, 1: oncofed data resolve balls --patients keep-in-test"
    ]
    assert not read_manifest(folder).decisions
    resolve(folder, {"copies": "same-patient", "patients": "keep-in-test"})
    assert check(folder).clean


def _every_finding(folder: Path) -> None:
    """Give a dataset a finding of each kind.

    Findings that no reading gives are written into its manifest.
    """
    manifest = read_manifest(folder)
    thumbnail = base64.b64encode(np.random.default_rng(0).integers(0, 255, 512).astype(np.uint8).tobytes()).decode()
    no_place = "no place in space (ImagePositionPatient, ImageOrientationPatient)"
    head = {"shape": [180, 220, 160], "source": "brain/a"}
    changes: dict[int, dict[str, object]] = {
        0: {"checksum": "1" * 64},
        1: {"checksum": "1" * 64, "label_values": {"0": 7000, "1": 1000}},
        13: {"checksum": "2" * 64, "label_values": {"0": 7000, "1": 1000}},
        15: {"spacing": [1000.0, 1000.0, 2000.0]},
        14: {"checksum": "2" * 64, "label_values": {"0": 7000, "1": 1000}},
        2: {"thumbnail": thumbnail, "label_values": {"0": 7000, "1": 900}},
        3: {"thumbnail": thumbnail, "label_values": {"0": 7000, "1": 900}},
        4: {"patient": "both"},
        5: {"modality": "CT"},
        6: {"spacing": [9.0, 9.0, 9.0]},
        7: {"intensity": {"low": 0, "median": 1, "high": 1e6, "mean": 1, "std": 1}},
        8: {"notes": ["burned-in annotation: its header says YES"]},
        9: {"source": "Potter_Harry.nii.gz"},
        10: {"notes": ["header text in descrip"]},
        11: head,
        12: {"notes": [no_place]},
    }
    entries = [
        Entry.model_validate({**entry.model_dump(), "label_digest": None, "modality": "MR", **changes.get(n, {})})
        for n, entry in enumerate(manifest.training)
    ]
    test = [entries.pop().model_copy(update={"patient": "both"})]
    reasons = (
        "its image is constant (every voxel is 0)",
        "its label is empty: no voxel of any class",
        "cannot be read",
    )
    quarantine: list[dict[str, object]] = [{"name": f"bad{n}", "reason": reason} for n, reason in enumerate(reasons)]
    quarantine[1]["case"] = {**entries[3].model_dump(), "name": "bad1", "label_values": {"0": 8000}}
    update = {"training": entries, "test": test}
    values = manifest.model_copy(update=update).model_dump(by_alias=True)
    write_manifest(folder, Manifest.model_validate({**values, "quarantine": quarantine}))


@pytest.mark.parametrize("finding", [answer.finding for answer in ANSWERS])
def test_each_kind_of_finding_has_decisions_and_each_ends_it(tmp_path: Path, finding: str) -> None:
    make_site(tmp_path / "in", 30)
    folder = _register(tmp_path)
    _every_finding(folder)
    [answer] = [answer for answer in ANSWERS if answer.finding == finding]
    kinds = {f.kind for f in open_findings(read_manifest(folder), JobFindings(DATA))}
    assert kinds == {kind for known in ANSWERS for kind in known.kinds}
    for action in answer.actions:
        outcome = resolve(folder, {finding: action}, job=JobFindings(DATA))
        open_ = {f.kind for f in open_findings(decided(read_manifest(folder)), JobFindings(DATA))}
        ended = set(answer.kinds) - ({"duplicate image (checksum)"} if action == "keep-all" else set())
        assert ended
        assert not ended & open_, (action, open_)
        [words] = in_words(read_manifest(folder))
        assert words.startswith(f"{finding} {action}: ")
        assert take_back(folder, {finding: action}).decisions == outcome.decisions
        assert not read_manifest(folder).decisions
        assert {f.kind for f in open_findings(read_manifest(folder), JobFindings(DATA))} == kinds


def test_an_empty_mask_is_background_once_somebody_says_so(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 12)
    for number in (3, 7):
        _save(site / "labelsTr" / f"case_{number}.nii.gz", np.zeros((20, 20, 20), np.uint8))
    folder, wanted = _register(tmp_path), Supervision(classes=CLASSES)
    found = usable_cases(folder, DATA.model_copy(update={"max_bad_share": 1}), wanted, 1, "east")
    assert {problem.case for problem in found.set_aside} == {"case_3", "case_7"}
    outcome = resolve(folder, {"empty-label": "nothing-there"}, "second reading")
    assert outcome.words[0].startswith("empty-label nothing-there: 2 cases; ")
    for _ in range(2):
        assert check(folder).clean
        found = usable_cases(folder, DATA, wanted, 1, "east")
        assert not found.set_aside
        one = next(case for case in found.cases if case.name == "case_3")
        assert not one.read_label().values.any()
        patch = Patches(DATA, "none", 3)
        drawn = patch.draw(patch.prepare(one), torch.Generator().manual_seed(1))
        assert not drawn["label"].any(), "it is learned from as background alone"
        _register(tmp_path)
    # Another image, or a mask with something in it, is asked about or used anew.
    _save(site / "imagesTr" / "case_3.nii.gz", make_volume(40)[0])
    _save(site / "labelsTr" / "case_7.nii.gz", make_volume(7)[1])
    _register(tmp_path)
    report = check(folder)
    assert [problem.case for problem in report.set_aside] == ["case_3"]
    assert "case_7" in _names(folder)
    take_back(folder, {"empty-label": "nothing-there"})
    assert not read_manifest(folder).decisions


def test_what_an_earlier_version_registered_is_registered_again_first(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 8)
    _save(site / "labelsTr" / "case_3.nii.gz", np.zeros((20, 20, 20), np.uint8))
    folder = _register(tmp_path)
    manifest = read_manifest(folder)
    bare = [bad.model_copy(update={"case": None}) for bad in manifest.quarantine]
    write_manifest(folder, manifest.model_copy(update={"quarantine": bare}))
    with pytest.raises(DataError, match=r"1 case cannot be taken for background yet: .*Register the folder again"):
        resolve(folder, {"empty-label": "nothing-there"})
    _register(tmp_path)
    assert resolve(folder, {"empty-label": "nothing-there"}).decisions


def test_set_aside_drops_all_of_them_also_for_a_job(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", 12)
    _save(site / "imagesTr" / "case_1.nii.gz", np.zeros((20, 20, 20), np.float32))
    (site / "imagesTr" / "case_2.nii.gz").write_bytes(b"")
    for sub, values in zip(("imagesTr", "labelsTr"), make_volume(50, 40), strict=True):
        _save(site / sub / "case_3.nii.gz", values)
    folder = _register(tmp_path)
    data = DATA.model_copy(update={"size_range": (8, 32)})
    report = check(folder, data)
    assert {problem.case for problem in report.set_aside} == {"case_1", "case_2", "case_3"}
    resolve(folder, {"set-aside": "leave-out"}, job=JobFindings(data, report.set_aside))
    assert not check(folder, data).set_aside
    assert "case_3" not in _names(folder)


def test_repaired_cases_are_used_again(dataset: Path) -> None:
    resolve(dataset, {"constant": "leave-out"})
    _save(dataset.parent / "in" / "imagesTr" / "case_8.nii.gz", make_volume(8)[0])
    (dataset.parent / "in" / "imagesTr" / "case_9.nii.gz").write_bytes(b"")
    _register(dataset.parent)
    assert "case_8" in _names(dataset)
    assert [problem.case for problem in check(dataset).set_aside] == ["case_9"]


def test_the_audit_log_records_it_without_case_names(dataset: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    outcome = resolve(dataset, {"constant": "leave-out"}, "blank exports", kit=kit)
    assert outcome.recorded == AuditLog(kit).path
    take_back(dataset, {}, "not so", kit=kit)
    taken, back = AuditLog(kit).entries()
    assert (taken["what"], taken["finding"], taken["action"], taken["cases"]) == (
        "data decision",
        "constant",
        "leave-out",
        2,
    )
    assert (taken["reason"], back["reason"], back["what"]) == ("blank exports", "not so", "data decision taken back")
    assert taken["decision"] == back["decision"]
    assert "case_" not in AuditLog(kit).path.read_text()


def test_undoing_takes_back_the_last_command(dataset: Path) -> None:
    resolve(dataset, {"constant": "leave-out"})
    resolve(dataset, {"copies": "keep-one", "conflicting": "leave-out"})
    assert [d.finding for d in read_manifest(dataset).decisions] == ["constant", "conflicting", "copies"]
    take_back(dataset, {})
    assert [d.finding for d in read_manifest(dataset).decisions] == ["constant"]
    with pytest.raises(DataError, match=r"no such decision to take back\. Decisions: constant leave-out"):
        take_back(dataset, {"copies": "keep-one"})


def test_having_nothing_to_decide_is_reported(tmp_path: Path) -> None:
    make_site(tmp_path / "in", 6)
    with pytest.raises(DataError, match="nobody registered it"):
        resolve(tmp_path / "in", {"copies": "keep-one"})
    with pytest.raises(DataError, match=r"no finding to decide about \(looked for: constant image\)"):
        resolve(_register(tmp_path), {"constant": "leave-out"})


def test_every_finding_of_the_code_has_an_answer() -> None:
    source = (Path(__file__).parents[2] / "custom" / "oncofed" / "data" / "quality.py").read_text()
    kinds = [answer for answer in ANSWERS for kind in answer.kinds if f'"{kind}"' in source]
    assert len(kinds) >= 11
    for line in source.splitlines():
        if 'yield Finding("' in line:
            assert answer_to(line.split('"')[1]), line
