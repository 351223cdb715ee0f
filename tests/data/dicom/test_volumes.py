"""Several volumes in one series are separated or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dicoms import AXIAL, CORONAL, OBLIQUE, SAGITTAL, slice_header
from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.dicom.series import LOCALIZER, ODD_SLICE, DicomIndex, group_series

Tells = Callable[[int], dict[str, str]]


def stack_of(
    name: str, depth: int, tells: Tells = lambda k: {}, *, gap: float = 2.0, start: float = 0.0, **changed: Any
) -> list[tuple[str, ImageHeader]]:
    """Return (path, header) of a volume's slices along the body."""
    return [(f"{name}/{k:03d}", slice_header((0, 0, start + gap * k), tells=tells(k), **changed)) for k in range(depth)]


def found(*stacks: list[tuple[str, ImageHeader]], seed: int = 0) -> DicomIndex:
    """Sort slices of several volumes, shuffled and renamed."""
    headers = [(path, header) for stack in stacks for path, header in stack]
    random.Random(seed).shuffle(headers)
    shuffled = [(f"{number:04d} {path}", header) for number, (path, header) in enumerate(headers)]
    return group_series(shuffled)


def as_made(index: DicomIndex) -> list[list[str]]:
    """Return the paths of each volume's slices in order."""
    assert [stack.reason for stack in index.stacks if stack.reason] == []
    return sorted([item.path.split(" ")[1] for item in stack.slices] for stack in index.stacks)


def paths(*stacks: list[tuple[str, ImageHeader]]) -> list[list[str]]:
    """Return the paths of volumes."""
    return sorted([path for path, _ in stack] for stack in stacks)


def always(**values: str) -> Tells:
    """Return headers that are alike for all slices."""
    return lambda k: values


@pytest.mark.wild(
    "vtk-dicom#220, monai-deploy-app-sdk#532", "two volumes of 10 and 14 slices that one header tells apart"
)
@pytest.mark.parametrize(
    ("keyword", "one", "two"),
    [
        ("AcquisitionNumber", "1", "2"),
        ("ConvolutionKernel", "B30f", "B70f"),
        ("EchoTime", "4.6", "2.3"),
        ("EchoNumbers", "1", "2"),
        ("InversionTime", "900", "2500"),
        ("TemporalPositionIdentifier", "1", "2"),
        ("DiffusionBValue", "0", "1000"),
        ("SequenceName", "ep_b0", "ep_b1000#1"),
        ("KVP", "80", "140"),
        ("ImageType", "ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"),
        ("AcquisitionTime", "101000.1", "101020.2"),
        ("ContentTime", "101000", "101020"),
        ("SeriesTime", "101000", "101020"),
        ("SeriesDescription", "arterial", "venous"),
    ],
)
def test_volumes_of_unequal_depth_are_told_apart_by_one_header(keyword: str, one: str, two: str) -> None:
    a, b = stack_of("a", 10, always(**{keyword: one})), stack_of("b", 14, always(**{keyword: two}))
    index = found(a, b)
    assert as_made(index) == paths(a, b)
    note = f"its series holds 2 volumes, which differ in {keyword}"
    assert all(note in stack.notes for stack in index.stacks)


@pytest.mark.wild("vtk-dicom#220", "volumes of 2 and 5 mm in one series, at places of their own or not")
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_two_thicknesses_are_two_volumes(start: float) -> None:
    a = stack_of("a", 20, always(SliceThickness="2"))
    b = stack_of("b", 8, always(SliceThickness="5.0"), gap=5, start=start)
    assert as_made(found(a, b)) == paths(a, b)


@pytest.mark.wild("MultiVolumeImporter#14, dcm2niix#463", "times that differ from slice to slice")
def test_slice_times_do_not_make_volumes_of_one_slice() -> None:
    parts = [
        stack_of(
            f"t{t}", 10, lambda k, t=t: {"AcquisitionTime": f"1010{20 * t:02d}", "ContentTime": f"1010{20 * t + k}"}
        )
        for t in range(3)
    ]
    assert as_made(found(*parts)) == paths(*parts)


@pytest.mark.wild("MultiVolumeImporter#14", "times that differ from slice to slice, and nothing else that differs")
@pytest.mark.parametrize("keyword", ["ContentTime", "InstanceNumber", "TriggerTime"])
def test_consecutive_volumes_are_separated_by_order(keyword: str) -> None:
    rng = random.Random(1)
    orders = [rng.sample(range(10), 10) for _ in range(3)]
    parts = [stack_of(f"t{t}", 10, lambda k, t=t: {keyword: str(100 * t + orders[t][k])}) for t in range(3)]
    assert as_made(found(*parts)) == paths(*parts)


