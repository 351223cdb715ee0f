"""A simulated patient as an MR series in DICOM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.data.images import read_image

_BRIGHTEST = 4095  # twelve bits, as scanners have


def write_series(image: Path, folder: Path) -> list[Path]:
    """Write a volume as DICOM slices, and return the files.

    Intensities become whole numbers from 0 to 4095. The header names no real person.

    Args:
        image: a volume of one channel whose axes stand at right angles.
        folder: to write to; created if missing.
    """
    loaded = read_image(image)
    values = loaded.values[..., 0].astype(np.float32)
    stored = np.clip(values - values.min(), 0, None)
    stored = np.rint(stored * (_BRIGHTEST / max(float(stored.max()), 1e-6))).astype(np.uint16)
    affine, sizes = LPS_TO_RAS @ loaded.affine, voxel_sizes(loaded.affine)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    files = []
    for number in range(stored.shape[2]):
        dataset = _slice(stored[:, :, number].T)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [round(float(v), 6) for v in (affine @ [0, 0, number, 1])[:3]]
        axes = (affine[:3, :2] / sizes[:2]).T.ravel()
        dataset.ImageOrientationPatient = [round(float(v), 8) for v in axes]
        dataset.PixelSpacing = [round(float(sizes[1]), 6), round(float(sizes[0]), 6)]
        dataset.SliceThickness = dataset.SpacingBetweenSlices = round(float(sizes[2]), 6)
        path = folder / f"{number + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def _slice(pixels: np.ndarray) -> FileDataset:
    """Return one slice of (row, column) uint16, without position."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "Simulated^Brain", "SIMULATED"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "MR", "oncofed", 1
    dataset.SeriesDescription = "Simulated, of the ICBM152 average brain"
    dataset.ImageType, dataset.PositionReferenceIndicator = ["DERIVED", "SECONDARY"], ""
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "NONE", ""
    dataset.MRAcquisitionType = "3D"
    dataset.EchoTime = dataset.RepetitionTime = dataset.EchoTrainLength = None
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    return dataset
