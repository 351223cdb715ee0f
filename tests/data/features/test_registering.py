"""Features become a dataset: what is unsaid is asked for, and what is wrong is set aside."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import feature_files as made
import slide_files
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.target_columns import parse_targets
from oncofed.errors import DataError

STATED = FeatureOptions(encoder="uni", tile=256, mpp=0.5)


def read(folder: Path, stated: FeatureOptions = STATED, **more: object) -> Manifest:
    out = folder.parent / "dataset"
    options = RegisterOptions(folder, "slides", out, workers=1, features=stated)
    return register(replace(options, **more))  # type: ignore[arg-type]


def reasons(manifest: Manifest) -> dict[str, str]:
    return {bad.source or bad.name: bad.reason for bad in manifest.quarantine}


def only(manifest: Manifest) -> Entry:
    assert len(manifest.entries) == 1, manifest.quarantine
    return manifest.entries[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three good files of TRIDENT."""
    for number in range(3):
        made.trident(tmp_path / "in" / f"s{number}.h5", made.vectors(seed=number))
    return tmp_path / "in"


def test_facts_are_those_of_the_file(folder: Path) -> None:
    manifest = read(folder)
    assert manifest.task == "slides"
    assert manifest.files == {"features": 3}
    facts = manifest.entries[0].features
    assert facts is not None
    assert (facts.encoder, facts.size, facts.tiles, facts.tile, facts.mpp) == ("uni", 8, 12, 256, 0.5)
    assert manifest.entries[0].image == facts.file == "source/s0.h5"


def test_nothing_is_guessed(folder: Path) -> None:
    with pytest.raises(DataError, match=r"3 files of 3 do not say how many microns a pixel of a tile has \(--mpp\)"):
        read(folder, FeatureOptions())
    for path in folder.iterdir():
        made.clam(path)
    with pytest.raises(DataError, match=r"3 files of 3 do not say which encoder .* --encoder NAME"):
        read(folder, FeatureOptions())
    with pytest.raises(DataError, match=r"\(--tile\) and .* \(--mpp\)"):
        read(folder, FeatureOptions(encoder="uni"))
    made.trident(folder / "s3.h5", encoder="conch_v15")
    made.trident(folder / "s4.h5")
    with pytest.raises(
        DataError, match=r"several encoders: conch-v1.5 \(1 file\), not said \(3 files\), uni \(1 file\)"
    ):
        read(folder, FeatureOptions())


def test_the_folder_that_trident_names_by_its_encoder_says_it(tmp_path: Path) -> None:
    made.trident(tmp_path / "in/features_uni_v2/a.h5", encoder=None)
    made.hdf5(tmp_path / "in/patches/a_patches.h5", {"coords": made.grid()})
    manifest = read(tmp_path / "in", FeatureOptions(mpp=0.5))
    facts = only(manifest).features
    assert facts is not None
    assert facts.encoder == "uni2-h"
    assert sum(manifest.left_out.values()) == 1


def test_stamp_states_all(tmp_path: Path) -> None:
    made.stamp(tmp_path / "in/a.h5", "2.1")
    facts = only(read(tmp_path / "in", FeatureOptions())).features
    assert facts is not None
    assert (facts.encoder, facts.tile, facts.mpp) == ("uni", 224, 1.142857)


def test_a_tool_that_states_one_of_two_is_asked_for_the_other(tmp_path: Path) -> None:
    made.stamp(tmp_path / "in/a.h5", "2.0")
    with pytest.raises(DataError, match="--tile"):
        read(tmp_path / "in", FeatureOptions())
    facts = only(read(tmp_path / "in", FeatureOptions(tile=224))).features
    assert facts is not None
    assert facts.mpp == 1.142857


def test_a_store_of_lazyslide_is_one_file(tmp_path: Path) -> None:
    made.lazyslide(tmp_path / "in/a.zarr", {"uni": made.vectors(), "virchow2": made.vectors(size=16)})
    manifest = read(tmp_path / "in", FeatureOptions(encoder="virchow2"))
    facts = only(manifest).features
    assert facts is not None
    assert (facts.file, facts.size, facts.tile, facts.mpp) == ("source/a.zarr", 16, 256, 0.5)
    assert manifest.files == {"features": 1}


