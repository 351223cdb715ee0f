"""Features of each tool are read with what their file says, and nothing is guessed."""

from __future__ import annotations

import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

import feature_files as made
from oncofed.data.features import FeatureBag, open_features, read_features, write_features
from oncofed.data.features.names import same_encoder, standard_name
from oncofed.data.features.outlines import corners
from oncofed.errors import DataError


def test_tridents_tiles_are_stated_and_its_resolution_is_not(tmp_path: Path) -> None:
    bag = read_features(made.trident(tmp_path / "a.h5"))
    assert (bag.features == made.vectors()).all()
    assert bag.places is not None
    assert bag.places.dtype == np.int32
    assert (bag.places == made.grid()).all()
    assert (bag.tile, bag.step, bag.mpp, bag.encoder, bag.level) == (256, 512, None, "uni_v1", "tile")


def test_tridents_resolution_follows_from_the_slides(tmp_path: Path) -> None:
    assert read_features(made.trident(tmp_path / "a.h5"), finest=0.2627).mpp == pytest.approx(0.5254)


def test_one_vector_of_a_slide_has_no_places_though_its_tiles_are_kept(tmp_path: Path) -> None:
    path = made.trident(tmp_path / "a.h5", made.vectors()[0], made.grid(12), "titan")
    bag = read_features(path)
    assert (bag.level, bag.features.shape, bag.places) == ("slide", (1, 8), None)


@pytest.mark.parametrize("write", [made.clam, made.hest])
def test_tools_that_state_nothing_are_read_without_it(tmp_path: Path, write: object) -> None:
    bag = read_features(write(tmp_path / "a.h5"))  # type: ignore[operator]
    assert (bag.features == made.vectors()).all()
    assert (bag.places == made.grid()).all()
    assert (bag.tile, bag.step, bag.mpp, bag.encoder) == (None, None, None, None)


def test_a_batch_of_one_slide_is_its_tiles(tmp_path: Path) -> None:
    path = made.hdf5(tmp_path / "a.h5", {"features": made.vectors()[None], "coords": made.grid()[None]})
    assert (read_features(path).features == made.vectors()).all()


def test_stamps_microns_become_pixels_where_the_slides_resolution_is_known(tmp_path: Path) -> None:
    path = made.stamp(tmp_path / "a.h5", "2.1")
    bag = read_features(path)
    assert (bag.features.dtype, bag.places, bag.tile) == (np.float16, None, 224)
    assert bag.mpp == pytest.approx(256 / 224)
    assert bag.encoder == "mahmood-uni"
    bag = read_features(path, finest=0.25)
    assert (bag.places == made.grid(step=1024)).all()
    assert bag.step == 1024


def test_stamps_older_versions_leave_open_what_they_do_not_say(tmp_path: Path) -> None:
    with open_features(made.stamp(tmp_path / "a.h5", "2.0")) as found:
        assert (found.side, found.tile, found.mpp) == (256, None, None)
        assert found.completed(tile=224).mpp == pytest.approx(256 / 224)
        assert found.completed(mpp=1.0).tile == 256
    with open_features(made.stamp(tmp_path / "b.h5", "1")) as found:
        assert (found.encoder, found.tile, found.mpp) == ("xiyuewang-ctranspath-7c998680", None, None)
        known = found.completed(224, 256 / 224, 0.25)
        assert (known.pixels() == np.rint(made.grid(step=1024))).all()


@pytest.mark.parametrize("kind", ["slide", "patient"])
def test_stamps_vectors_of_slides_and_patients_are_one(tmp_path: Path, kind: str) -> None:
    bag = read_features(made.stamp(tmp_path / "a.h5", kind))
    assert (bag.level, bag.encoder, len(bag.features)) == ("slide", "titan", 1)


def test_lazyslides_table_of_an_encoder_is_chosen_by_any_of_its_names(tmp_path: Path) -> None:
    path = made.lazyslide(tmp_path / "a.zarr", {"uni": made.vectors(), "gigapath": made.vectors(seed=1)})
    bag = read_features(path, "prov-gigapath")
    assert (bag.features == made.vectors(seed=1)).all()
    assert (bag.encoder, bag.tile, bag.step, bag.mpp) == ("gigapath", 256, 512, 0.5)
    with pytest.raises(DataError, match=r"features of gigapath, uni, expected one: say which with --encoder"):
        read_features(path)
    with pytest.raises(DataError, match="expected those of virchow2"):
        read_features(path, "Virchow2")