@pytest.mark.wild("dcm2niix#463", "two reconstructions whose images were made in turns")
def test_volumes_with_overlapping_times_are_refused_with_differences() -> None:
    rng = random.Random(2)
    times = rng.sample(range(100, 200), 20)
    parts = [stack_of(f"r{r}", 10, lambda k, r=r: {"ContentTime": str(times[10 * r + k])}) for r in range(2)]
    (stack,) = found(*parts).stacks
    assert stack.reason is not None
    assert stack.reason.startswith("has 10 of 20 slices at positions of others")
    assert "ContentTime (20 values)" in stack.reason


@pytest.mark.wild("vtk-dicom#220", "echoes of several time points, which two headers tell apart together")
def test_two_headers_together_tell_volumes_apart() -> None:
    parts = [
        stack_of(f"{e}{t}", 6, always(EchoTime=str(e), TemporalPositionIdentifier=str(t)))
        for e in (10, 80)
        for t in (1, 2, 3)
    ]
    index = found(*parts)
    assert as_made(index) == paths(*parts)
    assert "which differ in EchoTime and TemporalPositionIdentifier" in " ".join(index.stacks[0].notes)


@pytest.mark.wild("dcm2niix#463", "odd and even slices acquired one after the other, twice")
def test_halves_of_a_volume_are_not_volumes() -> None:
    """Packages of slices with different times are not volumes.

    Four packages are two volumes, not four of twice the distance.
    """

    def packages(*starts: int) -> list[list[tuple[str, ImageHeader]]]:
        return [
            stack_of(f"t{t}", 10, lambda k, start=start: {"AcquisitionTime": str(start + 3 * (k % 2))})
            for t, start in enumerate(starts)
        ]

    parts = packages(100, 120)
    assert as_made(found(*parts)) == paths(*parts)
    (stack,) = found(*packages(100, 101)).stacks
    assert "AcquisitionTime (4 values)" in (stack.reason or "")


@pytest.mark.wild("standard: PS3.3 C.7.6.2", "headers that contradict each other")
def test_headers_that_divide_slices_in_different_ways_are_refused() -> None:
    a = stack_of("a", 8, lambda k: {"EchoTime": "10", "ConvolutionKernel": "soft" if k < 4 else "hard"})
    b = stack_of("b", 8, lambda k: {"EchoTime": "80", "ConvolutionKernel": "hard" if k < 4 else "soft"})
    (stack,) = found(a, b).stacks
    assert "its headers contradict each other" in (stack.reason or "")


@pytest.mark.wild("monai-deploy-app-sdk#532", "one of two phases lacks a slice")
def test_gaps_are_reported_for_the_volume_that_has_them() -> None:
    a, b = stack_of("a", 10, always(AcquisitionNumber="1")), stack_of("b", 10, always(AcquisitionNumber="2"))
    index = found(a, b[:4] + b[5:])
    assert sorted(stack.reason or "" for stack in index.stacks) == [
        "",
        "lacks 1 of 10 slices, the first at 8.0 mm. Copy them, too",
    ]


@pytest.mark.wild("standard: PS3.3 C.7.6.2", "two kernels whose slices lie between each other")
def test_evenly_spaced_slices_of_two_kernels_are_not_one_volume() -> None:
    a, b = stack_of("a", 6, always(ConvolutionKernel="B30f"), gap=4), stack_of("b", 6, gap=4, start=2)
    b = [(path, replace(header, tells={"ConvolutionKernel": "B70f"})) for path, header in b]
    assert as_made(found(a, b)) == paths(a, b)


@pytest.mark.wild("OHIF#3537", "left and right of one body in one series")
def test_adjacent_volumes_are_separated_by_place() -> None:
    a, b = stack_of("a", 6), stack_of("b", 6)
    b = [(path, replace(header, position=[150.0, 3.0, header.position[2]])) for path, header in b]
    assert as_made(found(a, b)) == paths(a, b)