def test_a_store_that_lost_a_chunk_is_set_aside(tmp_path: Path) -> None:
    made.lazyslide(tmp_path / "in/a.zarr")
    made.lazyslide(tmp_path / "in/b.zarr")
    next(path for path in (tmp_path / "in/b.zarr/tables/uni_tiles/X/c").rglob("*") if path.is_file()).unlink()
    (tmp_path / "in/c.zarr").mkdir()
    (tmp_path / "in/c.zarr/zarr.json").write_text("{")
    found = reasons(read(tmp_path / "in"))
    assert "12 of its 12 vectors hold zeros alone" in found["b.zarr"]
    assert "damaged: it cannot be read as Zarr" in found["c.zarr"]


def test_vectors_of_slides_need_no_tiles(tmp_path: Path) -> None:
    for number in range(2):
        made.trident(tmp_path / f"in/slide_features_titan/s{number}.h5", made.vectors()[number], made.grid(12), None)
    manifest = read(tmp_path / "in", FeatureOptions())
    assert [entry.features.level for entry in manifest.entries if entry.features] == ["slide", "slide"]
    assert manifest.entries[0].features is not None
    assert (manifest.entries[0].features.encoder, manifest.entries[0].features.tiles) == ("titan", 1)


def test_a_slide_beside_says_the_resolution_and_is_shown(tmp_path: Path) -> None:
    slide_files.tiled(tmp_path / "in/slides/a.tif", slide_files.stained(2048, 2048), mpp=0.25)
    made.trident(tmp_path / "in/features_uni_v1/a.h5")
    entry = only(read(tmp_path / "in", FeatureOptions()))
    assert entry.features is not None
    assert entry.features.mpp == 0.5
    assert (entry.image, entry.shape, entry.spacing) == ("source/slides/a.tif", [2048, 2048], [0.00025, 0.00025])


def test_a_wrong_resolution_is_seen_by_the_slide(tmp_path: Path) -> None:
    slide_files.tiled(tmp_path / "in/a.tif", slide_files.stained(2048, 2048), mpp=0.25)
    made.trident(tmp_path / "in/a.h5")
    found = reasons(read(tmp_path / "in", FeatureOptions(mpp=1.0)))
    assert found == {
        "a.h5": "its tiles have 0.5 microns a pixel by the slide's resolution, and 1 are stated. Correct the one that "
        "is wrong"
    }


def test_a_damaged_slide_costs_its_heat_map_alone(folder: Path) -> None:
    (folder / "s0.svs").write_bytes(b"II*\0")
    entry = read(folder).entries[0]
    assert entry.image == "source/s0.h5"
    assert any("no heat map" in note for note in entry.notes)


def _with(values: np.ndarray, where: tuple[int, int], value: float) -> np.ndarray:
    values = values.copy()
    values[where] = value
    return values


