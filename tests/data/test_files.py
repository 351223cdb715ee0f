"""Each file has one use, or a reason against it."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicoms import Items, item, make_rtstruct, make_seg, make_series, make_xray
from oncofed.cli.registering import _summary
from oncofed.data.accounts import labelled_share
from oncofed.data.dicom.matching import BESIDE
from oncofed.data.files import FILES_TABLE
from oncofed.data.folder import find_files
from oncofed.data.manifest import Manifest, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from synthetic import make_site, make_textures, make_volume

_USES = {"image", "label", "regions", "table", "left out"}


def _nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _text(path: Path, text: str | bytes = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def _square(z: float, x: float = -25.0, y: float = -35.0, side: float = 4.0) -> np.ndarray:
    return np.array([[x, y, z], [x + side, y, z], [x + side, y + side, z], [x, y + side, z]])


def _names_no_image(dataset: Any) -> None:
    """Leave a structure set its frame of reference alone."""
    frame = dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = Items([item(FrameOfReferenceUID=frame)])


def _beside(folder: Path, patient: str) -> None:
    """Write a series, and contours below and above it.

    The structure set shares the series' space.
    """
    series = make_series(folder / patient, patient=patient)
    contours = {"gtv": [_square(-20), _square(80)]}
    make_rtstruct(folder / f"rt_{patient}.dcm", series, contours, change=_names_no_image)


def _dicom(folder: Path) -> None:
    series = make_series(folder / "pacs" / "a")
    mask = np.zeros((12, 16, 8), bool)
    mask[2:5, 3:9, 1:6] = True
    make_seg(folder / "pacs" / "seg.dcm", series, {"liver": mask})
    orphan = make_series(folder / "gone", patient="MRN-9")
    make_seg(folder / "pacs" / "orphan_seg.dcm", orphan, {"liver": mask})
    make_rtstruct(folder / "pacs" / "orphan_rt.dcm", orphan, {"liver": [np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]])]})
    shutil.rmtree(folder / "gone")
    shutil.copy(series[2], folder / "pacs" / "copy.dcm")
    make_xray(folder / "pacs", np.arange(600, dtype=np.uint16).reshape(20, 30))
    make_series(folder / "pacs" / "b", patient="MRN-2")[3].unlink()
    _beside(folder / "pacs", "MRN-3")


def _nnunet(folder: Path) -> None:
    for number in range(3):
        image, label = make_volume(number)
        for channel in range(2):
            _nifti(folder / "imagesTr" / f"c{number}_{channel:04d}.nii.gz", image)
        _nifti(folder / "labelsTr" / f"c{number}.nii.gz", label)
    (folder / "imagesTr" / "c1_0001.nii.gz").unlink()
    (folder / "labelsTr" / "c2.nii.gz").unlink()
    _nifti(folder / "imagesTs" / "t_0000.nii.gz", image)
    _text(folder / "dataset.json", '{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}}')


def _table(folder: Path) -> None:
    for number in range(4):
        _nifti(folder / "scans" / f"{number}.nii.gz", make_volume(number)[0])
    rows = ["image,label", "scans/0.nii.gz,benign", "scans/1.nii.gz,malignant", "scans/7.nii.gz,benign", ",benign"]
    _text(folder / "table.csv", "\n".join([*rows, "../secret.nii.gz,benign"]))


def _pairs(folder: Path) -> None:
    for number in range(3):
        image, label = make_volume(number)
        _nifti(folder / "images" / f"p{number}.nii.gz", image)
        _nifti(folder / "masks" / f"p{number + 1}.nii.gz", label)


def _loose(folder: Path) -> None:
    image, label = make_volume(0)
    _nifti(folder / "one.nii.gz", image)
    _nifti(folder / "one_seg.nii.gz", label)
    _nifti(folder / "two.nii.gz", make_volume(1)[0])
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(folder / "picture.png")


def _slides(folder: Path) -> None:
    _text(folder / "s1.svs", b"no slide")
    _text(folder / "s1" / "Slidedat.ini", "x")


# Each makes a folder of one layout.
_LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "dicom": _dicom,
    "decathlon": make_site,
    "decathlon below": lambda folder: make_site(folder / "site"),
    "nnunet": _nnunet,
    "table": _table,
    "pairs": _pairs,
    "classes": lambda folder: make_textures(folder / "classes", ["a", "b"], each=3),
    "loose": _loose,
    "slides": _slides,
}


def _circle(folder: Path) -> None:
    (folder / "circle").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    (folder / "nowhere.dcm").symlink_to("gone.dcm")


def _latin(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.dcm"))).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcllers")).mkdir()


# Each adds other files to folders with images.
_BESIDE: dict[str, Callable[[Path], Any]] = {
    "hidden": lambda f: (_text(f / ".DS_Store"), _text(f / ".git" / "HEAD"), _text(f / "sub" / "._1.dcm")),
    "junk": lambda f: (_text(f / "notes.txt"), _text(f / "thesis.docx"), _text(f / "report.pdf"), _text(f / "bare")),
    "broken": lambda f: (_text(f / "empty.dcm", b""), _text(f / "cut.nii.gz", b"\x1f\x8b"), _text(f / "odd.png")),
    "links": _circle,
    "pipe": lambda f: os.mkfifo(f / "pipe"),
    "names": _latin,
    "other tables": lambda f: (_text(f / "clinic.csv", "id,age\n1,60\n"), _text(f / "w.tsv", b"\xff\xfe\x00\xd8")),
    "locked": lambda f: _text(f / "locked" / "x.dcm"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a layout, made once."""
    root = tmp_path_factory.mktemp("library")
    for name, make in _LAYOUTS.items():
        (root / name).mkdir()
        make(root / name)
    return root


