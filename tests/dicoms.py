"""Synthetic DICOM series, segmentations and structure sets.

Written as scanners and workstations write them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from oncofed.data.dicom.header_types import ImageHeader

AXIAL = (1.0, 0, 0, 0, 1, 0)
SAGITTAL = (0.0, 1, 0, 0, 0, -1)
CORONAL = (1.0, 0, 0, 0, 0, -1)
OBLIQUE = (0.9396926, 0.3420201, 0, -0.1710101, 0.4698463, -0.8660254)


def volume(shape: tuple[int, int, int] = (12, 16, 8), seed: int = 0) -> np.ndarray:
    """Return an asymmetric volume (column, row, slice).

    int16 with a bright block.
    """
    values = np.random.default_rng(seed).integers(0, 50, shape).astype(np.int16)
    values[2:5, 3:9, 1:6] += 500
    values[0] += 100
    return values


def slice_header(position: Sequence[float], orientation: Sequence[float] = AXIAL, **changed: Any) -> ImageHeader:
    """Return the ``read_header`` result of an MR slice.

    ``tells`` are headers that distinguish volumes.
    """
    return replace(
        _SLICE,
        position=[float(v) for v in position],
        orientation=[float(v) for v in orientation],
        **changed,
    )


_SLICE = ImageHeader(
    sop_class="",
    instance="",
    series="1",
    study="1",
    frame_of_reference="",
    modality="MR",
    vendor="",
    body_part="",
    description="",
    photometric="MONOCHROME2",
    burned_in="",
    syntax="",
    patient="1",
    rows=4,
    columns=4,
    frames=1,
    samples=1,
    bits=16,
    bits_stored=16,
    signed=False,
    image_type=[],
    position=[],
    orientation=[],
    spacing=[1.0, 1.0],
    magnified=None,
    thickness=1.0,
    turned=[],
    plain_values=True,
    padding=None,
    enhanced=False,
    mosaic=False,
    units="",
    intent="",
    tells={},
    has_slope=False,
    slope=1.0,
    intercept=0.0,
    philips_scale=None,
    pixels_at=0,
)


def make_series(
    folder: Path,
    values: np.ndarray | None = None,
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float, float] = (0.8, 0.7, 2.5),
    origin: Sequence[float] = (-30.0, -40, 10),
    patient: str = "MRN-0001",
    modality: str = "MR",
    series: str | None = None,
    change: Callable[[int, Dataset], None] | None = None,
    names: Callable[[int], str] = lambda number: f"{number:04d}.dcm",
    tilt: float = 0.0,
) -> list[Path]:
    """Write a series; return its files by position.

    One file a slice.

    Args:
        folder: where to.
        values: (column, row, slice) int16.
        orientation: of rows and columns.
        spacing: between columns, rows and slices in mm.
        origin: of the first slice's first pixel, LPS.
        patient: identifier.
        modality: DICOM's code.
        series: UID; a new one by default.
        change: what to do to the data set of each slice before it is written.
        names: of the files by slice.
        tilt: mm by which each slice is shifted along its columns, as a tilted gantry does.
    """
    values = volume() if values is None else values
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = series or generate_uid(), generate_uid(), generate_uid()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    files = []
    for number in range(values.shape[2]):
        dataset = _dataset(CTImageStorage if modality == "CT" else MRImageStorage)
        position = np.array(origin) + number * (normal * spacing[2] + column * tilt)
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = patient, f"Canary^{patient}", "19501231"
        dataset.PatientSex = "F"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.Modality, dataset.Manufacturer = modality, "ACME"
        dataset.StudyID, dataset.AccessionNumber, dataset.SeriesNumber = "S1", "ACC1", 1
        dataset.StudyDate, dataset.StudyTime, dataset.ReferringPhysicianName = "20200102", "101112", "Doctor^Canary"
        dataset.PositionReferenceIndicator = ""
        # Instance numbers run the other way: whoever sorts by them turns the volume over.
        dataset.InstanceNumber = values.shape[2] - number
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [float(f"{v:.6f}") for v in position]
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.SliceThickness = spacing[2]
        _put_pixels(dataset, values[..., number].T)
        if change:
            change(number, dataset)
        path = folder / names(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def make_xray(folder: Path, values: np.ndarray, name: str = "x.dcm", **attributes: Any) -> Path:
    """Write a digital X-ray of (row, column) uint16."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = _dataset(DigitalXRayImageStorageForPresentation)
    dataset.PatientID, dataset.PatientName = "MRN-0002", "Canary^Xray"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    dataset.ImagerPixelSpacing = [0.2, 0.1]
    dataset.PatientOrientation = ["L", "F"]
    _put_pixels(dataset, values)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def make_seg(
    path: Path,
    series: Sequence[Path],
    masks: dict[str, np.ndarray],
    *,
    kind: str = "BINARY",
    change: Callable[[Dataset], None] | None = None,
    **more: Any,
) -> Path:
    """Write a SEG over a series.

    Masks are (column, row, slice) bool by name, or fractions if it is FRACTIONAL.

    Args:
        path: where to.
        series: the files that it is drawn on.
        masks: by name.
        kind: "BINARY", "FRACTIONAL" or "LABELMAP".
        change: what to do to the data set before it is written.
        more: of highdicom's ``Segmentation``.
    """
    sources = [pydicom.dcmread(file) for file in series]
    stacked = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    stacked = stacked.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(masks, start=1)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=stacked,
        segmentation_type=SegmentationTypeValues[kind],
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="ACME",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="SN",
        **more,
    )
    if change:
        change(segmentation)
    segmentation.save_as(path)
    return path