BAD = {
    "encoder": (lambda p: made.trident(p, encoder="conch_v15"), "features are of conch-v1.5, expected uni"),
    "size": (lambda p: made.trident(p, made.vectors(size=9)), "12 vectors of 9 numbers for tiles, expected 8 numbers"),
    "nan": (lambda p: made.trident(p, _with(made.vectors(), (3, 2), np.nan)), "1 of its 12 vectors hold values"),
    "inf": (lambda p: made.trident(p, _with(made.vectors(), (3, 2), np.inf)), "not finite"),
    "beyond": (lambda p: made.trident(p, _with(made.vectors(dtype="float64"), (3, 2), 1e300)), "not finite"),
    "zeros": (
        lambda p: made.trident(p, made.vectors() * (np.arange(12) < 9)[:, None]),
        "3 of its 12 vectors hold zeros",
    ),
    "alike": (lambda p: made.trident(p, np.ones((12, 8), "float32")), "all its features are 1"),
    "off": (lambda p: made.trident(p, places=made.grid() - 600), "10 of its 12 tiles lie off the slide"),
    "far": (lambda p: made.trident(p, places=made.grid() + 2**40), "coordinates reach"),
    "twice": (lambda p: made.trident(p, places=made.grid() // 1024 * 1024), "8 of its 12 tiles lie where another"),
    "tile": (lambda p: made.trident(p, tile=512), r"tiles have 512 pixels a side, expected 256 \(--tile\)"),
    "cut": (lambda p: p.write_bytes(made.trident(p).read_bytes()[:1000]), "damaged or cut off"),
    "pickle": (lambda p: made.tensor(p.with_suffix(".pt"), {"features": Path("x")}), "could run code"),
    "empty": (lambda p: made.trident(p, made.vectors(0), made.grid(0)), "holds no features"),
    "turned": (lambda p: made.trident(p, made.vectors().T, made.grid()), "features lie turned"),
    "count": (lambda p: made.trident(p, places=made.grid(11)), "12 x 8 features and 11 coordinates"),
    "outside": (
        lambda p: made.trident(p, level0_width=2048, level0_height=1024),
        "4 of its 12 tiles lie off the slide of 2048 x 1024 pixels, such as that at 0, 1024",
    ),
    "magnification": (
        lambda p: made.trident(p, magnifications=(20, 10)),
        r"tiles are of 10x by the file, about 1 microns a pixel, and 0\.5 are stated",
    ),
    "level0": (
        lambda p: made.trident(p, patch_size_level0=256),
        r"would have 512 pixels on a slide of 40x .*and it says 256 \(patch_size_level0\)",
    ),
    "slide": (lambda p: made.trident(p, made.vectors(1)[0], made.grid()), "1 vector of 8 numbers for slides"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_set_aside_and_the_others_go_on(folder: Path, kind: str) -> None:
    write, reason = BAD[kind]
    write(folder / "bad.h5")
    manifest = read(folder)
    assert len(manifest.entries) == 3
    (found,) = manifest.quarantine
    assert found.name == "bad"
    assert re.search(reason, found.reason), found.reason


def test_coordinates_off_the_slide_are_seen_by_its_image(folder: Path) -> None:
    slide_files.tiled(folder / "s1.tif", slide_files.stained(1024, 2048), mpp=0.25)
    found = reasons(read(folder))
    assert list(found) == ["s1.h5"]
    assert "4 of its 12 tiles lie off the slide of 2048 x 1024 pixels, such as that at 0, 1024" in found["s1.h5"]


def test_another_resolution_than_most_is_set_aside(tmp_path: Path) -> None:
    for number in range(3):
        made.stamp(tmp_path / f"in/s{number}.h5")
    made.stamp(tmp_path / "in/other.h5", side=512)
    found = reasons(read(tmp_path / "in", FeatureOptions()))
    assert found == {"other.h5": "its tiles have 2.29 microns a pixel, expected 1.14 (most files)"}


def test_magnifications_of_the_field_fit_their_resolution(tmp_path: Path) -> None:
    for number, magnifications in enumerate([(40, 20), (20, 20), (80, 20)]):
        made.trident(
            tmp_path / f"in/s{number}.h5", magnifications=magnifications, level0_width=2048, level0_height=9999
        )
    stated = replace(STATED, mpp=0.46)  # a scanner's 20x
    assert len(read(tmp_path / "in", stated).entries) == 3


def test_halves_and_doubles_are_taken(folder: Path) -> None:
    made.trident(folder / "half.h5", made.vectors(dtype="float16"))
    made.trident(folder / "double.h5", made.vectors(dtype="float64"))
    assert len(read(folder).entries) == 5


def test_clams_tensors_beside_their_hdf5_are_left_out(tmp_path: Path) -> None:
    made.clam(tmp_path / "in/h5_files/a.h5")
    made.tensor(tmp_path / "in/pt_files/a.pt")
    made.tensor(tmp_path / "in/pt_files/b.pt")
    manifest = read(tmp_path / "in")
    assert sorted(entry.source or "" for entry in manifest.entries) == ["h5_files/a.h5", "pt_files/b.pt"]
    assert list(manifest.left_out) == ["features without coordinates, of a slide that has them with coordinates"]


def test_a_file_that_is_set_aside_is_one_finding_of_its_slide(folder: Path) -> None:
    made.trident(folder / "wrong.h5", encoder="conch_v15")
    (folder / "cut.h5").write_bytes(made.trident(folder / "cut.h5").read_bytes()[:1000])
    made.clam(folder / "h5_files/size.h5", made.vectors(size=9))
    made.tensor(folder / "pt_files/size.pt", torch.zeros(12, 9))
    slides = ["s0", "s1", "s2", "wrong", "cut", "size", "lost"]
    (folder / "t.csv").write_text("image,label\n" + "".join(f"{slide}.h5,{slide > 's'}\n" for slide in slides))
    manifest = read(folder, table=folder / "t.csv")
    assert sorted(reasons(manifest)) == ["cut.h5", "h5_files/size.h5", "lost.h5", "wrong.h5"]
    assert len(manifest.entries) == 3
    assert "line 8: its slide has no features in the folder" in reasons(manifest)["lost.h5"]


def test_slides_are_named_by_their_files_and_not_by_tools_folders(tmp_path: Path) -> None:
    for site in ("one", "two"):
        made.trident(tmp_path / f"in/{site}/20x_256px_0px_overlap/features_uni_v1/{site}.A.h5")
        made.trident(tmp_path / f"in/{site}/20x_256px_0px_overlap/features_uni_v1/same.h5")
    rows = [path.relative_to(tmp_path / "in") for path in sorted((tmp_path / "in").rglob("*.h5"))]
    (tmp_path / "in/t.csv").write_text("\n".join(["image", *map(str, rows)]))
    entries = read(tmp_path / "in").entries
    names = sorted(str(entry.name) for entry in entries)
    assert len({entry.patient for entry in entries}) == 4
    assert [name for name in names if "same" not in name] == ["one.A", "two.A"]
    assert len(set(names)) == 4


def test_a_slide_twice_is_set_aside_unless_a_table_names_each(folder: Path) -> None:
    made.trident(folder / "again/s0.h5", made.vectors(seed=9))
    found = reasons(read(folder))
    assert set(found) == {"s0.h5", "again/s0.h5"}
    assert "its slide has 2 files of features: s0.h5 (12 vectors) and again/s0.h5 (12 vectors)" in found["s0.h5"]
    (folder / "slides.csv").write_text("image,patient\ns0.h5,p1\nagain/s0.h5,p2\n")
    assert [entry.source for entry in read(folder).entries] == ["again/s0.h5", "s0.h5"]


def test_a_table_names_slides_as_its_tool_does(folder: Path) -> None:
    (folder / "cohort.csv").write_text(
        "case_id,slide_id,label,age\np1,s0.svs,tumour,61\np1,s1,tumour,61\np2,/data/S2.ndpi,normal,48\np3,s9,normal,50\n"
    )
    made.trident(folder / "unlisted.h5")
    manifest = read(folder)
    assert manifest.labels == {"0": "normal", "1": "tumour"}
    assert [entry.label for entry in manifest.entries] == [1, 1, 0]
    first, second, third = (entry.patient for entry in manifest.entries)
    assert first == second != third
    assert manifest.entries[0].tags == {"age": "61"}
    assert reasons(manifest) == {
        "s9": "line 5: its slide has no features in the folder. Extract them, or correct the table"
    }
    assert list(manifest.left_out.values()) == [1]
    assert "features that the table does not name" in next(iter(manifest.left_out))


def test_a_table_of_slides_and_one_of_patients(folder: Path) -> None:
    slides, patients = folder.parent / "slides.csv", folder.parent / "patients.csv"
    slides.write_text("FILENAME,PATIENT\ns0.h5,p1\ns1.h5,p1\ns2.h5,p2\n")
    patients.write_text("patient,days,dead\np1,100,1\np2,250,0\np9,3,1\n")
    targets = parse_targets(["survival=survival:days,dead"])
    manifest = read(folder, table=patients, slides=slides, targets=targets)
    assert len({entry.patient for entry in manifest.entries}) == 2
    assert all("survival" in entry.targets for entry in manifest.entries)
    assert any("match no image" in remark for remark in manifest.remarks)


def test_slides_whose_patients_nothing_names_are_told(folder: Path) -> None:
    made.trident(folder / "TCGA-AA-0001-01Z-00-DX1.h5", made.vectors(seed=9))
    remarks = [remark for remark in read(folder).remarks if "patient nothing names, 3 of 4: s0, s1, s2" in remark]
    assert len(remarks) == 1
    table = folder.parent / "slides.csv"
    table.write_text("image,patient\ns0.h5,p1\ns1.h5,p1\ns2.h5,p2\nTCGA-AA-0001-01Z-00-DX1.h5,p3\n")
    assert not [remark for remark in read(folder, slides=table).remarks if "nothing names" in remark]


def test_targets_of_the_folders_own_table(folder: Path) -> None:
    (folder / "slides.csv").write_text("slide_id,case_id,days,dead\ns0,p1,100,1\ns1,p2,250,0\ns2,p3,40,1\n")
    manifest = read(folder, targets=parse_targets(["survival=survival:days,dead"]))
    assert [entry.targets["survival"] for entry in manifest.entries if "survival" in entry.targets]
    assert len({entry.patient for entry in manifest.entries}) == 3


def test_only_what_changed_is_read_again(folder: Path) -> None:
    before = read(folder)
    shutil.copy(folder / "s0.h5", folder / "s3.h5")
    after = read(folder)
    assert [entry.name for entry in after.entries] == ["s0", "s1", "s2", "s3"]
    assert after.entries[:3] == before.entries


def test_no_features_at_all_say_what_was_expected(tmp_path: Path) -> None:
    slide_files.tiled(tmp_path / "in/a.tif", slide_files.stained())
    with pytest.raises(DataError, match=r"no file of features can be read. Expected \.h5"):
        read(tmp_path / "in")
