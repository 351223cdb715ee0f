"""Independent programs read the objects of real series.

dcmqi (QIICR) converts SEG and reads TID 1500; SimpleITK reads the series; dciodvfy (dicom3tools) checks objects against
the standard, conditions included, where it is installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from oncofed.data.dicom.headers import read_header
from oncofed.data.dicom.pixels import read_stack
from oncofed.data.dicom.series import group_series
from oncofed.data.images import LoadedImage
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.report import write_report
from oncofed.prediction.dicom.segmentation import write_segmentation
from oncofed.prediction.dicom.structures import write_structures

MODEL = ModelIdentity("brain", "0123456789abcdef" * 4)
CLASSES = {1: "enhancing tumour", 2: "oedema"}
SERIES = ("11-T1post-18670", "36468-FLAIRreg-58706", "11_HCropVolume")


def _image(folder: Path) -> tuple[list[Path], LoadedImage]:
    files = sorted(folder.iterdir())
    (stack,) = group_series([(file.name, read_header(file)) for file in files]).stacks
    return files, read_stack(folder, stack).image


def _labels(shape: tuple[int, ...]) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).random(shape), (4, 4, 1))
    labels = (smooth > np.quantile(smooth, 0.9)).astype(np.uint8)
    labels[: shape[0] // 3][labels[: shape[0] // 3] > 0] = 2
    labels[..., shape[2] // 2] = 0
    return labels


def _run(*command: object) -> str:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


def _dcmqi(program: str) -> Path:
    package = pytest.importorskip("dcmqi", reason="dcmqi is not installed")
    return Path(package.__file__).parent / "bin" / program


@pytest.mark.parametrize("name", SERIES)
def test_dcmqi_and_simpleitk_find_each_label_on_its_voxel(tmp_path: Path, real_data: Path, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    program = _dcmqi("segimage2itkimage")
    files, image = _image(real_data / "dicom" / name)
    labels = _labels(image.shape)
    write_segmentation(LabelledSeries(labels, files[::-1], image.affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    # "--mergeSegments": all classes in one image, with their numbers.
    _run(program, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nrrd", "--mergeSegments")
    (converted,) = tmp_path.glob("*.nrrd")
    series = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real_data / "dicom" / name)))
    resampled = sitk.Resample(sitk.ReadImage(str(converted)), series, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    found = sitk.GetArrayFromImage(resampled).transpose(2, 1, 0)
    # The labels on SimpleITK's voxels, whose slices may come in the other order.
    step = np.array(series.TransformIndexToPhysicalPoint((0, 0, 1))) - series.TransformIndexToPhysicalPoint((0, 0, 0))
    over = (np.diag([-1.0, -1, 1]) @ image.affine[:3, 2]) @ step < 0
    np.testing.assert_array_equal(found, labels[..., ::-1] if over else labels)
    assert set(np.unique(found).tolist()) == {0, 1, 2}


def test_dcmqi_reads_the_figures(tmp_path: Path, real_data: Path) -> None:
    program = _dcmqi("tid1500reader")
    files, image = _image(real_data / "dicom" / SERIES[0])
    write_segmentation(
        LabelledSeries(_labels(image.shape), files, image.affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm"
    )
    figures = {1: {"volume_ml": 1.25, "longest_mm": 20.5}, 2: {"volume_ml": 2.5}}
    write_report(tmp_path / "seg.dcm", CLASSES, figures, MODEL, tmp_path / "sr.dcm", "MR")
    _run(program, "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", tmp_path / "sr.json")
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    assert [group["ReferencedSegment"] for group in groups] == [1, 2]
    assert [group["Finding"]["CodeMeaning"] for group in groups] == ["Enhancing Lesion", "Edema"]
    items = [
        (i["quantity"]["CodeMeaning"], float(i["value"]), i["units"]["CodeValue"])
        for i in groups[0]["measurementItems"]
    ]
    assert items == [("Volume", 1.25, "cm3"), ("Long axis", 20.5, "mm")]
    assert MODEL.digest in groups[0]["measurementAlgorithmIdentification"]["AlgorithmParameters"][0]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (dicom3tools)")
def test_dciodvfy_finds_no_fault(tmp_path: Path, real_data: Path) -> None:
    files, image = _image(real_data / "dicom" / SERIES[0])
    labels = _labels(image.shape)
    write_segmentation(LabelledSeries(labels, files, image.affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    write_segmentation(LabelledSeries(0 * labels, files, image.affine, CLASSES, {}, MODEL), tmp_path / "empty.dcm")
    write_structures(LabelledSeries(labels, files, image.affine, CLASSES, {}, MODEL), tmp_path / "structures.dcm")
    write_report(tmp_path / "seg.dcm", CLASSES, {1: {"volume_ml": 1.0}}, MODEL, tmp_path / "sr.dcm", "MR")
    for file in tmp_path.glob("*.dcm"):
        said = _run("dciodvfy", file)
        assert "Error" not in said, said
