"""Label files become whole numbers, or are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oncofed.data.case_facts import read_case
from oncofed.data.cases import read_cases
from oncofed.data.images import read_image
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Manifest, write_manifest
from oncofed.data.masks import colour_value, read_mask, value_name, value_of
from oncofed.data.register import RegisterOptions, parse_labels, register
from oncofed.data.spec import SplitSpec
from oncofed.errors import DataError

RANDOM = np.random.default_rng(0)
BLACK, RED, GREEN, WHITE = (0, 0, 0), (128, 0, 0), (0, 128, 0), (255, 255, 255)


def _classes(size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size + 8), np.uint8)
    mask[5:20, 10:30] = 1
    mask[30:50, 12:60] = 2
    return mask


def _disc(size: int = 96) -> np.ndarray:
    y, x = np.mgrid[:size, : size + 10]
    return ((x - 45) ** 2 + (y - 40) ** 2 < 20**2).astype(np.uint8) * 255


def _palette(mask: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(mask, "L").convert("P")
    image.putdata(mask.ravel().tolist())
    image.putpalette([part for colour in colours for part in colour])
    return image


def _coloured(mask: np.ndarray, *colours: tuple[int, int, int]) -> np.ndarray:
    return np.array(colours, np.uint8)[mask]


def _read(path: Path) -> np.ndarray:
    return read_mask(path).values[..., 0].T


@pytest.mark.wild(
    "lightning-flash#1400, labelme#785, labelme#2494, segmentation_keras#14", "a palette's numbers turned into colours"
)
@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_a_palettes_numbers_are_the_classes(name: str, tmp_path: Path) -> None:
    _palette(_classes(), BLACK, RED, GREEN).save(tmp_path / name)
    assert np.array_equal(_read(tmp_path / name), _classes())
    # As an image the same file has its colours.
    shown = read_image(tmp_path / name).values.swapaxes(0, 1)
    assert np.array_equal(shown, _coloured(_classes(), BLACK, RED, GREEN))


@pytest.mark.wild("labelme#785", "a palette of many entries, as Pascal VOC's, with a border of 255")
def test_a_border_of_255_is_kept(tmp_path: Path) -> None:
    mask = _classes()
    mask[4:5, 9:31] = mask[20:21, 9:31] = 255
    _palette(mask, *[(n, 255 - n, n) if n else BLACK for n in range(256)]).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png"), mask)


@pytest.mark.wild("lightning-flash#1400, labelme#2494", "grey saved as RGB, RGBA, with opacity")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_grey_saved_in_several_channels_is_grey(name: str, mode: str, tmp_path: Path) -> None:
    if name == "a.webp" and mode == "LA":
        pytest.skip("WebP has no such mode")
    Image.fromarray(_classes()).convert(mode).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(_read(tmp_path / name), _classes())


@pytest.mark.wild("labelme#2494", "what is drawn on a transparent layer")
def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    mask = _classes()
    drawn = np.dstack([np.full((*mask.shape, 3), WHITE, np.uint8), (mask > 0).astype(np.uint8) * 255])
    drawn[mask == 0, :3] = 77  # invisible
    Image.fromarray(drawn).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png"), (mask > 0) * 255)
    drawn[..., :3] = 0
    Image.fromarray(drawn).save(tmp_path / "b.png")
    assert np.array_equal(_read(tmp_path / "b.png"), (mask > 0) * 255)
    assert "opacity" in read_mask(tmp_path / "b.png").notes[0]


def test_degrees_of_opacity_are_refused(tmp_path: Path) -> None:
    drawn = np.dstack([_coloured(_classes(), BLACK, RED, GREEN), 100 * _classes()])
    Image.fromarray(drawn).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="3 degrees of opacity, expected opaque or transparent"):
        read_mask(tmp_path / "a.png")


@pytest.mark.wild("labelme#785, lightning-flash#1400", "masks of one colour a class: which colour is which class")
def test_a_colour_is_the_same_number_in_every_file(tmp_path: Path) -> None:
    Image.fromarray(_coloured(_classes(), BLACK, RED, GREEN)).save(tmp_path / "a.png")
    Image.fromarray(_coloured(_classes(), BLACK, GREEN, RED)).save(tmp_path / "b.png")
    red, green = value_of("#800000"), value_of("#008000")
    assert np.array_equal(_read(tmp_path / "a.png"), np.choose(_classes(), [0, red, green]))
    assert np.array_equal(_read(tmp_path / "b.png"), np.choose(_classes(), [0, green, red]))


@settings(max_examples=50, deadline=None)
@given(colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=20, unique=True))
def test_each_colour_has_a_number(colours: list[tuple[int, int, int]]) -> None:
    values = colour_value(np.array(colours, np.uint8)).tolist()
    assert len(set(values)) == len(colours)
    for (red, green, blue), value in zip(colours, values, strict=True):
        assert value_of(value_name(value)) == value
        assert (value == red) == (red == green == blue)


def _dataset(
    folder: Path, masks: list[Image.Image], name: str = "{}.png", labels: dict[int, str] | None = None
) -> Manifest:
    (folder / "in" / "images").mkdir(parents=True)
    (folder / "in" / "masks").mkdir()
    for number, mask in enumerate(masks):
        field = RANDOM.integers(0, 255, (mask.height, mask.width, 3), dtype=np.uint8)
        Image.fromarray(field).save(folder / "in" / "images" / f"{number}.png")
        mask.save(folder / "in" / "masks" / name.format(number))
    return register(RegisterOptions(folder / "in", "demo", folder / "out", labels=labels or {}, workers=1))


@pytest.mark.wild("labelme#785, lightning-flash#1400", "colours of a mask have no names: the table tells them")
def test_colours_are_reported_and_can_be_named(tmp_path: Path) -> None:
    masks = [Image.fromarray(_coloured(_classes(), BLACK, RED, GREEN)) for _ in range(4)]
    manifest = _dataset(tmp_path, masks)
    assert set(manifest.labels.values()) == {"background", "#800000", "#008000"}
    assert parse_labels("#800000=tumour")[value_of("#800000") or -1] == "tumour"


def _used(cases: object) -> list[tuple[int, int, int]]:
    """Return each case's pixel counts by class, in training."""
    return [tuple(np.bincount(c.read()[1].values.ravel(), minlength=3).tolist()) for c in cases]  # type: ignore[attr-defined]


