"""Masks are matched with images in all layouts.

By names and places; no mask becomes an image.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from oncofed.data.deidentify import Options, deidentify
from oncofed.data.folder import find_files
from oncofed.data.layouts import find_layout, kept_parts
from oncofed.data.layouts.base import FolderLayout
from oncofed.data.layouts.names import Named
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError

_SHAPE = (12, 10, 6)


def write(folder: Path, *names: str, shape: tuple[int, ...] = _SHAPE) -> Path:
    """Write an image per name, or a mask with star."""
    for seed, name in enumerate(names):
        path = folder / name.rstrip("*")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).integers(100, 250, shape).astype(np.uint8)
        if name.endswith("*"):
            values[:], values[3:7, 3:7] = 0, 1
        if path.name.endswith((".nii", ".nii.gz")):
            nib.save(nib.Nifti1Image(values, np.eye(4)), path)
        else:
            Image.fromarray(values[..., 0]).save(path.with_suffix(".png"))
            path.with_suffix(".png").rename(path)
    return folder


def read(source: Path, out: Path, **more: object) -> Manifest:
    return register(RegisterOptions(source, "demo", out, workers=1, **more))  # type: ignore[arg-type]


def layout_of(folder: Path, task: str | None = None) -> FolderLayout:
    layout = find_layout(folder, find_files(folder).files, None, task)
    assert layout
    return layout


def pairs(layout: FolderLayout) -> dict[str, tuple[str, ...]]:
    """Return first image -> files of its mask."""
    return {item.images[0]: item.masks for item in layout.items}


def _cases(*names: str) -> tuple[str, ...]:
    return tuple(name.format(n) for n in (1, 2) for name in names)


_PAIRS = {
    "KiTS": _cases("case_0000{}/imaging.nii.gz", "case_0000{}/segmentation.nii.gz*"),
    "LiTS": _cases("volume-{}.nii", "segmentation-{}.nii*"),
    "LiTS in two folders": _cases("volume_pt1/volume-{}.nii", "segmentations/segmentation-{}.nii*"),
    "BTCV": _cases("RawData/Training/img/img000{}.nii.gz", "RawData/Training/label/label000{}.nii.gz*"),
    "CT-ORG": _cases("volume-{}.nii.gz", "labels-{}.nii.gz*"),
    "BIDS derivatives": _cases(
        "sub-{}/anat/sub-{}_T1w.nii.gz".replace("{}", "{0}"),
        "derivatives/labels/sub-{0}/anat/sub-{0}_T1w_seg.nii.gz*",
    ),
    "BIDS label and desc": _cases(
        "sub-{0}/anat/sub-{0}_ses-1_T1w.nii.gz", "sub-{0}/anat/sub-{0}_ses-1_label-L_desc-T1lesion_mask.nii.gz*"
    ),
    "VerSe": _cases("rawdata/sub-v{0}/sub-v{0}_ct.nii.gz", "derivatives/sub-v{0}/sub-v{0}_seg-vert_msk.nii.gz*"),
    "Spinal Cord Toolbox": _cases(
        "sub-{0}/anat/sub-{0}_T2w.nii.gz", "derivatives/labels/sub-{0}/anat/sub-{0}_T2w_seg-manual.nii.gz*"
    ),
    "AMOS": _cases("imagesVa/amos_000{}.nii.gz", "labelsVa/amos_000{}.nii.gz*"),
    "FLARE": _cases("images/FLARE22_Tr_000{}_0000.nii.gz", "labels/FLARE22_Tr_000{}.nii.gz*"),
    "ACDC": _cases("patient00{0}/patient00{0}_frame01.nii.gz", "patient00{0}/patient00{0}_frame01_gt.nii.gz*"),
    "PROMISE": _cases("Case0{}.nii.gz", "Case0{}_segmentation.nii.gz*"),
    "ISIC": _cases(
        "ISIC2018_Task1-2_Training_Input/ISIC_000{}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_000{}_segmentation.png*",
    ),
    "Kvasir": _cases("Kvasir-SEG/images/cju{}.png", "Kvasir-SEG/masks/cju{}.png*"),
    "CVC-ClinicDB": _cases("PNG/Original/{}.png", "PNG/Ground Truth/{}.png*"),
    "Shenzhen": _cases("CXR_png/CHNCXR_000{}_0.png", "mask/CHNCXR_000{}_0_mask.png*"),
    "GlaS": _cases("train_{}.bmp", "train_{}_anno.bmp*"),
    "train and val": _cases("train/images/{}.png", "train/masks/{}.png*", "val/images/{}.png", "val/masks/{}.png*"),
    "leading zeros": _cases("img000{}.nii.gz", "label{}.nii.gz*"),
    "Slicer": _cases("P{}/2 Chest CT.nii.gz", "P{}/Segmentation.nii.gz*"),
    "a name of its own": _cases("P{}/ct.nii.gz", "P{}/tumour.nii.gz*"),
    "a word at the end": _cases("scan_{}.nii.gz", "scan_{}_liver.nii.gz*"),
    "names that say nothing": _cases("P{}/aaa.nii.gz", "P{}/bbb.nii.gz*"),
    "folders that say nothing": _cases("cases/{}.png", "lungs/{}.png*"),
}


@pytest.mark.wild(
    "datumaro#616, nnUNet#2201 #373, MONAILabel#766", "masks named as public sets name them, taken for images"
)
@pytest.mark.parametrize("names", _PAIRS.values(), ids=_PAIRS)
def test_each_mask_finds_its_image(tmp_path: Path, names: tuple[str, ...]) -> None:
    layout = layout_of(write(tmp_path, *names))
    images = [name for name in names if not name.endswith("*")]
    masks = [name.rstrip("*") for name in names if name.endswith("*")]
    assert pairs(layout) == {image: (mask,) for image, mask in zip(images, masks, strict=True)}
    assert not layout.bad
    assert not layout.left_out
    assert len({item.patient for item in layout.items}) == len(images)


_WORDS = st.text(st.characters(codec="ascii", categories=("Ll",)), min_size=3, max_size=6).filter(
    lambda word: Named(f"{word}.nii").role is None and not Named(f"{word}.nii").channel
)


@pytest.mark.wild("datumaro#616", "masks by any ending, beginning or folder")
@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(_WORDS, min_size=2, max_size=5, unique=True),
    style=st.sampled_from(
        ("{}_seg", "{}-mask", "{}.label", "{}_GT", "seg_{}", "Mask-{}", "label{}", "{}_Segmentation_1")
    ),
    folder=st.sampled_from(("", "masks/", "Ground_Truth/", "labelsTr/", "x/manual segmentations/")),
    numbered=st.booleans(),
)
def test_masks_are_found_by_any_marking(names: list[str], style: str, folder: str, numbered: bool) -> None:
    cases = [f"{name}{n:03d}" if numbered else name for n, name in enumerate(names)]
    if style == "label{}":
        cases = [f"{n:03d}" for n in range(len(names))]
    masks = {case: Named(f"{folder}{style.format(case)}.nii.gz") for case in cases}
    assert all(mask.role == "mask" for mask in masks.values())
    assert len({mask.key for mask in masks.values()}) == len(cases)
    keys = {case: Named(f"images/{case}.nii.gz").key for case in cases}
    assert all(mask.key[: len(keys[case])] == keys[case] for case, mask in masks.items())


@pytest.mark.wild("datumaro#616", "channels of one BraTS case as patients of their own")
@pytest.mark.parametrize(
    ("case", "channels", "patients"),
    [
        ("BraTS20_Training_00{}", ("flair", "t1", "t1ce", "t2"), 2),
        ("BraTS-GLI-00000-10{}", ("t1c", "t1n", "t2f", "t2w"), 1),  # two scans of one patient
        ("UPENN-GBM-0000{}_11", ("FLAIR", "T1", "T1GD", "T2"), 2),
    ],
)
def test_files_that_differ_by_the_sequence_are_one_case(
    tmp_path: Path, case: str, channels: tuple[str, ...], patients: int
) -> None:
    names = [case.format(n) for n in (1, 2)]
    source = tmp_path / "in"
    for name in names:
        write(source, *(f"{name}/{name}_{channel}.nii.gz" for channel in channels), f"{name}/{name}_seg.nii.gz*")
    manifest = read(source, tmp_path / "out")
    assert [entry.name for entry in manifest.entries] == names
    assert {entry.channels for entry in manifest.entries} == {4}
    assert len({entry.patient for entry in manifest.entries}) == patients
    assert list(manifest.modality.values()) == [channel.lower() for channel in channels]
    assert all(entry.label == f"source/{entry.name}/{entry.name}_seg.nii.gz" for entry in manifest.entries)


def test_a_case_without_a_channel_is_set_aside_with_its_files(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, f"{name}/{name}_t1.nii.gz", f"{name}/{name}_t2.nii.gz", f"{name}/{name}_seg.nii.gz*")
    (tmp_path / "b" / "b_t2.nii.gz").unlink()
    write(tmp_path, "c/c_adc.nii.gz")
    layout = layout_of(tmp_path)
    assert [item.name for item in layout.items] == ["c", "a"]
    (bad,) = layout.bad
    assert (bad.source, bad.reason) == (
        "b/b_t1.nii.gz",
        "has 1 channels (t1), expected 2 (t1, t2); a file is missing",
    )
    assert layout.left_out == {
        "c/c_adc.nii.gz": "channel that most cases lack",
        "b/b_seg.nii.gz": "file of a case that lacks a channel",
    }


def test_sequences_on_other_grids_are_images_of_one_patient(tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path, f"P{n}/t1.nii.gz", f"P{n}/lesion_seg.nii.gz*")
        write(tmp_path, f"P{n}/flair.nii.gz", shape=(6, 6, 6))
    layout = layout_of(tmp_path)
    assert len(layout.items) == 4
    assert len({item.patient for item in layout.items}) == 2
    assert {p: bool(masks) for p, masks in pairs(layout).items()} == {
        f"P{n}/{name}.nii.gz": name == "t1" for n in (1, 2) for name in ("t1", "flair")
    }


@pytest.mark.wild("nnUNet#2201", "one file a class")
def test_one_file_per_class_becomes_one_mask(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for n in (1, 2):
        write(source, f"s000{n}/ct.nii.gz")
        for k, name in enumerate(("spleen", "adrenal_gland_left", "liver")):
            values = np.zeros(_SHAPE, np.uint8)
            values[4 * k : 4 * k + 2, :, n] = 1
            (source / f"s000{n}" / "segmentations").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), source / f"s000{n}" / "segmentations" / f"{name}.nii.gz")
    (source / "s0002" / "segmentations" / "spleen.nii.gz").unlink()
    manifest = read(source, tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "adrenal_gland_left", "2": "liver", "3": "spleen"}
    assert [entry.label_values for entry in manifest.entries] == [
        {"0": 660, "1": 20, "2": 20, "3": 20},
        {"0": 680, "1": 20, "2": 20},
    ]
    assert manifest.files == {"image": 2, "label": 5}
    mask = np.asarray(nib.load(tmp_path / "out" / str(manifest.entries[0].label)).dataobj)  # type: ignore[attr-defined]
    expected = np.zeros(_SHAPE)
    expected[0:2, :, 1], expected[4:6, :, 1], expected[8:10, :, 1] = 3, 1, 2
    np.testing.assert_array_equal(mask, expected)
    assert read(source, tmp_path / "out") == manifest  # from the index
    (tmp_path / "out" / str(manifest.entries[0].label)).unlink()
    again = read(source, tmp_path / "out")  # written again
    assert (tmp_path / "out" / str(again.entries[0].label)).is_file()


def test_masks_of_several_classes_that_overlap_are_refused_by_name(tmp_path: Path) -> None:
    names = ("liver", "tumour")
    source = write(
        tmp_path / "in",
        *(f"CXR/a{n}.png" for n in (1, 2)),
        *(f"masks/{name} mask/a{n}.png*" for n in (1, 2) for name in names),
    )
    manifest = read(source, tmp_path / "out")
    assert not manifest.entries
    assert {bad.reason.partition(":")[0] for bad in manifest.quarantine} == {
        "its masks of liver and tumour overlap in 16 voxels"
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a_seg.nii.gz*", "b.nii.gz"), "mask without an image"),
        (("anna.nii.gz", "carl.nii.gz", "bert_seg.nii.gz*"), "mask without an image"),
        (("x/anna.nii.gz", "x/bert_seg.nii.gz*"), "mask without an image"),
        (("case_1.nii.gz", "case_11_seg.nii.gz*"), "mask without an image"),
        (("a/x.png", "b/x.png", "c/x_seg.png*"), "mask that may be of several images: list"),
        (("P1/first.nii.gz", "P1/last.nii.gz", "P1/Segmentation.nii.gz*"), "mask that may be of several images"),
    ],
)
def test_a_mask_is_not_matched_with_another_image(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    layout = layout_of(write(tmp_path, *names), task="segmentation")
    assert not any(item.masks for item in layout.items)
    assert [reason.startswith(said) for reason in layout.left_out.values()] == [True]
    assert len(layout.items) == sum(not name.endswith("*") for name in names)


def test_none_of_several_masks_of_an_image_is_chosen(tmp_path: Path) -> None:
    names = [f"benign/benign ({n}){end}" for n in (1, 2, 3) for end in (".png", "_mask.png*")]
    layout = layout_of(write(tmp_path, *names, "benign/benign (2)_mask_1.png*"))
    assert len(layout.items) == 2
    (bad,) = layout.bad
    assert bad.source == "benign/benign (2).png"
    assert bad.reason.startswith("has 2 masks (benign/benign (2)_mask.png, benign/benign (2)_mask_1.png), expected one")


def test_masks_among_class_folders_are_no_images_of_a_class(tmp_path: Path) -> None:
    names = [f"{c}/{c} ({n}){end}" for c in ("benign", "malignant") for n in (1, 2) for end in (".png", "_mask.png*")]
    layout = layout_of(write(tmp_path, *names), task="classification")
    assert sorted(item.images[0] for item in layout.items) == sorted(n for n in names if not n.endswith("*"))
    assert set(layout.left_out) == {n.rstrip("*") for n in names if n.endswith("*")}
    assert layout_of(tmp_path).task == "segmentation"


@pytest.mark.wild("nnUNet#2201", "a file of few whole numbers on another's grid, whose name tells nothing")
def test_masks_known_only_by_voxels_are_no_images(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *(f"{name}.nii.gz" for name in "abcdefgh"), "i.nii.gz*")
    manifest = read(source, tmp_path / "out")
    assert [entry.source for entry in manifest.entries] == [f"{name}.nii.gz" for name in "abcdefgh"]
    (bad,) = manifest.quarantine
    assert bad.source == "i.nii.gz"
    assert bad.reason.startswith("holds few whole numbers alone, on the grid of a.nii.gz: it looks like a mask")


@pytest.mark.wild("BUSI, Data Science Bowl 2018", "masks among folders of classes, of which no image has one alone")
@pytest.mark.parametrize(
    "names",
    [
        ("{c}/{c} (1).png", "{c}/{c} (1)_mask.png*", "{c}/{c} (1)_mask_1.png*"),
        ("{c}/images/{c}1.png", "{c}/masks/{c}a0.png*", "{c}/masks/{c}b1.png*"),
        ("{c}/images/x.png", "{c}/images/y.png", "{c}/masks/a0.png*"),
        ("{c}/x.png", "{c}/q7_mask.png*"),
    ],
)
def test_no_mask_becomes_an_image_of_a_class(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [name.format(c=c) for c in ("benign", "malignant") for name in names]
    layout = layout_of(write(tmp_path, *files))
    told = {path for item in layout.items for path in (*item.images, *item.masks)}
    images = {path for item in layout.items for path in item.images} | {bad.source for bad in layout.bad}
    assert images == {name for name in files if not name.endswith("*")}
    assert told | set(layout.left_out) | images == {name.rstrip("*") for name in files}


@pytest.mark.wild("Data Science Bowl 2018", "a folder of masks beside a folder of one image")
def test_folders_with_a_single_image_and_mask(tmp_path: Path) -> None:
    layout = layout_of(write(tmp_path, *_cases("k{0}/images/a{0}.png", "k{0}/masks/f{0}0.png*")))
    assert pairs(layout) == {f"k{n}/images/a{n}.png": (f"k{n}/masks/f{n}0.png",) for n in (1, 2)}


@pytest.mark.wild("AutoPET, HECKTOR", "a mask of one of two images of a patient, on the grid of the other")
@pytest.mark.parametrize("names", [("p{0}/CT", "p{0}/PET", "p{0}/SEG"), ("{0}_CT", "{0}_PT", "{0}_seg")])
@pytest.mark.parametrize("own", [0, 1])
def test_the_grid_tells_which_image_a_mask_is_of(tmp_path: Path, names: tuple[str, str, str], own: int) -> None:
    for n in (1, 2):
        image, other, mask = (f"{name.format(n)}.nii.gz" for name in (names[own], names[1 - own], names[2]))
        write(tmp_path, image, f"{mask}*")
        write(tmp_path, other, shape=(24, 20, 6))
    found = {image: masks for image, masks in pairs(layout_of(tmp_path)).items() if masks}
    assert found == {f"{names[own].format(n)}.nii.gz": (f"{names[2].format(n)}.nii.gz",) for n in (1, 2)}


@pytest.mark.wild("COVID-19-CT-Seg, MONAI Label", "a folder of images whose name holds a word of masks")
@pytest.mark.parametrize(
    "names",
    [
        ("Brain_Seg_Challenge/case{}", "Brain_Seg_Challenge/case{}_seg*"),
        ("my_labels/Seg_2020/p{}/scan_a", "my_labels/Seg_2020/p{}/lesion_mask*"),
        ("Seg_Challenge/scans/x{}", "Seg_Challenge/masks/x{}*"),
        ("COVID-CT-Seg_20cases/c{}", "Infection_Mask/c{}*"),
        ("Seg_A/case{}", "Seg_A/case{}_seg*", "Seg_B/other{}", "Seg_B/other{}_seg*"),
        ("images/{}", "labels/{}*"),
        ("k{}/ct", "k{}/segmentations/liver*"),
    ],
)
def test_a_folder_word_counts_if_it_distinguishes_files(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [f"{name.rstrip('*').format(n)}.nii.gz{'*' * name.endswith('*')}" for n in (1, 2, 3) for name in names]
    layout = layout_of(write(tmp_path, *files))
    assert {item.images[0] for item in layout.items} == {name for name in files if not name.endswith("*")}
    assert {mask for item in layout.items for mask in item.masks} == {name[:-1] for name in files if name[-1] == "*"}


def test_unlabelled_images_in_a_folder_named_like_masks_are_images(tmp_path: Path) -> None:
    names = _cases("siteA/case{}.nii.gz", "siteA/case{}_seg.nii.gz*", "siteB_labels_pending/case{}.nii.gz")
    layout = layout_of(write(tmp_path, *names))
    assert not layout.left_out
    labelled = {item.images[0]: bool(item.masks) for item in layout.items}
    assert labelled == {name: name.startswith("siteA") for name in names if not name.endswith("*")}


def test_masks_alone_are_refused_by_their_folder(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "masks/a.nii.gz*", "masks/b.nii.gz*")
    with pytest.raises(DataError, match="all 2 image files were taken for masks because of the folder masks"):
        read(source, tmp_path / "out")


_BIDS = "sub-s{0}/ses-1/{1}/sub-s{0}_ses-1_{2}.nii.gz"


@pytest.mark.wild("ATLAS 2.0, ISLES 2022, MICCAI WMH, DRIVE", "masks whose names are no image's and more")
@pytest.mark.parametrize(
    ("image", "mask", "others"),
    [
        (_BIDS.format("{0}", "anat", "desc-Norm_T1w"), _BIDS.format("{0}", "anat", "label-L_desc-T1lesion_mask"), ()),
        ("{0}/pre/FLAIR.nii.gz", "{0}/wmh.nii.gz", ()),
        ("a/images/{0}_training.png", "a/1st_manual/{0}_manual1.png", ("a/mask/{0}_training_mask.png*",)),
    ],
)
def test_masks_of_public_sets(tmp_path: Path, image: str, mask: str, others: tuple[str, ...]) -> None:
    layout = layout_of(write(tmp_path, *_cases(image, f"{mask}*", *others)))
    assert pairs(layout) == {image.format(n): (mask.format(n),) for n in (1, 2)}
    assert set(layout.left_out) == {name.rstrip("*") for name in _cases(*others)}


@pytest.mark.wild("ISLES 2022", "a mask of two sequences on one grid, a third on another")
def test_bids_sequences_with_a_common_mask_are_one_case(tmp_path: Path) -> None:
    for n in (1, 2):
        name = f"sub-s{n}/dwi/sub-s{n}"
        write(tmp_path, f"{name}_dwi.nii.gz", f"{name}_adc.nii.gz", f"derivatives/sub-s{n}/sub-s{n}_msk.nii.gz*")
        write(tmp_path, f"sub-s{n}/anat/sub-s{n}_FLAIR.nii.gz", shape=(20, 20, 4))
    layout = layout_of(tmp_path)
    assert sorted((item.images, item.masks) for item in layout.items) == [
        (
            (f"sub-s{n}/dwi/sub-s{n}_adc.nii.gz", f"sub-s{n}/dwi/sub-s{n}_dwi.nii.gz"),
            (f"derivatives/sub-s{n}/sub-s{n}_msk.nii.gz",),
        )
        for n in (1, 2)
    ]
    assert layout.left_out == {f"sub-s{n}/anat/sub-s{n}_FLAIR.nii.gz": "channel that most cases lack" for n in (1, 2)}


def test_one_reason_for_each_kind_of_file(tmp_path: Path) -> None:
    for n in range(5):
        write(tmp_path, *(f"{n}/{name}" for name in ("first.nii.gz", "last.nii.gz", "Segmentation.nii.gz*")))
    assert len(set(layout_of(tmp_path).left_out.values())) == 1


_OUTLINES = np.zeros((2, 48, 48), np.uint8)
_OUTLINES[0, 4:20, 4:30] = _OUTLINES[1, 28:44, 20:44] = 1


def _save(path: Path, outline: np.ndarray, kind: str) -> None:
    """Save an outline's ones, as different programs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "palette":
        picture = Image.fromarray(outline, "P")
        picture.putpalette([0, 0, 0, 255, 0, 0])
    elif kind == "colours":
        picture = Image.fromarray(outline[..., None] * np.array([0, 200, 0], np.uint8))
    elif kind == "opaque":
        picture = Image.fromarray(np.dstack([outline * 255] * 3 + [np.full_like(outline, 255)]))
    elif kind == "soft":
        picture = Image.fromarray(ndimage.gaussian_filter(outline * 255.0, 1.6).astype(np.uint8))
    else:
        picture = Image.fromarray(outline * 255)
    picture.save(path)