@pytest.mark.wild("healthcare-dicom-dicomweb-adapter#153, dcm2niix#211", "patients under one SeriesInstanceUID")
def test_one_series_uid_for_several_patients() -> None:
    a, b = stack_of("a", 10, patient="A"), stack_of("b", 14, patient="B")
    index = found(a, b)
    assert as_made(index) == paths(a, b)
    assert all("its series holds images of 2 patients" in stack.notes for stack in index.stacks)
    halves = [(path, replace(header, patient="AB"[k % 2])) for k, (path, header) in enumerate(stack_of("c", 10))]
    (stack,) = found(halves).stacks
    assert "has slices of 2 patients by their headers" in (stack.reason or "")


@pytest.mark.wild("dcm2niix#218", "visits under one SeriesInstanceUID, and a StudyInstanceUID for each file")
def test_studies_under_one_series_uid() -> None:
    a, b = (stack_of(s, 10, always(StudyInstanceUID=s)) for s in "ab")
    assert as_made(found(a, b)) == paths(a, b)
    single = stack_of("c", 10, lambda k: {"StudyInstanceUID": str(k)})
    assert as_made(found(single)) == paths(single)


@pytest.mark.wild("dwv#1877, highdicom#405, Slicer#4872", "directions that differ by rounding")
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    jitter=st.sampled_from([1e-6, 1e-5, 1e-4, 1e-3]),
    count=st.integers(2, 30),
    base=st.sampled_from([AXIAL, SAGITTAL, CORONAL, OBLIQUE, None]),
    size=st.sampled_from([0.5, 0.70703125, 1.0]),
)
def test_directions_and_places_are_compared_with_tolerances(
    seed: int, jitter: float, count: int, base: Sequence[float] | None, size: float
) -> None:
    rng = np.random.default_rng(seed)
    if base is None:  # on a border of any rounding to decimals
        turn = rng.integers(1, 40) / 100 + 0.005
        base = (np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0)
    normal = np.cross(base[:3], base[3:])
    headers = [
        (
            f"{k:03d}",
            slice_header(
                np.array([3.005, -7, 11]) + normal * 2 * k + rng.uniform(-1e-3, 1e-3, 3),
                np.array(base) + rng.uniform(-jitter, jitter, 6),
                spacing=[size * (1 + 1e-5 * rng.uniform(-1, 1)), size],
            ),
        )
        for k in range(count)
    ]
    (stack,) = group_series(headers).stacks
    assert stack.reason is None
    assert [item.path for item in stack.slices] == [path for path, _ in headers]


@pytest.mark.wild("highdicom#405", "directions that differ by more than rounding, and less than directions do")
@settings(max_examples=60, deadline=None)
@given(degrees=st.floats(0.0, 30.0), depth=st.integers(4, 20))
def test_no_rotation_splits_a_volume_silently(degrees: float, depth: int) -> None:
    """Every other slice is turned, by any angle.

    The result is one volume, a refusal, or clearly two volumes with a note.
    """
    a, b = 0.0, np.deg2rad(degrees)
    headers = [
        (f"{k:03d}", slice_header((0, 0, 2.0 * k), (np.cos(t), np.sin(t), 0, -np.sin(t), np.cos(t), 0)))
        for k in range(depth)
        for t in [(a, b)[k % 2]]
    ]
    stacks = group_series(headers).stacks
    if len(stacks) > 1:
        assert degrees > 2
        assert all("its series holds 2 orientations or sizes" in stack.notes for stack in stacks)
    elif stacks[0].reason is None:
        assert degrees < 0.5
        assert len(stacks[0].slices) == depth
    else:
        assert "turned against each other" in stacks[0].reason


@pytest.mark.wild("dwv#1877", "time points whose positions differ by thousandths of a millimetre")
def test_places_that_differ_by_rounding_are_one_place() -> None:
    a = stack_of("a", 10, always(AcquisitionNumber="1"))
    b = stack_of("b", 10, always(AcquisitionNumber="2"), start=0.0015)
    assert as_made(found(a, b)) == paths(a, b)
    tiny = stack_of("c", 10, gap=0.008, spacing=[0.004, 0.004])
    assert as_made(found(tiny)) == paths(tiny)