@pytest.mark.wild("labelme#785, ImageMagick's palettes", "a palette that each file numbers anew")
def test_palettes_that_contradict_each_other_are_read_by_colour(tmp_path: Path) -> None:
    one, two = _classes(), _classes()
    two[two > 0] = 3 - two[two > 0]
    masks = [_palette(one, BLACK, RED, GREEN), _palette(two, BLACK, GREEN, RED)] * 3
    manifest = _dataset(tmp_path, masks)
    counts = {int((_classes() == 1).sum()), int((_classes() == 2).sum())}
    assert all(
        (e.label_values or {})[str(value_of("#800000"))] == int((_classes() == 1).sum()) for e in manifest.entries
    )
    renamed = manifest.model_copy(update={"label_map": {"#800000": "tumour", "#008000": "rim"}})
    write_manifest(tmp_path / "out", renamed)
    cases = read_cases(tmp_path / "out", SplitSpec(), 1, Supervision(classes={1: "tumour", 2: "rim"}))
    seen = _used(cases)
    assert len(set(seen)) == 1
    assert set(seen[0][1:]) == counts
    assert seen[0][1] == int((_classes() == 1).sum())


@pytest.mark.wild("labelme#785", "numbered objects, each file's palette of colours of its own")
@pytest.mark.parametrize("how", ["grey", "one palette", "a palette for each file"])
def test_numbered_objects_are_recognised_with_or_without_palette(how: str, tmp_path: Path) -> None:
    masks = []
    for file in range(5):
        mask = np.zeros((64, 64), np.uint8)
        for number in range(12 - file):
            mask[5 * number : 5 * number + 3, 5:20] = number + 1
        seed = np.random.default_rng(file if how == "a palette for each file" else 0)
        colours = [BLACK, *map(tuple, seed.integers(1, 255, (40, 3)).tolist())]
        masks.append(Image.fromarray(mask) if how == "grey" else _palette(mask, *colours))
    manifest = _dataset(tmp_path, masks)
    assert manifest.label_kind == "instances"
    assert sorted(e.instances or 0 for e in manifest.entries) == [8, 9, 10, 11, 12]
    assert manifest.labels.keys() == {"0", "1"}
    for case in read_cases(tmp_path / "out", SplitSpec(), 1):
        assert np.array_equal(case.read_label(numbered=True).values[..., 0].T, np.asarray(masks[int(case.name)]))