def _photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)


@pytest.mark.wild("DRIVE, PASCAL VOC", "a mask in palette, colours or with soft edges, whose name says it half")
@pytest.mark.parametrize("kind", ["grey", "palette", "colours", "opaque", "soft"])
@pytest.mark.parametrize("names", [("c{}_seg_liver", "c{}_seg_tumour"), ("out/c{}_mask_liver", "out/c{}_mask_tumour")])
def test_masks_are_recognised_by_their_values_as_read(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    for n in (1, 2, 3):
        _photo(tmp_path / f"in/c{n}.png", n)
        for name, outline in zip(names, _OUTLINES, strict=True):
            _save(tmp_path / "in" / f"{name.format(n)}.png", outline, kind)
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "liver", "2": "tumour"}
    assert [entry.source for entry in manifest.entries] == ["c1.png", "c2.png", "c3.png"]
    assert not manifest.quarantine


@pytest.mark.wild("standard: NIfTI-1 scl_slope", "floats that are nearly whole")
def test_nearly_whole_floats_are_a_mask(tmp_path: Path) -> None:
    write(tmp_path, "a.nii.gz", "b.nii.gz")
    values = np.zeros(_SHAPE, np.float32)
    values[3:7, 3:7] = 0.99999
    for name in "ab":
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}_seg_liver.nii.gz")
    assert pairs(layout_of(tmp_path)) == {f"{n}.nii.gz": (f"{n}_seg_liver.nii.gz",) for n in "ab"}