@pytest.fixture(scope="module", autouse=True)
def _locked() -> Iterator[None]:
    """Folders named "locked" cannot be listed, whoever runs this."""
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if not isinstance(path, int) and Path(os.fsdecode(path)).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oncofed.data.folder.os.scandir", scandir)
        yield


@pytest.mark.wild("standard: every file is accounted for", "a file that is in no list, or in two")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layouts=st.lists(st.sampled_from(sorted(_LAYOUTS)), min_size=1, max_size=2, unique=True),
    beside=st.lists(st.sampled_from(sorted(_BESIDE)), max_size=4, unique=True),
    nested=st.booleans(),
)
def test_each_file_is_in_exactly_one_list_and_the_sums_agree(
    layouts: list[str], beside: list[str], nested: bool, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("case")
    source = root / "in"
    for number, name in enumerate(layouts):
        target = source / "nested" if number and nested else source
        shutil.copytree(library / name, target, dirs_exist_ok=True, symlinks=True)
    for name in beside:
        _BESIDE[name](source)
    try:
        manifest = register(RegisterOptions(source, "demo", root / "out", workers=1))
    except DataError:  # more than one table, for example: nothing is written
        reject()
    _require_accounts(source, root / "out", manifest)


def _require_accounts(source: Path, out: Path, manifest: Manifest) -> None:
    with (out / FILES_TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths)), [path for path, count in Counter(paths).items() if count > 1]
    assert set(paths) == set(_seen(source))
    for row in rows:
        assert row["use"] in _USES, row
        assert bool(row["reason"]) == (row["use"] == "left out"), row
        assert row["case"] or row["use"] in {"table", "left out"}, row
    uses = Counter(row["use"] for row in rows)
    assert manifest.files == uses
    reasons = Counter(row["reason"] for row in rows if row["use"] == "left out" and not row["case"])
    assert manifest.left_out == reasons
    assert uses["left out"] == sum(reasons.values()) + sum(bad.files for bad in manifest.quarantine)
    printed = _summary(manifest, out)
    written = read_manifest(out)
    assert printed.get("files", {}) == uses == written.files
    assert printed.get("left_out", {}) == reasons == written.left_out
    by_case = {(row["case"], row["use"]) for row in rows}
    for entry in manifest.entries:
        assert (entry.name, "image") in by_case
        masked = isinstance(entry.label, str)
        assert masked == bool({(entry.name, "label"), (entry.name, "regions")} & by_case)
        assert (entry.label is None) == (entry.unlabelled is not None)