@pytest.mark.wild("ImageMagick's palettes", "many classes, numbered anew in each file, taken for objects")
def test_many_classes_with_shared_colours_are_classes(tmp_path: Path) -> None:
    colours = [tuple(map(int, c)) for c in np.random.default_rng(0).integers(1, 255, (14, 3))]
    masks = []
    for file in range(5):
        here = np.random.default_rng(file).permutation(14)[: 12 - file % 4]
        mask = np.zeros((64, 64), np.uint8)
        for number in range(len(here)):
            mask[5 * number : 5 * number + 3, 5:20] = number + 1
        masks.append(_palette(mask, BLACK, *[colours[n] for n in here]))  # type: ignore[arg-type]
    manifest = _dataset(tmp_path, masks)
    assert manifest.label_kind == "classes"
    assert len(manifest.labels) == 15


@pytest.mark.wild("ImageMagick's palettes", "a palette whose first colour is the object, or the paper")
def test_a_palette_that_begins_with_white_is_read_as_its_label_is_named(tmp_path: Path) -> None:
    drawn = (_classes() > 0).astype(np.uint8)
    masks = [_palette(drawn, WHITE, BLACK)] * 3
    manifest = _dataset(tmp_path / "unnamed", masks)
    assert not manifest.entries
    assert all("--labels 1=NAME where white is background" in bad.reason for bad in manifest.quarantine)
    for value, label in ((1, drawn), (255, 255 * (1 - drawn))):
        folder = tmp_path / str(value)
        manifest = _dataset(folder, masks, labels={value: "tumour"})
        assert [e.label_values for e in manifest.entries] == [
            {"0": int((label == 0).sum()), str(value): int((label > 0).sum())}
        ] * 3
        assert all(("palette begins with white" in " ".join(e.notes)) == (value == 1) for e in manifest.entries)
        for case in read_cases(folder / "out", SplitSpec(), 1):
            assert np.array_equal(case.read()[1].values[..., 0].T, label)


@pytest.mark.wild("ImageMagick's palettes", "a palette whose first colour is a class")
def test_a_palette_that_begins_with_a_class_is_read_by_its_colours(tmp_path: Path) -> None:
    mask = (_classes() > 0).astype(np.uint8)
    _palette(1 - mask, RED, BLACK).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png"), np.where(mask, value_of("#800000"), 0))


def _soft(method: Image.Resampling, factor: float) -> np.ndarray:
    disc = Image.fromarray(_disc())
    return np.asarray(disc.resize((int(disc.width * factor), int(disc.height * factor)), method))