@pytest.mark.parametrize("kind", ["palette", "colours", "opaque", "soft"])
def test_masks_known_only_by_colours_are_no_images(tmp_path: Path, kind: str) -> None:
    for n in range(8):
        _photo(tmp_path / f"in/p{n}.png", n)
    _save(tmp_path / "in/q.png", _OUTLINES[0], kind)
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert [bad.source for bad in manifest.quarantine] == ["q.png"]


def test_black_and_white_images_are_not_taken_for_masks(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *(f"{c}/{n}{c}.png*" for c in ("round", "long") for n in range(3)))
    assert len(read(source, tmp_path / "out").entries) == 6


@pytest.mark.wild("nnUNet#448 #1644, AMOS22", "labels of test and validation lists")
@pytest.mark.parametrize("listed", [True, False], ids=["dataset.json", "folders alone"])
def test_labels_of_test_lists_are_used(tmp_path: Path, listed: bool) -> None:
    source = tmp_path / "in"
    folders = {"Tr": (1, 2, 3), "Va": (4,), "Ts": (5,)}
    channel = "_0000" if listed else ""
    for folder, numbers in folders.items():
        for n in numbers:
            write(source, f"images{folder}/a_{n:03d}{channel}.nii.gz", f"labels{folder}/a_{n:03d}.nii.gz*")
    write(source, f"imagesTs/a_006{channel}.nii.gz")
    if listed:
        header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1}, "file_ending": ".nii.gz"}
        (source / "dataset.json").write_text(json.dumps(header))
    manifest = read(source, tmp_path / "out")
    labelled = {
        split: [e.name for e in getattr(manifest, split) if e.label] for split in ("training", "validation", "test")
    }
    assert labelled == {"training": ["a_001", "a_002", "a_003"], "validation": ["a_004"], "test": ["a_005"]}
    assert manifest.left_out == ({"unlabelled test image": 1} if listed else {})


