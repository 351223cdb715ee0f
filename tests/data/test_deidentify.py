"""De-identified copies hold no identifier and still match."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from dicoms import item, make_seg, make_series, make_xray, volume
from oncofed.data.deidentify import CROSSWALK_FILE, Options, Outcome, deidentify
from oncofed.data.images import read_image, read_stored
from oncofed.data.register import RegisterOptions, register
from oncofed.data.textless import require_same
from oncofed.errors import DataError
from synthetic import make_volume

CANARY = "Canary"


def copy(tmp_path: Path, source: str = "in", out: str = "out", **options: bool) -> Outcome:
    return deidentify(tmp_path / source, tmp_path / out, tmp_path / "secret" / "key", Options(**options))


def _identifying(number: int, dataset: Dataset) -> None:
    dataset.InstitutionName = "Canary Hospital"
    dataset.OperatorsName = "Canary^Operator"
    dataset.PatientAddress = "Canary Street 4"
    dataset.AccessionNumber = "CanaryACC"
    dataset.StudyDescription = "Canary study"
    dataset.DeviceSerialNumber = "CanaryDevice"
    dataset.StudyDate, dataset.SeriesDate, dataset.StudyTime = "20200102", "20200103", "101112"
    # An attribute of the table inside a sequence that the profile keeps.
    nested = item(PatientName="Canary^Nested", ReferencedSOPInstanceUID="1.2.3.canary".replace("canary", "77"))
    dataset.ReferencedStudySequence = Items([nested])
    dataset.DerivationCodeSequence = Items([item(CodeMeaning="x", PatientID="CanaryNested")])
    block = dataset.private_block(0x0011, "CANARY CORP", create=True)
    block.add_new(0x01, "LO", "Canary private")


def _bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_no_identifier_is_left_at_any_level(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in" / "Canary_Name", patient="CanaryMRN", change=_identifying)
    original = pydicom.dcmread(files[0])
    outcome = copy(tmp_path)
    assert outcome.written == {"DICOM": 8}
    assert not outcome.refused
    copies = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(copies) == 8
    everything = _bytes(tmp_path / "out") + " ".join(map(str, copies)).encode()
    for secret in (b"Canary", b"CANARY", original.StudyInstanceUID.encode(), b"20200102", b"19501231"):
        assert secret not in everything, secret
    dataset = pydicom.dcmread(copies[0])
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert (dataset.Modality, dataset.Manufacturer, dataset.Rows) == ("MR", "ACME", 16)


def test_the_copies_are_the_same_volume(tmp_path: Path) -> None:
    make_series(tmp_path / "in")
    copy(tmp_path)
    (one,) = register(RegisterOptions(tmp_path / "in", "a", tmp_path / "a")).entries
    (two,) = register(RegisterOptions(tmp_path / "out", "b", tmp_path / "b")).entries
    assert (one.affine, one.intensity, one.shape) == (two.affine, two.intensity, two.shape)
    assert one.checksum == two.checksum


def test_references_and_patients_match_across_copies(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", patient="P1")
    mask = np.zeros((12, 16, 8), bool)
    mask[2:5, 3:9, 1:6] = True
    make_seg(tmp_path / "in" / "seg.dcm", files, {"tumour": mask})
    make_series(tmp_path / "in2", volume(seed=4), patient="P1")
    make_series(tmp_path / "in2", volume(seed=5), patient="P2", names=lambda n: f"b{n}")
    copy(tmp_path)
    copy(tmp_path, "in2", "out2")
    (entry,) = register(RegisterOptions(tmp_path / "out", "a", tmp_path / "a")).entries
    assert np.asarray(nib.load(tmp_path / "a" / str(entry.label)).dataobj).sum() == mask.sum()
    patients = [{p.name for p in (tmp_path / out).iterdir()} for out in ("out", "out2")]
    assert len(patients[0]) == 1
    assert len(patients[1]) == 2
    assert patients[0] < patients[1]


def test_dates_shift_equally_per_patient_and_devices_stay_on_request(tmp_path: Path) -> None:
    make_series(tmp_path / "in", change=_identifying)
    copy(tmp_path, keep_dates=True, keep_device=True)
    dataset = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert dataset.StudyDate not in {"20200102", ""}
    assert int(dataset.SeriesDate) - int(dataset.StudyDate) in {1, 70, 71, 72, 73, 8870, 8871}  # the next day
    assert dataset.get("PatientBirthDate", "") in {"", "00010101"}
    assert dataset.DeviceSerialNumber == "CanaryDevice"
    codes = {code.CodeValue for code in dataset.DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113107", "113109"}
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"


def test_burned_in_text_reports_and_broken_files_are_not_copied(tmp_path: Path) -> None:
    make_xray(tmp_path / "in", np.ones((8, 8), np.uint16), BurnedInAnnotation="YES")
    (tmp_path / "in" / "empty.dcm").write_bytes(b"")
    (tmp_path / "in" / "scan.mrxs").write_bytes(b"x" * 10)
    (tmp_path / "in" / "report.txt").write_text("Canary")
    report = get_testdata_file("reportsi.dcm", download=False)
    (tmp_path / "in" / "sr.dcm").write_bytes(Path(str(report)).read_bytes())
    outcome = copy(tmp_path)
    assert set(outcome.refused) == {"x.dcm", "empty.dcm", "scan.mrxs"}
    assert "burned into its pixels" in outcome.refused["x.dcm"]
    assert sum(outcome.left_out.values()) == 2
    assert list((tmp_path / "out").rglob("*.*")) == []
    assert copy(tmp_path, out="out2", keep_burned_in=True).written == {"DICOM": 1}


def test_overlays_and_curves_are_removed(tmp_path: Path) -> None:
    found = get_testdata_file("examples_overlay.dcm", download=False)
    if not isinstance(found, str):
        pytest.skip("this pydicom brings no image with an overlay")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(Path(found).read_bytes())
    assert copy(tmp_path).written == {"DICOM": 1}
    dataset = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert (0x6000, 0x3000) not in dataset
    np.testing.assert_array_equal(dataset.pixel_array, pydicom.dcmread(found).pixel_array)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_nifti_loses_only_its_text(tmp_path: Path, suffix: str) -> None:
    image = nib.Nifti1Image(make_volume(1)[0], np.diag([1.0, 2, 3, 1]))
    image.header["descrip"], image.header["aux_file"] = b"Canary^Name", b"CanaryAux"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Canary comment"))
    (tmp_path / "in" / "imagesTr").mkdir(parents=True)
    nib.save(image, tmp_path / "in" / "imagesTr" / f"Canary_Name_0000{suffix}")
    copy(tmp_path)
    (written,) = (tmp_path / "out" / "imagesTr").iterdir()
    assert written.name.endswith(f"_0000{suffix}")
    content = written.read_bytes()
    content = gzip.decompress(content) if suffix.endswith("gz") else content
    assert b"Canary" not in content
    assert "Canary" not in written.name
    again = nib.load(written)
    np.testing.assert_array_equal(np.asarray(again.dataobj), make_volume(1)[0])
    np.testing.assert_allclose(again.affine, image.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_bytes_after_nifti_voxels_are_not_copied(tmp_path: Path, suffix: str) -> None:
    content = nib.Nifti1Image(make_volume(1)[0], np.eye(4)).to_bytes()
    (tmp_path / "in").mkdir()
    for name, text in {"longer": content + b"Canary^Name", "shorter": content[:-1]}.items():
        (tmp_path / "in" / f"{name}{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    outcome = copy(tmp_path)
    (written,) = (tmp_path / "out").iterdir()
    copied = written.read_bytes()
    assert len(gzip.decompress(copied) if suffix.endswith("gz") else copied) == len(content)
    assert outcome.refused == {f"shorter{suffix}": "is cut off: voxels are missing. Copy it again"}


def test_images_and_their_masks_keep_a_common_name_and_lose_their_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Canary^Name")
    values = np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "in" / folder / "Canary 1.png", pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = "Canary description"
    Image.fromarray(values).save(tmp_path / "in" / "images" / "b.jpg", exif=exif, comment=b"Canary")
    copy(tmp_path)
    assert b"Canary" not in _bytes(tmp_path / "out")
    (png,) = (tmp_path / "out" / "images").glob("*.png")
    assert (tmp_path / "out" / "masks" / png.name).is_file()
    np.testing.assert_array_equal(np.asarray(Image.open(png)), values)
    (jpeg,) = (tmp_path / "out" / "images").glob("*.jpg")
    np.testing.assert_array_equal(
        np.asarray(Image.open(jpeg)), np.asarray(Image.open(tmp_path / "in" / "images" / "b.jpg"))
    )


@pytest.mark.wild(
    "detectron2#788, D-FINE#308", "a copy without Exif that lies on its side, beside a mask that does not"
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_copy_keeps_the_orientation(name: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "images").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Canary"
    values = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "in" / "images" / name, exif=exif, lossless=True)
    copy(tmp_path)
    (made,) = (tmp_path / "out" / "images").iterdir()
    assert b"Canary" not in made.read_bytes()
    assert np.array_equal(read_image(made).values, read_image(tmp_path / "in" / "images" / name).values)


@pytest.mark.wild("pytiff#11, ruby-vips#91", "a copy of a TIFF's first page alone")
def test_a_copy_has_all_pages(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pages = [Image.fromarray(np.full((24, 40), 10 * n, np.uint8)) for n in range(5)]
    pages[0].save(tmp_path / "in" / "a.tif", save_all=True, append_images=pages[1:])
    copy(tmp_path)
    (made,) = (p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert np.array_equal(read_image(made).values, read_image(tmp_path / "in" / "a.tif").values)


def _tiff(path: Path, kind: str) -> None:
    """Write a TIFF of a kind whose text names somebody."""
    random = np.random.default_rng(0)
    grey, stack = (random.integers(0, 60000, shape, dtype=np.uint16) for shape in ((24, 40), (5, 24, 40)))
    text = {"description": "Canary^Name", "metadata": None, "software": "Canary", "datetime": True}
    sizes = {"spacing": 2.0, "unit": "mm", "axes": "ZYX", "Info": "Canary", "Labels": ["Canary"] * 5}
    ome = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0, "Name": "Canary"}
    ome |= {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
    if kind == "white is zero":
        tifffile.imwrite(path, grey, photometric="miniswhite", **text)
    elif kind == "16 bits a colour":
        tifffile.imwrite(path, random.integers(0, 60000, (24, 40, 3), dtype=np.uint16), photometric="rgb", **text)
    elif kind == "floats":
        tifffile.imwrite(path, random.normal(size=(24, 40)).astype(np.float32), predictor=True, compression="zlib")
    elif kind == "big-endian BigTIFF":
        tifffile.imwrite(path, stack, byteorder=">", bigtiff=True, compression="lzw", rowsperstrip=7)
    elif kind == "a palette":
        colours = random.integers(0, 255, (3, 256), dtype=np.uint16) * 257
        tifffile.imwrite(path, (grey % 4).astype(np.uint8), photometric="palette", colormap=colours, **text)
    elif kind == "on its side":
        tifffile.imwrite(path, grey, extratags=[(274, "H", 1, 6, True)], **text)
    elif kind == "ImageJ":
        tifffile.imwrite(path, stack, imagej=True, resolution=(2, 4), metadata=sizes)
    elif kind == "OME":
        tifffile.imwrite(path, stack, ome=True, metadata=ome)
    elif kind == "OME in tiles":
        tifffile.imwrite(path, np.tile(stack, (1, 8, 4)), ome=True, metadata=ome, tile=(64, 64))
    else:
        tifffile.imwrite(path, np.stack([stack, stack]), metadata={"Name": "Canary", "axes": "CZYX"})


@pytest.mark.wild(
    "pytiff#11, ruby-vips#91", "a copy of a TIFF with grey inverted, half the bits, or without its pixel sizes"
)
@pytest.mark.parametrize(
    ("kind", "spacing"),
    [
        ("white is zero", None),
        ("16 bits a colour", None),
        ("floats", None),
        ("big-endian BigTIFF", None),
        ("a palette", None),
        ("on its side", None),
        ("ImageJ", (0.5, 0.25, 2.0)),
        ("OME", (0.5, 0.25, 2.0)),
        ("OME in tiles", (0.5, 0.25, 2.0)),
        ("channels of slices", None),
    ],
)
def test_a_copy_of_a_tiff_has_its_values_and_sizes_and_no_text(
    kind: str, spacing: tuple[float, ...] | None, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    original = tmp_path / "in" / "a.tif"
    _tiff(original, kind)
    outcome = copy(tmp_path)
    assert not outcome.refused
    assert outcome.written == {"image": 1}
    (made,) = (p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"Canary" not in made.read_bytes()
    with tifffile.TiffFile(original) as before, tifffile.TiffFile(made) as after:
        assert np.array_equal(after.asarray(), before.asarray())
        assert after.pages[0].photometric == before.pages[0].photometric
        assert after.pages[0].compression == before.pages[0].compression
    one, other = read_stored(original), read_stored(made)
    assert np.array_equal(one.values, other.values)
    assert one.values.dtype == other.values.dtype
    assert other.spacing == pytest.approx(spacing) if spacing else other.spacing is None


@pytest.mark.wild("pytiff#11, ruby-vips#91", "a copy that is another image than the original")
def test_images_that_would_change_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (4, 24, 40), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "in" / "a.tif", values, imagej=True, metadata={"axes": "TYX"})
    outcome = copy(tmp_path)
    assert "4 points in time" in outcome.refused["a.tif"]
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    tifffile.imwrite(tmp_path / "one.tif", values[0])
    tifffile.imwrite(tmp_path / "two.tif", 255 - values[0])
    with pytest.raises(DataError, match="the copy would have other pixel values"):
        require_same(tmp_path / "one.tif", tmp_path / "two.tif")
    assert not (tmp_path / "two.tif").exists()


@pytest.mark.wild("nibabel#966", "a copy by a name that does not say how it is compressed")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("layers", range(3))
def test_nifti_is_copied_under_any_name(name: str, layers: int, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    content = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)).to_bytes()
    for _ in range(layers):
        content = gzip.compress(content)
    (tmp_path / "in" / name).write_bytes(content)
    copy(tmp_path)
    (made,) = (p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert np.array_equal(nib.load(made).dataobj, np.arange(24).reshape(2, 3, 4))


def test_a_slide_keeps_its_pyramid_and_loses_label_and_description(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (512, 768, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    description = "Aperio Image Library v12\r\n768x512 |AppMag = 20|MPP = 0.5|User = Canary|Filename = Canary_Name"
    with tifffile.TiffWriter(tmp_path / "in" / "Canary.svs") as writer:
        for step in (1, 0, 2):
            if step == 0:  # scanners put a thumbnail behind the first page
                writer.write(pixels[::4, ::4], photometric="rgb", description=description, metadata=None)
                continue
            writer.write(
                pixels[::step, ::step],
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                description=description if step == 1 else description.replace("768x512", "768x512 -> 384x256"),
                metadata=None,
                subfiletype=0,
            )
        label = np.full((128, 128, 3), 77, np.uint8)
        writer.write(label, description="Aperio\r\nlabel Canary 128x128", metadata=None, subfiletype=1)
    assert copy(tmp_path).written == {"slide": 1}
    (written,) = (tmp_path / "out").iterdir()
    assert b"Canary" not in written.read_bytes()
    with tifffile.TiffFile(written) as file, tifffile.TiffFile(tmp_path / "in" / "Canary.svs") as original:
        assert len(file.pages) == 2
        np.testing.assert_array_equal(file.pages[0].asarray(), original.pages[0].asarray())
        x, unit = file.pages[0].tags["XResolution"].value, file.pages[0].tags["ResolutionUnit"].value
        assert (x[0] / x[1], unit) == (20000, 3)


def test_key_and_crosswalk_are_private_and_folders_are_checked(tmp_path: Path) -> None:
    make_series(tmp_path / "in")
    copy(tmp_path)
    for name in ("key", CROSSWALK_FILE):
        assert stat.S_IMODE((tmp_path / "secret" / name).stat().st_mode) == 0o600
    with pytest.raises(DataError, match="is not empty"):
        copy(tmp_path)
    with pytest.raises(DataError, match="inside the originals"):
        copy(tmp_path, out="in/out")
    with pytest.raises(DataError, match="no such folder"):
        copy(tmp_path, source="nowhere", out="out3")