@pytest.mark.wild("EGE-UNet#13, plant-3d-vision#140", "soft edges: each grey level an object of its own")
@pytest.mark.parametrize("factor", [0.5, 2.6, 5.3])
@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16", "volume"])
def test_soft_edges_are_cut_half_way_with_a_note(
    mode: str, method: Image.Resampling, factor: float, tmp_path: Path
) -> None:
    soft = _soft(method, factor)
    path, top = tmp_path / "a.png", 255
    if mode == "volume":
        path = tmp_path / "a.nii.gz"
        nib.save(nib.Nifti1Image(np.repeat(soft.T[..., None], 5, -1), np.eye(4)), path)
    elif mode == "I;16":
        top = 65535
        Image.fromarray(soft.astype(np.uint16) * 257).save(path)
    elif mode == "P":
        _palette(soft, *[(n, n, n) for n in range(256)]).save(path)
    else:
        Image.fromarray(soft).convert(mode).save(path)
    read = read_mask(path)
    found = read.values[..., 0].T
    assert np.array_equal(found[2] if mode == "volume" else found, (soft > 127) * top)
    assert "cut at" in read.notes[0]


@pytest.mark.wild("EGE-UNet#13", "classes and objects taken for soft edges")
@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 85, 170, 255), (0, 63, 127, 191, 255), (0, 128, 255), (0, 255)])
def test_classes_are_not_cut(values: tuple[int, ...], tmp_path: Path) -> None:
    mask = np.zeros((80, 120), np.uint8)
    for number, value in enumerate(values):
        mask[10 : 10 + 2 * (number + 4), 20 * number : 20 * number + 15] = value
        mask[40 + 2 * number : 42 + 2 * number, :] = value  # thin as an edge
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png"), mask)


def _organ_with_ducts() -> np.ndarray:
    mask = np.zeros((128, 128), np.uint8)
    mask[20:100, 20:60] = 255
    for number, value in enumerate((64, 128, 192)):
        mask[30:100, 70 + 8 * number : 72 + 8 * number] = value  # two pixels thick: nowhere an even area
    return mask


@pytest.mark.wild("EGE-UNet#13", "thin classes beside a large one taken for its soft edge")
@pytest.mark.parametrize("named", ["", "64=a,128=b,192=c,255=organ"])
def test_thin_classes_next_to_a_large_one_are_kept(named: str, tmp_path: Path) -> None:
    labels = parse_labels(named) if named else {}
    manifest = _dataset(tmp_path, [Image.fromarray(_organ_with_ducts())] * 3, labels=labels)
    counts = {str(v): int((_organ_with_ducts() == v).sum()) for v in (0, 64, 128, 192, 255)}
    assert [e.label_values for e in manifest.entries] == [counts] * 3
    for case in read_cases(tmp_path / "out", SplitSpec(), 1):
        assert np.array_equal(case.read()[1].values[..., 0].T, _organ_with_ducts())
        assert np.array_equal(case.read_label().values[..., 0].T, _organ_with_ducts())


@pytest.mark.wild("EGE-UNet#13", "a thin class where other edges are soft; many thin layers")
def test_thin_classes_are_not_taken_for_slopes(tmp_path: Path) -> None:
    layers = np.zeros((128, 128), np.uint8)
    layers[60:] = 255
    for number in range(10):
        layers[40 + 2 * number : 42 + 2 * number] = 25 * number + 15
    Image.fromarray(layers).save(tmp_path / "layers.png")
    assert np.array_equal(_read(tmp_path / "layers.png"), layers)
    mixed = _soft(Image.Resampling.BILINEAR, 2.6).copy()
    mixed[5:8, 10:200] = 50
    Image.fromarray(mixed).save(tmp_path / "mixed.png")
    with pytest.raises(DataError, match="its edges are soft"):
        read_mask(tmp_path / "mixed.png")
    Image.fromarray(_organ_with_ducts()).save(tmp_path / "lossy.jpg", quality=95)
    with pytest.raises(DataError, match="changed its label's values"):
        read_mask(tmp_path / "lossy.jpg")