@pytest.mark.wild("nnUNet#448", "nnU-Net 1 lists names without the channel that its files have")
def test_nnunets_first_version(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in",
        *(f"images{where}/B_00{n}_000{c}.nii.gz" for where, n in (("Tr", 1), ("Ts", 2), ("Ts", 3)) for c in (0, 1)),
        "labelsTr/B_001.nii.gz*",
        "labelsTs/B_003.nii.gz*",
    )
    values = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "tumour"},
        "training": [{"image": "./imagesTr/B_001.nii.gz", "label": "./labelsTr/B_001.nii.gz"}],
        "test": ["./imagesTs/B_002.nii.gz", "./imagesTs/B_003.nii.gz"],
    }
    (source / "dataset.json").write_text(json.dumps(values))
    manifest = read(source, tmp_path / "out")
    assert [(e.source, e.channels) for e in manifest.training] == [("imagesTr/B_001_0000.nii.gz", 2)]
    assert [e.source for e in manifest.test] == ["imagesTs/B_003_0000.nii.gz"]  # type: ignore[union-attr]
    assert manifest.left_out == {"unlabelled test image": 2}


def test_each_image_file_in_nnunet_folders_is_reported(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        *("imagesTr/A_001_0000.nii.gz", "imagesTr/A_001_0002.nii.gz", "imagesTr/A_002_0000.nii.gz"),
        *("imagesTr/A_002_0001.nii.gz", "imagesTr/A_003.nii.gz", "labelsTr/A_002.nii.gz*", "labelsTr/A_009.nii.gz*"),
    )
    header = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(header))
    layout = layout_of(source)
    assert [item.name for item in layout.items] == ["A_002"]
    assert [bad.reason for bad in layout.bad] == ["has the channels 0000, 0002, expected 0000 to 0001"]
    assert {path: reason.partition(":")[0] for path, reason in layout.left_out.items()} == {
        "imagesTr/A_001_0002.nii.gz": "file of a case that lacks a channel",
        "imagesTr/A_003.nii.gz": "image without a channel in its name (_0000)",
        "labelsTr/A_009.nii.gz": "mask without an image",
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("", "images/", "labels/", "P1/", "P2/", "test/", "sub-1/anat/", "derivatives/x/")),
            st.sampled_from(("case_1", "case_2", "sub-1_T1w", "img0003", "label0003", "x", "volume-4", "P1")),
            st.sampled_from(("", "_seg", "_0000", "_t1", "_t2", "-mask", "_mask_1", "_liver_seg")),
        ),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_every_image_file_is_in_one_list(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str, str]]
) -> None:
    paths = ["".join(part) + ".nii.gz" for part in parts]
    folder = tmp_path_factory.mktemp("any")
    layout = find_layout(folder, paths, None, None)
    assert layout
    told = Counter(path for item in layout.items for path in (*item.images, *item.masks))
    told += Counter(bad.source for bad in layout.bad)
    told += Counter(path for path in layout.left_out if path not in told)
    assert told == Counter(paths)


