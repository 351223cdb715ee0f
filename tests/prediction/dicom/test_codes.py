"""Coded terms of classes, by job or name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom.sr.codedict import Collection

from oncofed.job.spec import parse_job
from oncofed.prediction.dicom.codes import PRIVATE_SCHEME, known_codes, segment_code
from oncofed.tasks.codes import ClassCode
from oncofed.tasks.segmentation import SegmentationSpec

JOBS = Path(__file__).parents[3] / "jobs"


def test_every_code_is_in_the_standard_with_the_same_meaning() -> None:
    known = {term for code in known_codes() for term in (code.kind, code.category)}
    standard = {
        (code.value, code.scheme_designator, code.meaning)
        for scheme in ("SCT", "NCIt")
        for code in Collection(scheme).concepts.values()
    }
    assert len(known) > 100
    assert known <= standard


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Spleen", "SCT 78961009 Spleen"),
        ("kidney_left", "SCT 64033007 Kidney (Left)"),
        ("right kidneys", "SCT 64033007 Kidney (Right)"),
        ("left ventricle", "SCT 87878005 Left ventricle"),
        ("heart_atrium_left", "SCT 82471001 Left atrium"),
        ("lung_upper_lobe_left", "SCT 45653009 Upper lobe of lung (Left)"),
        ("grey matter", "SCT 389081007 Gray Matter"),
        ("anterior hippocampus", "SCT 5366008 Hippocampus (Anterior)"),
        ("liver tumour", "SCT 108369006 Neoplasm (Liver)"),
        ("Enhancing Tumour", "NCIt C113842 Enhancing Lesion"),
        ("oedema", "SCT 79654002 Edema"),
        ("brain metastases", "SCT 128462008 Metastasis (Brain)"),
    ],
)
def test_common_names_have_their_codes(name: str, expected: str) -> None:
    assert segment_code(name).text == expected


@pytest.mark.parametrize("name", ["anterior", "left", "class 7", "Ärger", "左", "", "a very long name of a class\\x"])
def test_other_names_have_a_private_code_that_fits(name: str) -> None:
    code = segment_code(name)
    assert code.is_private
    assert code.kind.scheme == PRIVATE_SCHEME
    assert 0 < len(code.kind.value) <= 16
    assert code.kind.value.isascii()
    assert code.kind.meaning
    assert "\\" not in code.kind.meaning
    assert segment_code(name) == code


def test_names_that_begin_alike_have_different_private_codes() -> None:
    one, two = segment_code("something rather long 1"), segment_code("something rather long 2")
    assert one.kind.value != two.kind.value


def test_a_jobs_codes_take_precedence() -> None:
    given = {"scheme": "SCT", "value": "10200004", "region": "SCT:39607008", "category": {"scheme": "L", "value": "1"}}
    code = segment_code("spleen", ClassCode.model_validate(given))
    assert (code.kind.value, code.kind.meaning) == ("10200004", "Liver")
    assert (code.category.scheme, code.region and code.region.meaning) == ("L", "Lung")
    short = segment_code("my organ", ClassCode.model_validate("SCT:78961009"))
    assert (short.kind.meaning, short.category.meaning) == ("Spleen", "Anatomical Structure")
    unknown = segment_code("my organ", ClassCode.model_validate("99LOCAL:7"))
    assert unknown.kind == ("7", "99LOCAL", "my organ")
    assert not unknown.is_private


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({3: "SCT:78961009"}, "codes name the label value 3, expected some of"),
        ({1: "78961009"}, "expected SCHEME:CODE, such as SCT:78961009"),
        ({1: {"scheme": "SCT", "value": "1" * 17}}, "at most 16 characters"),
        ({1: {"scheme": "SCT", "value": "1\\2"}}, "without a backslash"),
        ({1: {"scheme": "SCT", "value": "1", "word": "x"}}, "word"),
    ],
)
def test_invalid_codes_are_refused(codes: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SegmentationSpec(classes={1: "a", 2: "b"}, codes=codes)  # type: ignore[arg-type]


def test_each_shipped_segmentation_names_terms_that_others_know() -> None:
    found = 0
    for file in sorted(JOBS.glob("*/job.yaml")):
        if "type: segmentation" not in file.read_text():
            continue
        task = parse_job(file).task
        assert isinstance(task, SegmentationSpec)
        found += 1
        assert not [n for v, n in task.classes.items() if segment_code(n, task.codes.get(v)).is_private], file
    assert found > 2