@pytest.mark.wild("standard: PS3.5 6.2 (DS)", "positions that are written in tenths of a millimetre")
@settings(max_examples=40, deadline=None)
@given(gap=st.floats(0.3, 6.0), start=st.floats(-200, 200), count=st.integers(3, 80), lacks=st.booleans())
@example(gap=2.0, start=1.05, count=5, lacks=False)  # ties: steps of 1.9 to 2.1 mm
@example(gap=3.0, start=0.35, count=5, lacks=False)
@example(gap=0.61, start=0.05, count=3, lacks=False)
@example(gap=0.42, start=1.75, count=4, lacks=True)
@example(gap=0.3, start=0.05, count=5, lacks=True)
def test_rounded_positions_are_even_but_missing_slices_are_found(
    gap: float, start: float, count: int, lacks: bool
) -> None:
    # Three slices 0.4 mm apart that lack one may be rounded to the very positions of three even ones of 0.6 mm.
    assume(not lacks or count != 4 or gap > 0.41)
    made = [(f"{k:03d}", slice_header((0, 0, round(start + gap * k, 1)))) for k in range(count)]
    (stack,) = group_series([*made[:1], *made[2:]] if lacks and count > 3 else made).stacks
    if lacks and count > 3:
        assert stack.reason is not None
    elif gap > 0.6:
        assert stack.reason is None


@pytest.mark.wild("Slicer#4872", "a stack of few slices beside others, called a localizer")
def test_localizers_are_recognised_by_headers_only() -> None:
    planes = [
        [(f"{n}/{k}", slice_header(np.cross(o[:3], o[3:]) * 4 * k, o)) for k in range(5)]
        for n, o in enumerate((AXIAL, SAGITTAL, CORONAL))
    ]
    assert as_made(found(*planes)) == paths(*planes)
    named = [[(path, replace(h, image_type=["ORIGINAL", "PRIMARY", "LOCALIZER"])) for path, h in p] for p in planes]
    assert set(found(*named).left_out.values()) == {LOCALIZER}
    described = [(path, replace(header, description="3-plane scout")) for path, header in planes[1]]
    index = found(planes[0], described)
    assert as_made(index) == paths(planes[0])
    assert set(index.left_out.values()) == {LOCALIZER}
    single = found(*[plane[:1] for plane in planes])
    assert [stack.reason for stack in single.stacks] == [
        "is one slice, in a series of 3 directions or sizes: no volume. Leave it out where it is a localizer"
    ] * 3
    odd = found(planes[0], planes[1][:1])
    assert list(odd.left_out.values()) == [ODD_SLICE]
    assert as_made(odd) == paths(planes[0])


@pytest.mark.wild("rse-panimg#126", "two pixel sizes in one series")
def test_two_pixel_sizes_are_two_volumes() -> None:
    a, b = stack_of("a", 6), stack_of("b", 5, start=12, spacing=[0.5, 0.5])
    index = found(a, b)
    assert as_made(index) == paths(a, b)
    assert [stack.header.spacing[0] for stack in index.stacks] in ([0.5, 1.0], [1.0, 0.5])
    near = stack_of("c", 6, spacing=[1.004, 1.004], start=12)
    (stack,) = found(a, near).stacks
    assert stack.reason == "has slices with pixels of 1 to 1.004 mm"


@pytest.mark.wild("standard: PS3.3 C.7.6.2", "directions and positions that are no numbers")
@pytest.mark.parametrize(
    "wrong",
    [
        {"orientation": [0.0] * 6},
        {"orientation": [1.0, 0, 0, 1, 0, 0]},
        {"position": [float("nan"), 0, 0]},
    ],
)
def test_headers_without_a_valid_place_are_refused(wrong: dict[str, list[float]]) -> None:
    broken = [(path, replace(header, **wrong)) for path, header in stack_of("a", 5)]
    (stack,) = found(broken).stacks
    assert "has directions or positions that are none" in (stack.reason or "")


@pytest.mark.wild("Slicer#4019", "a dose report and screen saves in a heap of CT")
def test_secondary_captures_next_to_volumes_are_left_out() -> None:
    capture = slice_header((0, 0, 0), series="2", samples=3, modality="CT")
    capture = replace(
        capture,
        position=[],
        orientation=[],
        sop_class="1.2.840.10008.5.1.4.1.1.7",
        image_type=["DERIVED", "SECONDARY", "SCREEN SAVE"],
    )
    index = found(stack_of("a", 6), [("report", capture)])
    assert len(index.stacks) == 1
    assert "secondary capture" in next(iter(index.left_out.values()))
    assert [stack.kind for stack in found([("photo", capture)]).stacks] == ["flat"]
    xray = replace(capture, modality="DX", samples=1)
    assert len(found(stack_of("a", 6), [("xray", xray)]).stacks) == 2