def _seen(source: Path) -> Iterator[str]:
    """Yield all files and skipped folders, by another walk."""
    for folder, folders, files in os.walk(source):
        inside = Path(folder).relative_to(source)
        for name in list(folders):
            path = Path(folder) / name
            if name.startswith(".") or name == "locked" or path.is_symlink() or not _is_utf8(name):
                folders.remove(name)
                yield f"{_escaped(str(inside / name))}/"
        for name in files:
            yield _escaped(str(inside / name))


def _is_utf8(name: str) -> bool:
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return False
    return True


def _escaped(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@pytest.mark.wild("standard: file names are bytes", "a file whose name is not in UTF-8 ends the reading of all others")
def test_skipped_files_are_named(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    for name in ("hidden", "links", "pipe", "names", "locked"):
        _BESIDE[name](site)
    found = find_files(site)
    assert found.left_out == {
        ".DS_Store": "hidden file (its name begins with a dot)",
        ".git/": "hidden folder (its name begins with a dot)",
        "sub/._1.dcm": "hidden file (its name begins with a dot)",
        "circle/": "link to a folder that is read in another place",
        "pipe": "pipe, socket or device",
        "M\\xfcller.dcm": "name that is not in UTF-8; rename it",
        "M\\xfcllers/": "name that is not in UTF-8; rename it",
        "locked/": "folder that cannot be listed (Permission denied)",
    }
    assert sorted(found.dangling) == ["itself", "nowhere.dcm"]
    manifest = register(RegisterOptions(site, "demo", tmp_path / "out", workers=1))
    assert len(manifest.entries) == 6
    assert manifest.left_out["link that leads nowhere"] == 2


def test_the_datasets_own_folder_inside_the_registered_one_is_named(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    manifest = register(RegisterOptions(site, "demo", site / "out", workers=1))
    assert manifest.left_out == {"the dataset's own folder": 1}
    assert register(RegisterOptions(site, "demo", site / "out", workers=1)).left_out == manifest.left_out


@pytest.mark.wild("rt-utils#33, OHIF#4030", "patients without labels among those who have some, unsaid")
def test_unlabelled_cases_and_reasons(tmp_path: Path) -> None:
    mask = np.zeros((12, 16, 8), bool)
    mask[2:5, 3:9, 1:6] = True
    for number in range(3):
        series = make_series(tmp_path / "in" / str(number), patient=f"MRN-{number}")
        make_seg(tmp_path / "in" / f"{number}.dcm", series, {"liver": mask})
        make_seg(tmp_path / "in" / f"again_{number}.dcm", series, {"liver": mask})
    for file in (tmp_path / "in" / "2").iterdir():
        file.unlink()
    make_series(tmp_path / "in" / "3", patient="MRN-3")
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert labelled_share(manifest) == "labels: 2 of 3 patients (67 %)"
    assert [e.unlabelled for e in manifest.entries if e.label is None] == [
        "no SEG and no structure set of the folder lies on it"
    ]
    [remark] = manifest.remarks
    assert "several label files that name liver, which are joined, 2: " in remark
    lost = [reason for reason in manifest.left_out if reason.startswith("label")]
    assert [manifest.left_out[reason] for reason in lost] == [2]


@pytest.mark.wild("standard: PS3.3 C.8.8.5", "a structure set whose contours lie beside the image, said to be used")
def test_a_label_file_that_is_not_drawn_is_left_out(tmp_path: Path) -> None:
    _beside(tmp_path / "in", "MRN-1")
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    _require_accounts(tmp_path / "in", tmp_path / "out", manifest)
    assert manifest.files == {"image": 8, "left out": 1}
    assert list(manifest.left_out) == [BESIDE]
    [entry] = manifest.entries
    assert entry.label is None
    assert entry.unlabelled is not None
    assert "beside it: rt_MRN-1.dcm" in entry.unlabelled
    again = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert (again.files, again.left_out) == (manifest.files, manifest.left_out)


@pytest.mark.wild("standard: PS3.3 C.8.8.5", "a structure set drawn on one image and beside another, left out for it")
def test_a_label_file_that_is_drawn_on_one_image_is_used(tmp_path: Path) -> None:
    frame, study = generate_uid(), generate_uid()

    def place(up: float) -> Callable[[int, Any], None]:
        def change(number: int, dataset: Any) -> None:
            dataset.FrameOfReferenceUID, dataset.StudyInstanceUID = frame, study
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + up]

        return change

    series = make_series(tmp_path / "in" / "a", change=place(0))
    make_series(tmp_path / "in" / "b", change=place(300))
    z = float(dcmread(series[3]).ImagePositionPatient[2])
    contours = {"gtv": [_square(z), _square(600)]}
    make_rtstruct(tmp_path / "in" / "rt.dcm", series, contours, change=_names_no_image)
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    _require_accounts(tmp_path / "in", tmp_path / "out", manifest)
    assert manifest.files == {"image": 16, "label": 1}
    [without] = [entry.unlabelled or "" for entry in manifest.entries if entry.label is None]
    assert "beside it: rt.dcm" in without


@pytest.mark.wild("standard: PS3.3 C.8.8.5 (ROI Name)", "versions of one contour whose names differ in case, unsaid")
def test_names_of_regions_are_compared_by_one_rule(tmp_path: Path) -> None:
    series = make_series(tmp_path / "in" / "a")
    z = float(dcmread(series[3]).ImagePositionPatient[2])
    for number, name in enumerate(("GTV", "gtv ")):
        make_rtstruct(tmp_path / "in" / f"{number}.dcm", series, {name: [_square(z)]})
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    [entry] = manifest.entries
    assert len([value for value in manifest.labels if value != "0"]) == 1
    assert any("more than one holds GTV: all of it counts" in note for note in entry.notes)
    [remark] = manifest.remarks
    assert "several label files that name GTV, which are joined, 1: " in remark


@pytest.mark.wild("standard: every case is accounted for", "a case that is told a reason that is not its own")
def test_each_unlabelled_case_has_a_reason(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number, name in enumerate(("a", "b", "scans/x/7", "scans/y/7", "e")):
        _nifti(source / f"{name}.nii.gz", make_volume(number)[0])
    for name in ("a_seg", "drawn/7_seg", "e_drawn"):
        _nifti(source / f"{name}.nii.gz", make_volume(0)[1])
    make_series(source / "pacs")
    manifest = register(RegisterOptions(source, "demo", tmp_path / "out", workers=1))
    _require_accounts(source, tmp_path / "out", manifest)
    why = {entry.source: entry.unlabelled for entry in manifest.entries if entry.label is None}
    several = "its mask may be of several images: drawn/7_seg.nii.gz. List both in a table (image, label)"
    assert why == {
        "b.nii.gz": "no mask has its name (with _seg, _label or _mask behind it)",
        "pacs/0000.dcm": "no SEG and no structure set of the folder lies on it",
        "scans/x/7.nii.gz": several,
        "scans/y/7.nii.gz": several,
    }


@pytest.mark.wild(
    "standard: every case is accounted for", "a mask that is set aside, and its image is told it has none"
)
def test_a_mask_set_aside_is_noted_on_its_image(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        _nifti(tmp_path / "in" / f"{name}.nii.gz", make_volume(number)[0])
    _nifti(tmp_path / "in" / "a_drawn.nii.gz", make_volume(0)[1])
    _text(tmp_path / "in" / "t.csv", "image,label\na.nii.gz,\na_drawn.nii.gz,\nb.nii.gz,x\nc.nii.gz,y\n")
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    _require_accounts(tmp_path / "in", tmp_path / "out", manifest)
    [why] = [entry.unlabelled or "" for entry in manifest.entries if entry.label is None]
    assert "; a_drawn.nii.gz has its name, and was set aside: holds few whole numbers" in why


@pytest.mark.wild("standard: PS3.3 C.7.1.1", "rows of a table that match no patient, unsaid")
def test_rows_of_a_table_that_match_nothing_are_named(tmp_path: Path) -> None:
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4000, (20, 30)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{number}.dcm", PatientID=f"MRN-{number}")
    rows = ["patient,label", "MRN-0,well", "MRN-1,ill", "ANON-7,ill", "ANON-8,well"]
    (tmp_path / "classes.csv").write_text("\n".join(rows))
    request = RegisterOptions(tmp_path / "in", "x", tmp_path / "out", "classification", table=tmp_path / "classes.csv")
    manifest = register(request)
    [remark] = manifest.remarks
    assert remark.startswith("rows of classes.csv that match no image of the folder, 2: line 4, line 5. Expected")
    assert [e.unlabelled for e in manifest.entries if e.label is None] == [
        "classes.csv has no row with a label for its patient, study or series"
    ]


@pytest.mark.parametrize(("labelled", "share"), [(0, "0 of 300 patients (0 %)"), (299, "299 of 300 patients (99 %)")])
def test_nearly_all_is_not_rounded_to_all(labelled: int, share: str) -> None:
    entries = [{"image": f"{n}.nii", "label": "x.nii" if n < labelled else None} for n in range(300)]
    assert labelled_share(Manifest.model_validate({"training": entries})) == f"labels: {share}"


@pytest.mark.wild("standard: files of browsers, links of Unix", "what is told of a file that cannot be used")
def test_unusable_files_are_described_with_advice(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)

    def save(name: str, values: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(values, np.eye(4)), source / name)

    save("ok.nii.gz", rng.normal(size=(20, 20, 20)).astype(np.float32))
    for number in range(2, 8):
        save(f"ok{number}.nii.gz", rng.normal(size=(20, 20, 20)).astype(np.float32))
    save("ok_seg.nii.gz", (np.indices((20, 20, 20))[0] > 9).astype(np.uint8))
    save("gleich.nii.gz", np.full((20, 20, 20), 7, np.int16))
    values = rng.normal(size=(20, 20, 20)).astype(np.float32)
    values[3, 3, 3] = np.nan
    save("nan.nii.gz", values)
    (source / "kaputt.nii.gz").symlink_to("/nowhere/x.nii.gz")
    for name in ("a.nii.gz.part", "Unconfirmed 1.crdownload", "b.nii.gz.tmp", "notes.tmp"):
        (source / name).write_bytes(b"x")
    manifest = register(RegisterOptions(source, "set", tmp_path / "set", workers=1))
    reasons = {bad.name: bad.reason for bad in manifest.quarantine}
    assert reasons["gleich"] == "its image is constant (every voxel is 7)"
    assert reasons["nan"].endswith("not finite (NaN or infinity). Replace them, or export it again")
    assert "is a link that leads nowhere. Bring the file that it stands for" in reasons["kaputt"]
    assert {reason: count for reason, count in manifest.left_out.items() if count} == {
        "unfinished download (.part): download it again, or copy it again": 1,
        "unfinished download (.crdownload): download it again, or copy it again": 1,
        "unfinished download (.tmp): download it again, or copy it again": 1,
        "file that is no image (.tmp)": 1,
    }


@pytest.mark.wild("standard: NIfTI-1, dim", "masks of several channels, and such that lie elsewhere")
def test_a_misfitting_label_comes_with_advice(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for sub in ("images", "labels"):
        (source / sub).mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    for name in ("a", "b", "c"):
        image = nib.Nifti1Image(rng.normal(size=mask.shape).astype(np.float32), np.eye(4))
        nib.save(image, source / "images" / f"{name}.nii.gz")
    two = np.stack([mask, mask], -1)
    for name, values, affine in (("a", mask, np.eye(4)), ("b", two, np.eye(4)), ("c", mask, np.diag([9.0, 9, 9, 1]))):
        nib.save(nib.Nifti1Image(values, affine), source / "labels" / f"{name}.nii.gz")
    reasons = {b.name: b.reason for b in register(RegisterOptions(source, "s", tmp_path / "s", workers=1)).quarantine}
    assert set(reasons) == {"b", "c"}
    assert "has 2 channels, expected one number a pixel: save it with one channel" in reasons["b"]
    assert reasons["c"].endswith("Save both with one affine")
