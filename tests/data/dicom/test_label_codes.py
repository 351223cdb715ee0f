"""Segments are matched with a job's classes by what they are coded as, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicoms import make_seg, make_series
from oncofed.data.cases import read_cases
from oncofed.data.label_codes import codes_of_names
from oncofed.data.label_mapping import Supervision, match
from oncofed.data.manifest import Manifest, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import SplitSpec
from oncofed.tasks.codes import ClassCode
from oncofed.tasks.segmentation import SegmentationSpec

_SHAPE = (12, 16, 8)
_KIDNEYS = {1: "left kidney", 2: "right kidney"}
_LEFT, _RIGHT = "SCT:64033007+SCT:7771000", "SCT:64033007+SCT:24028007"
_JOB = Supervision(classes=_KIDNEYS, codes={1: _LEFT, 2: _RIGHT})


def _coded(*codes: tuple[str, str, str]) -> object:
    """Return a change of a SEG's codes: scheme, type and modifier of each segment."""

    def item(scheme: str, value: str) -> Dataset:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, "x"
        return code

    def change(dataset: Dataset) -> None:
        for segment, (scheme, kind, modifier) in zip(dataset.SegmentSequence, codes, strict=True):
            segment.SegmentedPropertyTypeCodeSequence = [item(scheme, kind)]
            if modifier:
                first = segment.SegmentedPropertyTypeCodeSequence[0]
                first.SegmentedPropertyTypeModifierCodeSequence = [item(scheme, modifier)]

    return change


def _registered(folder: Path, *codes: tuple[str, str, str]) -> Manifest:
    masks = {name: np.zeros(_SHAPE, bool) for name in ("Niere links", "Niere rechts")}
    masks["Niere links"][2:5, 3:9, 1:6] = True
    masks["Niere rechts"][6:11, 2:14, 2:7] = True
    files = make_series(folder / "in" / "ct")
    make_seg(folder / "in" / "seg.dcm", files, masks, change=_coded(*codes))  # type: ignore[arg-type]
    register(RegisterOptions(folder / "in", "kidneys", folder / "out"))
    return read_manifest(folder / "out")


def test_codes_lead_to_classes_whatever_they_are_called(tmp_path: Path) -> None:
    manifest = _registered(tmp_path, ("SCT", "64033007", "7771000"), ("SCT", "64033007", "24028007"))
    assert manifest.codes == {"1": _LEFT, "2": _RIGHT}
    assert match(manifest, _JOB).problems == []
    other = Supervision(classes={1: "right kidney", 2: "left kidney"}, codes={1: _RIGHT, 2: _LEFT})
    assert match(manifest, other).values == {1: 2, 2: 1}
    assert match(manifest, Supervision(classes=_KIDNEYS)).problems
    cases = read_cases(tmp_path / "out", SplitSpec(), 1, other)
    (case,) = [*cases.train, *cases.validation, *cases.test]
    assert dict(case.label_values or ()) == {1: 2, 2: 1}


def test_codes_of_the_retired_scheme_are_the_same(tmp_path: Path) -> None:
    manifest = _registered(tmp_path, ("SRT", "T-71000", "G-A101"), ("SRT", "T-71000", "G-A100"))
    assert match(manifest, _JOB).values is None


def test_a_code_that_all_segments_have_says_nothing(tmp_path: Path) -> None:
    manifest = _registered(tmp_path, ("SCT", "64033007", ""), ("SCT", "64033007", ""))
    problems = match(manifest, Supervision(classes={1: "kidney"}, codes={1: "SCT:64033007"})).problems
    assert "label_map" in problems[0]


def test_a_name_and_a_code_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    manifest = _registered(tmp_path, ("SCT", "64033007", "7771000"), ("SCT", "64033007", "24028007"))
    swapped = Supervision(classes={1: "Niere rechts", 2: "Niere links"}, codes={1: _LEFT, 2: _RIGHT})
    problems = match(manifest, swapped).problems
    assert "is called as the job's Niere links, and its code SCT:64033007+SCT:7771000" in problems[0]
    # A person's word counts before both.
    written = manifest.model_copy(update={"label_map": {"Niere links": "Niere links", "Niere rechts": "Niere rechts"}})
    assert match(written, swapped).values == {1: 2, 2: 1}


def test_two_labels_do_not_become_one_class_by_name_and_code(tmp_path: Path) -> None:
    manifest = _registered(tmp_path, ("SCT", "64033007", "7771000"), ("SCT", "1", ""))
    job = Supervision(classes={1: "Niere rechts"}, codes={1: _LEFT})
    problems = match(manifest, job).problems
    assert "as its label 'Niere rechts' has the name" in problems[0]
    for written in ({"Niere links": None}, {"Niere rechts": None}):
        assert match(manifest.model_copy(update={"label_map": written}), job).problems == []


def test_a_name_that_files_code_differently_has_no_code() -> None:
    files = [({"1": "a", "2": "b"}, {"1": "SCT:1", "2": "SCT:2"}), ({"1": "b", "2": "c"}, {"1": "SCT:3"})]
    assert codes_of_names(files) == {"a": "SCT:1"}


def test_a_jobs_codes_reach_its_supervision() -> None:
    code = ClassCode.model_validate({"scheme": "SCT", "value": "64033007", "modifier": "SCT:7771000"})
    spec = SegmentationSpec(classes={1: "left kidney"}, codes={1: code})
    assert spec.class_codes == {1: _LEFT}
    with pytest.raises(ValueError, match="codes name the label value 2"):
        SegmentationSpec(classes={1: "left kidney"}, codes={2: code})