def test_a_class_may_be_named_like_masks(tmp_path: Path) -> None:
    write(tmp_path, *(f"{cell}/{cell}_{n}.png" for cell in ("Seg", "Band", "Lymph") for n in range(3)))
    layout = layout_of(tmp_path)
    assert (layout.kind.name, len(layout.items)) == ("one folder a class", 9)
    assert layout.labels == {0: "Band", 1: "Lymph", 2: "Seg"}


def test_copies_without_identity_keep_masks_with_their_images(tmp_path: Path) -> None:
    names = ("volume-1.nii", "segmentation-1.nii*", "b/B7_t1.nii.gz", "b/B7_t2.nii.gz", "b/B7_seg.nii.gz*")
    deidentify(write(tmp_path / "in", *names), tmp_path / "out", tmp_path / "key", Options())
    items = layout_of(tmp_path / "out").items
    assert sorted((len(item.images), len(item.masks)) for item in items) == [(1, 1), (2, 1)]
    assert not any("B7" in path for item in items for path in item.images)


def test_parts_kept_of_a_name_without_its_case() -> None:
    parts = {
        name: kept_parts(name) for name in ("segmentation-12", "label0007", "P7_t1_seg", "case_1_0001", "P7.seg", "ct")
    }
    assert parts == {
        "segmentation-12": ("segmentation-", "12", ""),
        "label0007": ("label", "0007", ""),
        "P7_t1_seg": ("", "P7", "_t1_seg"),
        "case_1_0001": ("", "case_1", "_0001"),
        "P7.seg": ("", "P7", ".seg"),
        "ct": ("ct", "", ""),
    }