def test_a_slide_encoders_vector_in_lazyslides_store_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = made.lazyslide(tmp_path / "a.zarr", {"titan": made.vectors()})
    uns = zarr.open_group(path / "tables/titan_tiles", mode="a").create_group("uns/agg_ops")
    vectors = {"agg_slide": ("prism", 1), "agg_mean": ("mean", 1), "agg_tissue_id": ("chief", 3)}
    for key, (encoder, rows) in vectors.items():
        group = uns.create_group(key)
        group.create_array("features", data=made.vectors(seed=5)[:rows])
        group.create_array("encoder", data=np.array(encoder))
        if rows > 1:
            group.create_array("keys", data=np.array(["tissue_id"]))
    bag = read_features(path, "PRISM")
    assert (bag.level, bag.encoder, bag.places) == ("slide", "prism", None)
    assert (bag.features == made.vectors(seed=5)[:1]).all()
    assert (read_features(path).features == made.vectors()).all(), "without a name those of tiles"
    for other in ("mean", "chief"):
        with pytest.raises(DataError, match=f"features of titan, prism, expected those of {other}"):
            read_features(path, other)


def test_lazyslides_exported_table_has_its_places(tmp_path: Path) -> None:
    bag = read_features(made.anndata(tmp_path / "a.h5ad"))
    assert (bag.places == made.grid()).all()
    assert (bag.tile, bag.step, bag.mpp) == (256, 512, 0.5)