@pytest.mark.wild("EGE-UNet#13", "classes of one pixel's thickness, each between its neighbours, that are named")
def test_named_values_are_never_cut(tmp_path: Path) -> None:
    rims = np.zeros((96, 96), np.uint8)
    for number, value in enumerate((20, 60, 100, 140, 180, 220)):
        rims[10 + number : 60 - number, 10 + number : 60 - number] = value
    rims[16:54, 16:54] = 255
    labels = {v: f"rim {v}" for v in (20, 60, 100, 140, 180, 220, 255)}
    manifest = _dataset(tmp_path, [Image.fromarray(rims)] * 3, labels=labels)
    assert set(manifest.entries[0].label_values or {}) == {"0", *map(str, labels)}
    for case in read_cases(tmp_path / "out", SplitSpec(), 1):
        assert np.array_equal(case.read()[1].values[..., 0].T, rims)
    # A list that people wrote names them as well.
    own = Manifest(name="own", labels={"0": "background", **{str(v): n for v, n in labels.items()}}, training=[])
    entry = manifest.entries[0].model_copy(update={"shape": None, "label_named": None, "label_values": None})
    write_manifest(tmp_path / "out", own.model_copy(update={"training": [entry]}))
    (case,) = read_cases(tmp_path / "out", SplitSpec(), 1)
    assert np.array_equal(case.read()[1].values[..., 0].T, rims)