def make_rtstruct(
    path: Path,
    series: Sequence[Path],
    regions: dict[str, list[np.ndarray]],
    *,
    kinds: dict[str, str] | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write an RT-STRUCT over a series.

    Args:
        path: where to.
        series: the files that it is drawn on.
        regions: contours (points, 3) in LPS mm by name.
        kinds: ContourGeometricType by name, CLOSED_PLANAR by default.
        change: what to do to the data set before it is written.
    """
    first = pydicom.dcmread(series[0], stop_before_pixels=True)
    dataset = _dataset(RTStructureSetStorage)
    dataset.PatientID, dataset.Modality = first.PatientID, "RTSTRUCT"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = first.StudyInstanceUID, generate_uid()
    referenced = item(SeriesInstanceUID=first.SeriesInstanceUID)
    study = item(RTReferencedSeriesSequence=Items([referenced]))
    frame = item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=Items([study]))
    dataset.ReferencedFrameOfReferenceSequence = Items([frame])
    rois, contours = [], []
    for number, (name, closed) in enumerate(regions.items(), start=1):
        rois.append(item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID))
        items = [
            item(
                ContourGeometricType=(kinds or {}).get(name, "CLOSED_PLANAR"),
                NumberOfContourPoints=len(points),
                ContourData=[float(f"{v:.4f}") for v in points.ravel()],
            )
            for points in closed
        ]
        contours.append(item(ReferencedROINumber=number, ContourSequence=Items(items)))
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(rois), Items(contours)
    if change:
        change(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


def make_multiframe(path: Path, files: Sequence[Path]) -> Path:
    """Write a series as one enhanced multi-frame image."""
    slices = [pydicom.dcmread(file) for file in files]
    enhanced = slices[0]
    enhanced.file_meta.MediaStorageSOPClassUID = enhanced.SOPClassUID = EnhancedMRImageStorage
    enhanced.file_meta.MediaStorageSOPInstanceUID = enhanced.SOPInstanceUID = generate_uid()
    shared = item(
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=slices[0].ImageOrientationPatient)]),
        PixelMeasuresSequence=Items(
            [item(PixelSpacing=slices[0].PixelSpacing, SliceThickness=slices[0].SliceThickness)]
        ),
        PixelValueTransformationSequence=Items([item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")]),
    )
    frames = [
        item(
            PlanePositionSequence=Items([item(ImagePositionPatient=s.ImagePositionPatient)]),
            FrameContentSequence=Items([item(DimensionIndexValues=[1 + number])]),
        )
        for number, s in enumerate(slices)
    ]
    enhanced.SharedFunctionalGroupsSequence, enhanced.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    organization = generate_uid()
    enhanced.DimensionOrganizationSequence = Items([item(DimensionOrganizationUID=organization)])
    enhanced.DimensionIndexSequence = Items(
        [
            item(
                DimensionOrganizationUID=organization,
                DimensionIndexPointer=0x00200032,
                FunctionalGroupPointer=0x00209113,
            )
        ]
    )
    enhanced.NumberOfFrames = len(slices)
    enhanced.PixelData = b"".join(s.PixelData for s in slices)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(enhanced, keyword)
    enhanced.save_as(path)
    return path


def _dataset(sop_class: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    return dataset


def _put_pixels(dataset: Dataset, values: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1 if values.dtype == np.int16 else 0
    dataset.PixelData = np.ascontiguousarray(values).tobytes()


def item(**attributes: Any) -> Dataset:
    """Return a data set with these attributes."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def make_wsi(folder: Path, pixels: np.ndarray, mpp: float = 0.5, tile: int = 256, patient: str = "MRN-3") -> Path:
    """Write one level of a DICOM slide.

    TILED_FULL and uncompressed, from (row, column, 3) uint8; returns its file.
    """
    rows, columns = pixels.shape[:2]
    dataset = _dataset(VLWholeSlideMicroscopyImageStorage)
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = (
        patient,
        "Canary^Slide",
        "",
        "",
    )
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = generate_uid(), "SLIDE_CORNER"
    dataset.StudyID = dataset.AccessionNumber = dataset.StudyDate = dataset.StudyTime = ""
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "SM", "ACME", "Scanner"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.AcquisitionDateTime, dataset.ContentDate, dataset.ContentTime = "20200101", "20200101", "000000"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.BurnedInAnnotation, dataset.SpecimenLabelInImage = "NO", "NO"
    dataset.LossyImageCompression, dataset.VolumetricProperties = "00", "VOLUME"
    dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.DimensionOrganizationSequence = Items([item(DimensionOrganizationUID=generate_uid())])
    dataset.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = columns * mpp / 1000, rows * mpp / 1000
    dataset.ImagedVolumeDepth = 0.001
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = rows, columns
    origin = item(XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0)
    dataset.TotalPixelMatrixOriginSequence = Items([origin])
    dataset.TotalPixelMatrixFocalPlanes = 1
    dataset.NumberOfOpticalPaths = 1
    measures = item(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001)
    frame_type = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    path_id = item(OpticalPathIdentifier="1")
    dataset.SharedFunctionalGroupsSequence = Items(
        [
            item(
                PixelMeasuresSequence=Items([measures]),
                WholeSlideMicroscopyImageFrameTypeSequence=Items([frame_type]),
                OpticalPathIdentificationSequence=Items([path_id]),
            )
        ]
    )
    light = item(CodeValue="111744", CodingSchemeDesignator="DCM", CodeMeaning="Brightfield illumination")
    colour = item(CodeValue="414298005", CodingSchemeDesignator="SCT", CodeMeaning="Full Spectrum")
    dataset.OpticalPathSequence = Items(
        [
            item(
                OpticalPathIdentifier="1",
                IlluminationTypeCodeSequence=Items([light]),
                IlluminationColorCodeSequence=Items([colour]),
            )
        ]
    )
    down, across = -(-rows // tile), -(-columns // tile)
    padded = np.full((down * tile, across * tile, 3), 255, np.uint8)
    padded[:rows, :columns] = pixels
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    dataset.Rows = dataset.Columns = tile
    dataset.NumberOfFrames = down * across
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = np.ascontiguousarray(frames).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path