def test_lazyslides_places_are_read_from_its_outlines(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = made.lazyslide(tmp_path / "a.zarr")
    (path / "shapes/tiles").mkdir(parents=True)
    outlines = [made.outline(x, y, 512) for x, y in made.grid()]
    x, y = made.grid().T
    for columns in ({"tile_id": range(12), "geometry": outlines}, {"x": x, "y": y, "geometry": outlines}):
        parquet.write_table(pyarrow.table(columns), path / "shapes/tiles/shapes.parquet")
        assert (read_features(path).places == made.grid()).all()


def test_lazyslides_rows_and_outlines_are_joined_by_the_tiles_numbers(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = made.lazyslide(tmp_path / "a.zarr")
    (path / "shapes/tiles").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(12)
    x, y = made.grid().T
    turned = pyarrow.table({"tile_id": order, "x": x[order], "y": y[order]})
    parquet.write_table(turned, path / "shapes/tiles/shapes.parquet")
    assert (read_features(path).places == made.grid()).all()
    by_index = pyarrow.table({"x": x[order], "y": y[order], "__index_level_0__": order})
    stated = {"pandas": '{"index_columns": ["__index_level_0__"]}'}
    parquet.write_table(by_index.replace_schema_metadata(stated), path / "shapes/tiles/shapes.parquet")
    assert (read_features(path).places == made.grid()).all()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, file.relative_to(path))
    assert (read_features(tmp_path / "b.zip").places == made.grid()).all()
    parquet.write_table(turned.slice(1), path / "shapes/tiles/shapes.parquet")
    with pytest.raises(DataError, match="1 of its 12 rows of features are of tiles without an outline"):
        read_features(path)
    shutil.rmtree(path / "tables/uni_tiles/obs")
    with open_features(path) as found:
        assert found.places is None
        assert "does not say of which tile a row is" in found.notes[-1]


def test_outlines_of_tiles_give_their_corners() -> None:
    outlines = [made.outline(x, y, 512) for x, y in made.grid()]
    assert (corners(outlines) == made.grid()).all()
    with pytest.raises(DataError, match="no rectangles"):
        corners([outlines[0][:-16]])


def test_tensors_are_read_in_any_precision(tmp_path: Path) -> None:
    values = torch.from_numpy(made.vectors())
    for dtype, expected in ((torch.float16, np.float16), (torch.bfloat16, np.float32), (torch.float64, np.float32)):
        bag = read_features(made.tensor(tmp_path / "a.pt", values.to(dtype)))
        assert bag.features.dtype == expected
        assert np.allclose(bag.features, values, atol=0.02)
    made.tensor(tmp_path / "b.pt", {"features": values, "coords": torch.from_numpy(made.grid())})
    assert (read_features(tmp_path / "b.pt").places == made.grid()).all()
    torch.save(values, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert (read_features(tmp_path / "c.pt").features == made.vectors()).all()


def test_what_is_written_is_read_again_and_by_tridents_readers(tmp_path: Path) -> None:
    places = made.grid().astype(np.int32)
    bag = FeatureBag(made.vectors(dtype="float16"), places, 512.0, 256, 0.5, "uni", "ab" * 32)
    write_features(tmp_path / "a.h5", bag)
    again = read_features(tmp_path / "a.h5")
    assert (again.features == bag.features).all()
    assert (again.places == places).all()
    assert (again.step, again.tile, again.mpp, again.encoder, again.digest) == (512, 256, 0.5, "uni", "ab" * 32)
    with h5py.File(tmp_path / "a.h5") as file:  # what TRIDENT's encoders of slides ask for
        assert file["features"].shape == (12, 8)
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert (file["coords"].attrs["level0_magnification"], file["coords"].attrs["target_magnification"]) == (40, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_a_slides_vector_is_written_as_one(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", FeatureBag(made.vectors(1), encoder="titan", level="slide"))
    bag = read_features(tmp_path / "a.h5")
    assert (bag.level, bag.encoder, bag.features.shape) == ("slide", "titan", (1, 8))


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:900])
    return path


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("cut.h5", lambda path: _cut(made.trident(path)), "damaged or cut off"),
        ("cut.pt", lambda path: _cut(made.tensor(path)), "damaged or cut off"),
        ("none.h5", lambda path: path.write_bytes(b""), "empty"),
        ("text.h5", lambda path: path.write_text("slide,patient"), "first bytes"),
        ("objects.pt", lambda path: made.tensor(path, {"features": Path("x")}), "could run code"),
        ("plain.pt", lambda path: path.write_bytes(pickle.dumps(Path("x"))), "could run code"),
        ("list.pt", lambda path: made.tensor(path, [torch.zeros(2)]), "neither a tensor nor named"),
        ("names.pt", lambda path: made.tensor(path, {"x": torch.zeros(2, 2)}), "holds x, expected one tensor"),
        ("tiles.h5", lambda path: made.hdf5(path, {"coords": made.grid()}), "coordinates of tiles alone"),
        ("all.h5", made.stamp_together, "a vector of each of 12 slides"),
        ("other.h5", lambda path: made.hdf5(path, {"imgs": made.grid()}), "it holds imgs"),
        ("whole.h5", lambda path: made.clam(path, made.vectors().astype(int)), "type int64"),
        ("four.h5", lambda path: made.clam(path, made.vectors().reshape(2, 6, 8)), "shape 2 x 6 x 8"),
        ("empty.h5", lambda path: made.clam(path, np.zeros((0, 8), "float32"), made.grid(0)), "no features"),
        ("count.h5", lambda path: made.clam(path, None, made.grid(11)), "12 x 8 features and 11 coordinates"),
        ("turned.h5", lambda path: made.clam(path, made.vectors().T, made.grid()), "features lie turned"),
        ("depth.h5", lambda path: made.clam(path, None, np.zeros((12, 3))), "shape 12 x 3"),
        ("many.h5", lambda path: made.hdf5(path, {"feats": made.vectors()}, {"": {"feat_type": "slide"}}), "holds 12"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, name: str, write: object, reason: str) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(DataError, match=reason) as caught:
        read_features(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


def _of_a_link(file: h5py.File, other: Path) -> None:
    file["features"] = h5py.ExternalLink(str(other), "/features")


def _of_a_soft_link(file: h5py.File, other: Path) -> None:
    del other
    file["kept/there"] = made.vectors()
    file["features"] = h5py.SoftLink("/kept/there")


def _of_any_bytes(file: h5py.File, other: Path) -> None:
    file.create_dataset("features", (8, 4), "f4", external=[(str(other), 0, 128)])


def _of_a_view(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((12, 8), "f4")
    layout[:] = h5py.VirtualSource(str(other), "features", (12, 8))
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize("write", [_of_a_link, _of_a_soft_link, _of_any_bytes, _of_a_view])
def test_no_other_file_is_read_through_a_file_of_features(
    tmp_path: Path, write: Callable[[h5py.File, Path], None]
) -> None:
    other = made.clam(tmp_path / "other.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, other)
    with pytest.raises(DataError, match="refers to numbers outside itself"):
        read_features(tmp_path / "a.h5")


def test_a_folder_without_zarr_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataError, match="expected a Zarr store"):
        read_features(tmp_path / "a.zarr")


def test_a_large_bag_is_passed_through_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (100_000, 1536), "float16", fillvalue=1)
    tracemalloc.start()
    with open_features(path) as found:
        assert sum(len(part) for part in found.rows.parts()) == 100_000
    assert tracemalloc.get_traced_memory()[1] < 64 << 20  # of 307 MB
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("features", "coords", "reason"),
    [
        ((32, 8), (20_000_000, 2), "32 x 8 features and 20000000 coordinates"),
        ((32, 8), (20_000_000, 32), "shape 20000000 x 32"),
        ((1_000_000_000, 8), (1_000_000_000, 2), "it states 1,000,000,000 x 8 features"),
        ((32, 1_000_000), (32, 2), "it states 32 x 1,000,000 features"),
    ],
)
def test_sizes_that_a_small_file_states_are_refused_unread(
    tmp_path: Path, features: tuple[int, int], coords: tuple[int, int], reason: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", features, "f4", chunks=(32, 8), fillvalue=1)
        file.create_dataset("coords", coords, "i4", chunks=(32, 2), fillvalue=1)
    tracemalloc.start()
    with pytest.raises(DataError, match=reason):
        read_features(tmp_path / "a.h5")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def _without_a_bit_of_a_chunk(path: Path) -> None:
    values = np.ones((64, 8), "f4")
    with h5py.File(path, "w") as file:
        place = file.create_dataset("features", data=values, compression="gzip", fletcher32=True).id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 4] ^= 0xFF
    path.write_bytes(content)


def _of_texts(path: Path) -> None:
    made.hdf5(path, {"features": made.vectors(), "coords": np.array([[b"a", b"b"]] * 12)})


def _of_an_array_for_a_group(path: Path) -> None:
    made.hdf5(path, {"tables": made.vectors()})


def _of_a_group_for_an_array(path: Path) -> None:
    made.hdf5(path, {"features/there": made.vectors()})


@pytest.mark.parametrize(
    "write", [_without_a_bit_of_a_chunk, _of_texts, _of_an_array_for_a_group, _of_a_group_for_an_array]
)
def test_any_malformed_file_is_a_reason(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"cannot be read|of the type"):
        read_features(tmp_path / "a.h5")


def test_a_tensor_that_numpy_has_no_type_for_is_a_reason(tmp_path: Path) -> None:
    made.tensor(tmp_path / "a.pt", torch.zeros(4, 4).to(torch.float8_e5m2))
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [["x"], "x", None, {"tiles": ["x"]}, {"tiles": 1}])
def test_statements_of_another_kind_are_none(tmp_path: Path, value: object) -> None:
    path = made.lazyslide(tmp_path / "a.zarr")
    zarr.open_group(path, mode="r+").attrs.update({"tile_spec": value, "slide_properties": value})
    bag = read_features(path)
    assert (bag.tile, bag.step, bag.mpp) == (None, None, None)


def test_a_damaged_table_of_outlines_is_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = made.lazyslide(tmp_path / "a.zarr")
    (path / "shapes/tiles").mkdir(parents=True)
    (path / "shapes/tiles/shapes.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="cannot be read"):
        read_features(path)


def test_a_table_names_no_tiles_outside_its_store(tmp_path: Path) -> None:
    path = made.lazyslide(tmp_path / "in/a.zarr")
    (tmp_path / "in/a.zarr/tables/uni_tiles").rename(tmp_path / "in/a.zarr/tables/uni_..")
    for name in ("..", "../..", "/etc", ["../tiles"]):
        zarr.open_group(path / "tables/uni_..", mode="r+").attrs["region"] = name
        with pytest.raises(DataError, match="holds features of none"):
            read_features(path)


def test_names_of_one_encoder_are_one() -> None:
    assert standard_name("UNI_v2") == standard_name("mahmood-uni2") == standard_name("uni2") == "uni2-h"
    assert same_encoder("hoptimus0", "H-Optimus-0")
    assert not same_encoder("conch_v1", "conch_v15")