@pytest.mark.wild("standard: none", "one case of two sequences that sets all others aside")
def test_the_most_frequent_channels_decide(tmp_path: Path) -> None:
    names = ["case1_T1.nii", "case2_T1.nii", "case2_lesion.nii*", "case3_T1.nii", "case3_T2.nii", "case4_CT.nii"]
    layout = layout_of(write(tmp_path, *names, "case5_adc.nii", "case5_dwi.nii"))
    assert [item.images for item in layout.items] == [
        ("case1_T1.nii",),
        ("case2_T1.nii",),
        ("case3_T1.nii",),
        ("case4_CT.nii",),
    ]
    assert layout.items[1].masks == ("case2_lesion.nii",)
    assert layout.left_out["case3_T2.nii"] == "channel that most cases lack"
    assert ["expected 1, as most cases have" in bad.reason for bad in layout.bad] == [True]


@pytest.mark.wild("standard: none", "one case of two masks that sets all others aside")
def test_the_most_frequent_kind_of_masks_decides(tmp_path: Path) -> None:
    plain = [f"c{n}/{name}" for n in range(3) for name in ("imaging.nii", "segmentation.nii*")]
    odd = ["c3/imaging.nii", "c3/tumor_instance-1.nii*", "c3/tumor_instance-2.nii*"]
    layout = layout_of(write(tmp_path, *plain, *odd))
    assert pairs(layout) == {f"c{n}/imaging.nii": (f"c{n}/segmentation.nii",) for n in range(3)}
    assert [(bad.source, bad.reason[:11]) for bad in layout.bad] == [("c3/imaging.nii", "has 2 masks")]


@pytest.mark.wild("standard: none", "a class that one image lacks for a file that was not copied")
def test_a_class_that_one_image_lacks_is_noted(tmp_path: Path) -> None:
    names = [f"s{n}/ct.nii" for n in range(4)] + [f"s{n}/segmentations/liver.nii*" for n in range(4)]
    names += [f"s{n}/segmentations/spleen.nii*" for n in (0, 1, 3)] + ["s1/segmentations/kidney.nii*"]
    notes = {item.images[0]: item.notes for item in layout_of(write(tmp_path, *names)).items}
    assert notes == {
        "s0/ct.nii": (),
        "s1/ct.nii": (),
        "s2/ct.nii": ("no mask of spleen, which 3 other images have",),
        "s3/ct.nii": (),
    }
