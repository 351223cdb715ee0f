"""Tables as people and their programs write them."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dicoms import make_xray, slice_header
from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.layouts import ClassTable, read_table
from oncofed.data.layouts.written import Files
from oncofed.data.target_columns import parse_targets
from oncofed.errors import DataError
from pictures import pictures, read

_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "cp1252": b"",
}


_CELL = st.text(
    st.characters(codec="cp1252", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=9
)


@pytest.mark.wild(
    "ImcSegmentationPipeline#50, isic-challenge-scoring#72, csvtotable#35", "tables in the encoding of a machine"
)
@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(_CELL, min_size=1, max_size=5),
    encoding=st.sampled_from(sorted(_MARKS)),
    marked=st.booleans(),
    separator=st.sampled_from(",;\t|"),
    said=st.booleans(),
    end=st.sampled_from(("\n", "\r\n", "\r")),
)
@example(["Müller"], "utf-16-be", False, ";", True, "\r\n")
@example(["“–”€"], "cp1252", False, "\t", False, "\r")
def test_any_encoding_and_separator(
    tmp_path_factory: pytest.TempPathFactory,
    patients: list[str],
    encoding: str,
    marked: bool,
    separator: str,
    said: bool,
    end: str,
) -> None:
    def quoted(cell: str) -> str:
        doubled = cell.replace('"', '""')
        return f'"{doubled}"'

    lines = [separator.join(("Image", "patient", "label"))]
    lines += [separator.join((f"{n}.png", quoted(patient), "benign")) for n, patient in enumerate(patients)]
    text = (f"sep={separator}{end}" if said else "") + end.join(lines)
    data = text.encode(encoding)
    if encoding == "cp1252":
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            encoding = "utf-8"
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes((_MARKS[encoding] if marked else b"") + data)
    table = read_table(path)
    assert table.columns == ["image", "patient", "label"]
    if data.decode(encoding) == text:
        assert [row.cells["patient"] for row in table.rows] == [patient.strip() for patient in patients]
    first = 3 if said else 2
    assert [row.line for row in table.rows] == list(range(first, first + len(patients)))


@pytest.mark.wild("ImcSegmentationPipeline#50", "patients lost with the table that says them")
@pytest.mark.parametrize(
    ("encoding", "before"), [("cp1252", ""), ("utf-16", ""), ("utf-8", "sep=;\n"), ("utf-16-le", "")]
)
def test_an_excel_table_next_to_class_folders(tmp_path: Path, encoding: str, before: str) -> None:
    names = [f"{('normal', 'pneumonia')[n % 2]}/{n:02d}.png" for n in range(12)]
    source = pictures(tmp_path / "in", *names)
    rows = [f"{name};{name.split('/')[0]};Müller {n // 6}" for n, name in enumerate(names)]
    (source / "labels.csv").write_bytes((before + "\n".join(["image;label;patient", *rows])).encode(encoding))
    manifest = read(source, tmp_path / "out")
    assert len({entry.patient for entry in manifest.entries}) == 2
    assert manifest.labels == {"0": "normal", "1": "pneumonia"}
    assert manifest.files == {"image": 12, "table": 1}


@pytest.mark.wild("isic-challenge-scoring#62, covid-chestxray-dataset#96", "names written otherwise than the files'")
@pytest.mark.parametrize(
    "written",
    [
        "Img007",
        "IMG007.PNG",
        "img7.png",
        "img7",
        r"below\img007.png",
        "./below/img007.png",
        "BELOW/Img007",
        "{folder}/below/img007.png",
        "img007.jpg",
        "img007 ",
    ],
)
def test_names_as_people_write_them(tmp_path: Path, written: str) -> None:
    source = pictures(tmp_path / "in", "below/img007.png", "below/img017.png", "below/img070.png")
    path = Path(written.format(folder=source))
    (source / "t.csv").write_text(f"image,label\n{path},a\n")
    manifest = read(source, tmp_path / "out")
    assert [entry.source for entry in manifest.entries] == ["below/img007.png"]


@pytest.mark.wild("covid-chestxray-dataset#96", "accents as macOS writes them into names of files")
def test_accents_may_be_combining_characters(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", unicodedata.normalize("NFD", "Müller 1.png"))
    (source / "t.csv").write_text(f"image,label\n{unicodedata.normalize('NFC', 'Müller 1')},a\n", encoding="utf-8")
    assert len(read(source, tmp_path / "out").entries) == 1


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.from_regex(r"[a-c]{1,2}0{0,2}[1-9]{1,2}", fullmatch=True), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_a_name_finds_its_file_or_is_ambiguous(names: list[str], data: st.DataObject) -> None:
    files = Files(Path("/data/in"), [f"x/{name}.png" for name in names])
    name = data.draw(st.sampled_from(names))
    change = data.draw(
        st.sampled_from([str, str.upper, lambda text: text.replace("0", ""), lambda text: f"{text}.PNG"])
    )
    found, reason = files.look(change(name))
    assert (
        found == f"x/{name}.png"
        or (found is None and reason.startswith("may be"))
        or (found is not None and found.removeprefix("x/").removesuffix(".png") == change(name))
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1.png", "its image may be a/1.png or b/1.png. Write the path inside the folder"),
        ("1", "its image may be a/1.png or b/1.png. Write the path inside the folder"),
        ("/elsewhere/only.png", "its image lies outside the folder. Expected a path inside it: a/only.png is there"),
        (r"D:\study\only.png", "its image lies outside the folder. Expected a path inside it: a/only.png is there"),
        ("2.png", "its image file is missing. Copy it into the folder, or correct the table"),
    ],
)
def test_an_ambiguous_name_is_refused(tmp_path: Path, written: str, said: str) -> None:
    source = pictures(tmp_path / "in", "a/1.png", "b/1.png", "a/only.png")
    (source / "t.csv").write_text(f"image,label\n{written},x\n")
    manifest = read(source, tmp_path / "out")
    assert [bad.reason for bad in manifest.quarantine] == [f"line 2: {said}"]


def test_repeated_and_contradicting_rows(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{n}.png" for n in range(4)))
    rows = ["0.png,a,P0", "1,a,P1", "1.PNG,b,P1", "0.png,a,P0", "2.png,a,P2", "2.png,a,P3", "3.png,a, unsure,P4", ",,"]
    (source / "t.csv").write_text("\n".join(["image,label,patient", *rows]))
    manifest = read(source, tmp_path / "out")
    (entry,) = manifest.entries
    assert (entry.source, entry.notes) == ("0.png", ["lines 2 and 5 of the table name it alike; it is used once"])
    assert {bad.name: bad.reason for bad in manifest.quarantine} == {
        "1": "lines 3 and 4 of the table name one image and say another label each (a and b). Leave one row an image",
        "2": "lines 6 and 7 of the table name one image and say another patient each. Leave one row an image",
        "3.png": "line 8 has 4 fields, expected 3: quote a field that holds the separator",
    }


@pytest.mark.wild("NIH ChestX-ray14, standard: its own columns", "tables whose columns are not understood")
def test_an_unread_table_is_reported(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", *(f"{c}/{c}{n}.png" for c in "ab" for n in range(2)))
    (source / "Data_Entry.csv").write_text("Image Index,Finding Labels\na0.png,Effusion\n")
    (source / "a" / "more.csv").write_text("image,label\na0.png,x\n")
    (source / "a" / "clinic.csv").write_text("name,age\nx,60\n")
    (source / "labels.xlsx").write_bytes(b"PK\x03\x04")
    (source / "broken.csv").write_bytes(bytes(range(256)) * 2)
    manifest = read(source, tmp_path / "out")
    assert manifest.left_out == {
        "table of which no image is read (found the columns image index, finding labels; expected image, and label, "
        "patient, split where they are known)": 1,
        "table of which no image is read (found the columns name, age; expected image, and label, patient, split where "
        "they are known)": 1,
        "table in a folder below: to read it, name it with --labels FILE": 1,
        "workbook: to be read as a table of images, save it as CSV (UTF-8)": 1,
        "table that cannot be read: save it as CSV (UTF-8)": 1,
    }


def test_one_column_per_class(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg")
    (source / "truth.csv").write_text("image,MEL,NV,BCC\nISIC_1,0.0,1.0,0.0\nISIC_2,1.0,0.0,0.0\nISIC_3,0.0,0.0,1.0\n")
    manifest = read(source, tmp_path / "out")
    assert {entry.source: manifest.labels[str(entry.label)] for entry in manifest.entries} == {
        "ISIC_1.jpg": "nv",
        "ISIC_2.jpg": "mel",
        "ISIC_3.jpg": "bcc",
    }


def test_columns_without_classes_leave_images_unlabelled_with_a_note(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "1.png", "2.png")
    (source / "t.csv").write_text("image,age,sex\n1.png,50,F\n2.png,60,M\n")
    manifest = read(source, tmp_path / "out")
    assert [entry.notes for entry in manifest.entries] == [["the table has no column label (but age, sex)"]] * 2


def test_masks_written_without_suffix_are_not_classes(tmp_path: Path) -> None:
    source = pictures(
        tmp_path / "in", *(f"{where}/{n}{end}.png" for n in range(3) for where, end in (("x", ""), ("masks", "_m")))
    )
    for n in range(3):
        mask = np.zeros((8, 9), np.uint8)
        mask[2:5, 2:5] = 1
        Image.fromarray(mask).save(source / "masks" / f"{n}_m.png")
    (source / "t.csv").write_text("\n".join(["image,label", *(f"{n},{n}_m" for n in range(3))]))
    manifest = read(source, tmp_path / "out")
    assert [entry.label for entry in manifest.entries] == [f"source/masks/{n}_m.png" for n in range(3)]


def test_patients_in_a_table_match_as_people_write_them(tmp_path: Path) -> None:
    for number, patient in enumerate(("00012", "ab-3", "77", "88")):
        values = np.random.default_rng(number).integers(0, 4000, (30, 20)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{number}.dcm", PatientID=patient)
    rows = ["12;normal", "AB-3;pneumonia", "77;normal", "77;pneumonia", "99;normal", "88;pneumonia"]
    (tmp_path / "classes.csv").write_bytes("\n".join(["Patient;Label", *rows]).encode("utf-16"))
    manifest = read(tmp_path / "in", tmp_path / "out", table=tmp_path / "classes.csv", task="classification")
    assert {entry.source: entry.label for entry in manifest.entries} == {
        "0.dcm": 0,
        "1.dcm": 1,
        "3.dcm": 1,
    }
    assert {bad.source: bad.reason for bad in manifest.quarantine} == {
        "2.dcm": "lines 4 and 5 of the table name one patient and say another label each. Leave one row a patient",
    }


def test_a_table_next_to_dicom_is_reported(tmp_path: Path) -> None:
    make_xray(tmp_path / "in", np.ones((30, 20), np.uint16) * np.arange(20, dtype=np.uint16), "1.dcm", PatientID="P1")
    (tmp_path / "in" / "classes.csv").write_text("Patient;Label\nP1;a\n")
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert len(manifest.entries) == 1
    [reason] = manifest.left_out
    assert reason.startswith("table of patients, studies or series: for DICOM, name it with --labels FILE; for other")


def _image(**identity: str) -> ImageHeader:
    return slice_header((0, 0, 0), **identity)


def test_unmatched_rows_of_patients_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("patient,study,label,split\n007,,a,\n8,,a,val\n9,1.2.3,b,\n0007,,a,\n,,a,\n10,,a,later\n")
    table = ClassTable(path)
    assert table.find(_image(patient="X|8", study="9", series="9")) == (0, "validation")
    assert table.find(_image(patient="9", study="1.2.4", series="9")) == (None, None)  # another study of the patient
    assert table.find(_image(patient="7", study="", series="")) == (None, None)  # 007 and 0007
    assert table.find(_image(patient="007", study="", series="")) == (0, None)
    assert table.unmatched() == ["line 4", "line 5", "line 7"]
    assert [(fault.name, fault.reason) for fault in table.faults] == [("line 6", "has no patient, study or series")]
    split = (
        "line 7 says split 'later', expected one of test, testing, tr, train, training, ts, va, val, valid, validation"
    )
    assert table.find(_image(patient="10", study="", series="")) == (None, None)
    assert table.stated(_image(patient="10", study="", series="")).unread == {"": split}


def test_a_table_of_patients_next_to_files_other_than_dicom(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("patient,label\nP1,a\n")
    with pytest.raises(DataError, match=r"it names no image, and .* holds no DICOM. Add a column image"):
        read(pictures(tmp_path / "in", "1.png"), tmp_path / "out", table=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("patient,label,grade\n1,a,2\n")
    with pytest.raises(DataError, match=r"column label is that of patients, .* of no use, take it out of the table"):
        read(tmp_path / "in", tmp_path / "out", table=tmp_path / "t.csv", targets=parse_targets(["grade=grade:grade"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,label,Label\n1.png,a,b\n", "has 2 columns called label, expected one"),
        (b"PK\x03\x04 and more", "is a workbook. Save it as CSV"),
        (b"image,label\n1.png,\x81\x8d\x8f\n", "its text is in an encoding that was not recognised"),
        (b"image\n" + b"\0\1\2\3" * 99, "holds bytes that are no text"),
        (b"name,class\n1.png,a\n", "found the columns name, class; expected image, and label"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    source = pictures(tmp_path / "in", "1.png")
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="t.csv: .*" + said):
        read(source, tmp_path / "out", table=path)


@pytest.mark.wild("standard: PS3.3 C.7.1.1", "a label of one patient for another, whose ID differs in case or zeros")
@pytest.mark.parametrize(
    ("patients", "rows", "labelled"),
    [
        (("7", "007"), ("7;tumour",), {"7"}),
        (("007", "7"), ("007;tumour",), {"007"}),
        (("A1", "a1"), ("A1;tumour",), {"A1"}),
        (("A1", "a1"), ("A1;tumour", "a1;normal"), {"A1", "a1"}),
        (("07", "007"), ("7;tumour",), set()),
        (("007",), ("7;tumour", "07;normal"), set()),
        (("007", "8"), ("7;tumour", "8;tumour"), {"007", "8"}),
        (("7", "7b"), ("7;tumour", "007;normal"), {"7"}),
    ],
)
def test_a_row_belongs_to_the_patient_it_names_exactly(
    tmp_path: Path, patients: tuple[str, ...], rows: tuple[str, ...], labelled: set[str]
) -> None:
    for number, patient in enumerate(patients):
        values = np.random.default_rng(number).integers(0, 4000, (30, 20)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{patient}.dcm", PatientID=patient)
    (tmp_path / "t.csv").write_text("\n".join(["patient;label", *rows]))
    manifest = read(tmp_path / "in", tmp_path / "out", table=tmp_path / "t.csv", task="classification")
    said = {entry.source.removesuffix(".dcm"): entry for entry in manifest.entries if entry.source}
    assert {patient for patient, entry in said.items() if entry.label is not None} == labelled
    texts = dict(row.split(";") for row in rows)
    for patient in labelled & set(texts):
        assert manifest.labels[str(said[patient].label)] == texts[patient]
    for patient in set(patients) - labelled - {"7b"}:
        assert "of the table may mean its patient or another one" in (said[patient].unlabelled or "")


@pytest.mark.wild("standard: none", "a label of one image for another, whose name differs in case or zeros")
def test_a_row_belongs_to_the_image_it_names_exactly(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "A3.png", "a3.png", "b/007.png", "7.png", "B4.png", "x/c5.png")
    rows = ("A3,tumour", "7,tumour", "b4,normal", "B4,tumour", "C5,normal")
    (source / "t.csv").write_text("\n".join(["image,label", *rows]))
    manifest = read(source, tmp_path / "out")
    assert {entry.source: manifest.labels[str(entry.label)] for entry in manifest.entries} == {
        "A3.png": "tumour",
        "7.png": "tumour",
        "B4.png": "tumour",
        "x/c5.png": "normal",
    }
    assert [(bad.name, bad.reason[:33]) for bad in manifest.quarantine] == [("b4", "line 4: its image file is missing")]
    assert manifest.left_out == {"image that the table does not name": 2}