@settings(max_examples=15, deadline=None)
@given(side=st.integers(2, 12), gap=st.integers(0, 3), seed=st.integers(0, 99))
def test_numbered_objects_are_not_cut(side: int, gap: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    numbers = np.random.default_rng(seed).permutation(np.arange(1, 256))
    mask = np.zeros((200, 220), np.uint16)
    places = [(y, x) for y in range(0, 180, side + gap) for x in range(0, 200, side + gap)]
    for (y, x), number in zip(places, numbers, strict=False):
        mask[y : y + side, x : x + side] = number
    path = tmp_path_factory.mktemp("m") / "a.png"
    Image.fromarray(mask).save(path)
    assert np.array_equal(_read(path), mask)


@pytest.mark.wild("PraNet#54", "JPEG masks: values that the compression made")
@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif", "again.png"])
def test_a_jpeg_of_two_levels_is_cut_half_way(name: str, mode: str, quality: int, tmp_path: Path) -> None:
    image = Image.fromarray(_disc()).convert(mode)
    path = tmp_path / name
    if name == "a.tif":
        array = np.asarray(image)
        tifffile.imwrite(path, array, compression="jpeg", compressionargs={"level": quality})
    elif name == "again.png":
        image.convert("L").save(tmp_path / "b.jpg", quality=quality)
        Image.open(tmp_path / "b.jpg").save(path)
    else:
        image.save(path, quality=quality)
    read = read_mask(path)
    wrong = _disc() != read.values[..., 0].T
    assert set(np.unique(read.values)) == {0, 255}
    assert wrong.mean() < 0.002  # at the edge itself
    assert "cut at 127" in read.notes[0]


@pytest.mark.wild("PraNet#54", "JPEG masks of classes: refused without the reason")
@pytest.mark.parametrize("values", [(0, 1, 2), (0, 100, 200), (0, 1, 1)])
def test_a_jpeg_of_classes_is_refused_as_jpeg(values: tuple[int, ...], tmp_path: Path) -> None:
    Image.fromarray(np.array(values, np.uint8)[_classes()]).save(tmp_path / "a.jpg", quality=90)
    with pytest.raises(DataError, match="is a JPEG, whose compression changed its label's values"):
        read_mask(tmp_path / "a.jpg")
    Image.fromarray(_coloured(_classes(), BLACK, RED, GREEN)).save(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"is a JPEG, whose compression blended its label's colours.*PNG"):
        read_mask(tmp_path / "b.jpg")


@pytest.mark.wild("EGE-UNet#13", "a picture, or colours that are blended, taken for a mask")
def test_pictures_are_not_masks(tmp_path: Path) -> None:
    y, x = np.mgrid[:90, :100]
    Image.fromarray(RANDOM.integers(0, 255, (90, 100), dtype=np.uint8)).save(tmp_path / "noise.png")
    blurred = 127 + 127 * np.sin(x / 19 + y / 23)
    Image.fromarray(blurred.astype(np.uint8)).save(tmp_path / "blurred.png")
    for name in ("noise.png", "blurred.png"):
        with pytest.raises(DataError, match="levels of grey that form no areas"):
            read_mask(tmp_path / name)
    Image.fromarray(RANDOM.integers(0, 255, (90, 100, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    blended = Image.fromarray(_coloured(_classes(), BLACK, RED, GREEN)).resize((300, 300), Image.Resampling.BILINEAR)
    blended.save(tmp_path / "blended.png")
    for name in ("photo.png", "blended.png"):
        with pytest.raises(DataError, match="colours, expected one for each class: its edges are blended"):
            read_mask(tmp_path / name)


@pytest.mark.wild(
    "spinalcordtoolbox#4346, spinalcordtoolbox#3101, nibabel#1001, torchio#220", "labels that a float rounded"
)
@settings(max_examples=25, deadline=None)
@given(error=st.floats(-1e-3, 1e-3), label=st.integers(1, 200), kind=st.sampled_from([np.float32, np.float64]))
def test_nearly_whole_labels_are_rounded(
    error: float, label: int, kind: type, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("m") / "a.nii.gz"
    mask = np.zeros((6, 5, 4))
    mask[2:4, 1:3, 1:3] = label
    nib.save(nib.Nifti1Image((mask + error * (mask > 0)).astype(kind), np.eye(4)), path)
    read = read_mask(path)
    assert np.issubdtype(read.values.dtype, np.integer)
    assert np.array_equal(read.values[..., 0], mask)


@pytest.mark.wild("nibabel#1001", "labels scaled by scl_slope")
@pytest.mark.parametrize("slope", [1 / 3, 0.1, 0.003921569])
def test_scaled_labels_are_rounded(slope: float, tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4))
    labels[1:3], labels[4] = 1, 2
    image = nib.Nifti1Image(np.rint(labels / np.float32(slope)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_mask(tmp_path / "a.nii").values[..., 0], labels)


@pytest.mark.parametrize(("value", "said"), [(0.4, "holds 0.4, expected whole"), (1.01, "1.01"), (np.nan, "NaN")])
def test_other_values_are_refused_with_their_digits(value: float, said: str, tmp_path: Path) -> None:
    mask = np.zeros((6, 5, 4), np.float32)
    mask[2:4] = 1
    mask[5, 0, 0] = value
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=said):
        read_mask(tmp_path / "a.nii")


@pytest.mark.wild("EGE-UNet#13", "a mask of floats with soft edges")
def test_soft_edges_between_0_and_1_are_cut(tmp_path: Path) -> None:
    soft = _soft(Image.Resampling.BILINEAR, 2.6).T / np.float32(255)
    nib.save(nib.Nifti1Image(np.repeat(soft[..., None], 3, -1), np.eye(4)), tmp_path / "a.nii")
    read = read_mask(tmp_path / "a.nii")
    assert np.array_equal(read.values[..., 1, 0], soft > 0.5)
    assert "cut at 0.5" in read.notes[0]


@pytest.mark.wild("detectron2#788, D-FINE#308", "what is checked at registering is not what is trained on")
def test_training_reads_what_registering_read(tmp_path: Path) -> None:
    masks = [Image.fromarray(_soft(Image.Resampling.BICUBIC, 1.7)) for _ in range(4)]
    manifest = _dataset(tmp_path, masks)
    expected = int((np.asarray(masks[0]) > 127).sum())
    assert [e.label_values for e in manifest.entries] == [
        {"0": np.asarray(masks[0]).size - expected, "255": expected}
    ] * 4
    assert all("cut at 127" in " ".join(e.notes) for e in manifest.entries)
    for case in read_cases(tmp_path / "out", SplitSpec(), 1):
        assert set(np.unique(case.read()[1].values)) == {0, 255}
        assert int((case.read_label().values > 0).sum()) == expected


@pytest.mark.wild("detectron2#788, D-FINE#308", "a mask drawn on the pixels as they are stored")
def test_a_mask_drawn_on_stored_pixels_is_set_aside(tmp_path: Path) -> None:
    manifest = _dataset(tmp_path, [Image.fromarray(_classes())])
    assert not manifest.quarantine
    image = tmp_path / "in" / "images" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image, exif=exif)
    (bad,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1)).quarantine
    assert "drawn on the image as it is stored, not as its Exif orientation turns it" in bad.reason


@pytest.mark.wild("EGE-UNet#13", "a soft edge of two levels, taken for two classes")
def test_values_near_black_and_white_are_soft_edges_unless_in_areas(tmp_path: Path) -> None:
    from scipy import ndimage  # noqa: PLC0415

    inside = _disc() > 0
    edged = inside * np.uint8(255)
    edged[inside & ~ndimage.binary_erosion(inside)] = 254
    edged[~inside & ndimage.binary_dilation(inside)] = 1
    Image.fromarray(edged).save(tmp_path / "edged.png")
    read = read_mask(tmp_path / "edged.png")
    assert np.array_equal(read.values[..., 0].T, inside * 255)
    assert "soft edges" in " ".join(read.notes)
    for name, kept in (("low", {0: 1}), ("high", {0: 1, 255: 254})):
        areas = edged.copy()
        for value, to in kept.items():
            rows = slice(0, 8) if value == 0 else slice(36, 44)
            areas[rows, 40:50] = to
        Image.fromarray(areas).save(tmp_path / f"{name}.png")
        read = read_mask(tmp_path / f"{name}.png")
        assert np.array_equal(read.values[..., 0].T, areas), name
    ignored = np.where(edged == 254, 255, edged).astype(np.uint8)  # a thin class next to ignored pixels
    Image.fromarray(ignored).save(tmp_path / "thin.png")
    assert set(np.unique(read_mask(tmp_path / "thin.png").values)) == {0, 1, 255}


@pytest.mark.wild("EGE-UNet#13", "what was done to one of several masks of an image is not told")
def test_notes_of_all_files_of_a_mask_are_kept(tmp_path: Path) -> None:
    for number in range(3):
        field = RANDOM.integers(0, 255, (96, 106, 3), dtype=np.uint8)
        Image.fromarray(field).save(tmp_path / f"c{number}.png")
        liver = np.zeros((96, 106), np.uint8)
        liver[:10, :50] = 255
        Image.fromarray(liver).save(tmp_path / f"c{number}_liver_mask.png")
        soft = Image.fromarray(_disc()).resize((53, 48), Image.Resampling.BILINEAR)
        soft.resize((106, 96), Image.Resampling.BILINEAR).save(tmp_path / f"c{number}_tumor_mask.png")
    manifest = register(RegisterOptions(tmp_path, "demo", tmp_path / "out", workers=1))
    assert set(manifest.labels.values()) == {"background", "liver", "tumor"}
    for entry in manifest.entries:
        assert any("soft edges" in note and "(of tumor)" in note for note in entry.notes)


@pytest.mark.wild("standard: NIfTI-1 dim[4]", "a mask of two channels, of which one would be lost")
def test_a_mask_of_two_channels_is_refused_with_advice(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 9, (8, 8, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii")
    mask = np.zeros((8, 8, 4, 2), np.uint8)
    mask[2:4, 2:4, 1:3] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "a_seg.nii")
    with pytest.raises(DataError, match=r"its label file .*/a_seg\.nii has 2 channels.*: save it with one channel"):
        read_case([tmp_path / "a.nii"], tmp_path / "a_seg.nii")
