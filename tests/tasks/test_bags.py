"""Bags from features, from slides and from both, of a slide or of a patient."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed.data.case import Case, case_of
from oncofed.data.features import FeatureBag, open_features, write_features
from oncofed.data.features import stored as reading
from oncofed.data.features.kept import made_of
from oncofed.data.manifest import FeatureFacts, read_manifest
from oncofed.data.patients import join
from oncofed.data.prepared import PreparedCases, prepare_one
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.spec import DataSpec
from oncofed.data.tiles import read_tiles
from oncofed.errors import DataError
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.encoders import catalogue, find_entry
from oncofed.tasks import SlideClassification, SlideClassificationSpec
from oncofed.tasks.bags import Bags, slide_tiles
from oncofed.tasks.encoder import Encoder, EncoderSpec
from oncofed.tasks.feature_origin import feature_faults, origin_digest
from oncofed.tasks.inferred import UNPLACED
from slide_features import MPP, STEP, TILE, WEIGHTS, made_bag, made_slide
from slide_files import stained, tiled

pytest.importorskip("h5py")

CPU = torch.device("cpu")
CLASSES = {0: "normal", 1: "tumour"}
DATA = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(TILE, TILE))
ENCODER = EncoderSpec(network="lab-encoder", features=8)


def bags(encoder: EncoderSpec = ENCODER, **settings: object) -> Bags:
    return Bags(DATA, SlideClassificationSpec(classes=CLASSES, encoder=encoder, **settings), CPU)


def cut_slide(folder: Path, name: str = "cut", pieces: int = 1, tissue: float = TileSpec.tissue) -> Case:
    """Return a slide of half a micron a pixel with tissue on so many pieces, cut into tiles."""

    pytest.importorskip("openslide")
    slide = folder / "in" / f"{name}.tif"
    if not slide.exists():
        tiled(slide, np.concatenate([stained(512, 640)] * pieces, axis=1), 0.5)
    cut = TileSpec(TILE, MPP, tissue)
    register(RegisterOptions(folder / "in", "slides", folder / "set", "slides", tiles=cut, workers=1))
    manifest = read_manifest(folder / "set")
    return replace(case_of(folder / "set", manifest, manifest.entries[0]), patient="P1")


def test_features_that_a_slide_brings_become_its_bag_and_need_no_weights(tmp_path: Path) -> None:
    made = made_bag()
    prepared = bags().prepare(made_slide(tmp_path, made))
    torch.testing.assert_close(prepared["bags"].float(), torch.from_numpy(made.features), rtol=1e-2, atol=1e-2)
    assert prepared["bags"].dtype == torch.bfloat16
    assert made.places is not None
    assert (prepared["places"].numpy() == made.places).all()
    assert prepared["slides"].tolist() == [0] * 12


def test_the_bytes_of_brought_features_are_known_before_they_are_read(tmp_path: Path) -> None:
    case = made_slide(tmp_path, made_bag())
    prepared = bags().prepare(case) | {"label": torch.tensor(0)}
    assert bags().size(case) == sum(values.nbytes for values in prepared.values())


def test_brought_features_are_held_in_half_precision_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_AT_ONCE", 1 << 14)
    made = made_bag(tiles=20_000, size=64)
    slide = made_slide(tmp_path, made)
    tracemalloc.start()  # of arrays; those of torch are not seen
    try:
        features = bags(EncoderSpec(network="lab-encoder", features=64)).prepare(slide)["bags"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert torch.equal(features, torch.from_numpy(made.features).to(torch.bfloat16))
    assert peak < made.features.nbytes / 2


def test_a_patient_s_slides_are_one_bag_whatever_each_brings(tmp_path: Path) -> None:
    cut = cut_slide(tmp_path)
    size = Encoder(EncoderSpec(), CPU).size
    brought = made_slide(tmp_path / "h5", replace(made_bag(5, size), encoder="colour", digest=None), name="brought")
    case, alone = join([cut, brought]), bags(EncoderSpec()).prepare(cut)
    assert (case.name, [slide.name for slide in case.slides]) == ("brought_and_1_more", ["brought", "cut"])
    prepared = bags(EncoderSpec()).prepare(case)
    assert prepared["slides"].tolist() == [0] * 5 + [1] * len(alone["bags"])
    assert torch.equal(prepared["bags"][5:], alone["bags"])
    assert torch.equal(prepared["places"][5:], alone["places"])


def test_a_slide_that_was_cut_anew_gets_a_bag_of_its_new_tiles(tmp_path: Path) -> None:
    wanted, held = bags(EncoderSpec(), sampling="tissue"), []
    for tissue in (0.9, 0.05):
        case = cut_slide(tmp_path, tissue=tissue)
        prepared = prepare_one(case, wanted, keep=True)
        assert case.tiles
        tiles = read_tiles(case.image, case.tiles)
        assert prepared["places"].tolist() == np.stack([tiles.x, tiles.y], axis=1).tolist()
        assert len(prepared["tissue"]) == len(prepared["bags"])
        held.append(len(tiles))
    assert held[0] < held[1]


def test_what_was_made_by_another_preprocessing_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, cut = find_entry("colour"), cut_slide(tmp_path)
    assert cut.tiles
    tiles, spec = read_tiles(cut.image, cut.tiles), EncoderSpec()
    made = replace(made_bag(5, entry.features), encoder="colour", digest=None, recipe=entry.recipe)
    write_features(tmp_path / "brought.h5", made)
    with open_features(tmp_path / "brought.h5") as stored:
        assert stored.recipe == entry.recipe
    facts = FeatureFacts(file="brought.h5", encoder="colour", recipe=entry.recipe, size=entry.features, tiles=5)
    seen = {bags(spec).settings_of(cut)}, {made_of(Encoder(spec, CPU).key, "source", tiles)}
    assert list(feature_faults(facts, spec, DATA)) == []
    for other in ({"mean": (0.1, 0.0, 0.0)}, {"pixels": 32}, {"interpolation": "bicubic"}):
        monkeypatch.setitem(catalogue(), "colour", entry.model_copy(update=other))
        seen[0].add(bags(spec).settings_of(cut))
        seen[1].add(made_of(Encoder(spec, CPU).key, "source", tiles))
        assert [fault.partition(",")[0] for fault in feature_faults(facts, spec, DATA)] == [
            "features were made by another oncofed"
        ]
    assert [len(keys) for keys in seen] == [4, 4]


@pytest.mark.parametrize(
    ("off", "of_slide", "of_features"), [(1.01, True, True), (1.08, False, True), (1.2, False, False)]
)
def test_tiles_that_are_resampled_here_agree_more_closely_than_those_from_elsewhere(
    off: float, of_slide: bool, of_features: bool, tmp_path: Path
) -> None:
    job = DATA.model_copy(update={"spacing": (MPP / 1000 / off,) * 2})
    facts = FeatureFacts(file="a.h5", encoder="lab-encoder", size=8, tiles=5, tile=TILE, mpp=MPP)
    assert (not list(feature_faults(facts, ENCODER, job))) == of_features
    with nullcontext() if of_slide else pytest.raises(DataError, match="microns a pixel, expected"):
        slide_tiles(cut_slide(tmp_path), job)


def test_tissue_in_several_pieces_of_a_slide_is_one_bag(tmp_path: Path) -> None:
    alone, twice = (bags(EncoderSpec()).prepare(cut_slide(tmp_path / str(n), pieces=n)) for n in (1, 2))
    left = twice["places"][:, 0] < 640
    assert int(left.sum()) == len(alone["bags"])
    assert len(twice["bags"]) == pytest.approx(2 * len(alone["bags"]), rel=0.1)


def test_one_vector_of_a_slide_lies_nowhere_and_has_no_attention_picture(tmp_path: Path) -> None:
    vector = FeatureBag(np.ones((1, 8), np.float32), encoder="lab-encoder", digest=WEIGHTS, level="slide")
    case = made_slide(tmp_path, vector)
    prepared = bags().prepare(case)
    assert prepared["places"].tolist() == [[UNPLACED, UNPLACED]]
    task = SlideClassification(SlideClassificationSpec(classes=CLASSES, encoder=ENCODER), DATA)
    network = build_network(NetworkRequest(ModelSpec(network="attention_mil"), 8, 2, 2, (TILE, TILE)), 0).eval()
    found = task.infer(network, prepared, CPU)
    assert not found.is_placed
    assert np.isfinite(found.logits).all()
    assert task.picture(network, case, CPU).heat is None


def test_a_picture_of_a_patient_shows_each_slide_on_one_scale(tmp_path: Path) -> None:
    first, second = (made_slide(tmp_path, made_bag(seed=n), name=f"s{n}") for n in range(2))
    task = SlideClassification(SlideClassificationSpec(classes=CLASSES, encoder=ENCODER, bag="patient"), DATA)
    network = build_network(NetworkRequest(ModelSpec(network="attention_mil"), 8, 2, 2, (TILE, TILE)), 0).eval()
    case = join([first, second])
    found = task.infer(network, task.input("none").prepare(case), CPU)
    assert found.attention is not None
    assert found.attention.sum() == pytest.approx(1, abs=1e-3)
    heat = task.picture(network, case, CPU).heat
    assert heat is not None
    side = 4 * STEP / 2  # four tiles across, drawn at half the size as there are two slides
    assert heat.shape[0] == 2 * side + 8
    assert heat.max() == 1
    halves = [float(found.attention[found.slides == n].max() / found.attention.max()) for n in range(2)]
    assert [heat[: int(side)].max(), heat[-int(side) :].max()] == pytest.approx(halves)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"encoder": "uni"}, "features are of the encoder uni, the job's is lab-encoder"),
        ({"digest": "cd" * 32}, "features are of the weights cdcdcdcdcdcd…, the job pins abababababab…"),
        ({"digest": None}, "do not say which weights made them, the job pins abababababab…"),
        ({"tile": 128}, "features are of tiles of 128 pixels, the job's have 64"),
        ({"mpp": 0.25}, r"at 0\.25 microns a pixel, the job's have 1"),
    ],
)
def test_features_that_are_not_the_job_s_are_refused(change: dict[str, object], why: str, tmp_path: Path) -> None:
    case = made_slide(tmp_path, replace(made_bag(), **change))  # type: ignore[arg-type]
    data = DATA.model_copy(update={"spacing": (MPP / 1000, MPP / 1000)})
    settings = SlideClassificationSpec(classes=CLASSES, encoder=ENCODER.model_copy(update={"digest": WEIGHTS}))
    with pytest.raises(DataError, match=f"1 slide: .*{why}"):
        Bags(data, settings, CPU).origin([case])


def test_a_site_tells_the_one_digest_of_its_features(tmp_path: Path) -> None:
    known = made_slide(tmp_path, made_bag(), "known")
    silent = made_slide(tmp_path, replace(made_bag(), digest=None), "silent")
    other = made_slide(tmp_path, replace(made_bag(), digest="cd" * 32), "other")
    assert bags().origin([known, known]) == {"encoder": WEIGHTS}
    assert bags().origin([silent]) == {"encoder": None}
    # What one slide says is not known of the others.
    assert bags().origin([known, silent]) == {"encoder": None}
    assert origin_digest([known, silent], WEIGHTS) is None
    with pytest.raises(DataError, match=r"different weights of the encoder: 1 slide abab.*, 1 slide cdcd"):
        bags().origin([known, other])
    assert bags(EncoderSpec()).origin([]) == {}  # without weights none differ


def _drawn(sampling: str, seed: int) -> torch.Tensor:
    prepared = {
        "bags": torch.zeros(1000, 8, dtype=torch.bfloat16),
        "slides": (torch.arange(1000) >= 900).to(torch.int16),
        "tissue": torch.where(torch.arange(1000) % 2 == 0, 0.9, 0.1),
    }
    return bags(most_tiles=100, sampling=sampling).draw(prepared, torch.Generator().manual_seed(seed))["chosen"]


def test_tiles_are_drawn_as_the_job_says_and_as_its_seed_does() -> None:
    chosen = {name: torch.cat([_drawn(name, seed) for seed in range(20)]) for name in ("tiles", "slides", "tissue")}
    of_second = {name: float((tiles >= 900).float().mean()) for name, tiles in chosen.items()}
    assert of_second["tiles"] == pytest.approx(0.1, abs=0.03)
    assert of_second["slides"] == pytest.approx(0.45, abs=0.06)  # a tile is taken once, and the second has 100
    even = float((chosen["tissue"] % 2 == 0).float().mean())
    assert even == pytest.approx(0.9, abs=0.04)
    assert all(torch.equal(_drawn(name, 3), _drawn(name, 3)) for name in chosen)
    assert all((_drawn(name, 3).diff() > 0).all() for name in chosen), "in the slide's order"
    assert all(len(tiles.unique()) == 100 for tiles in (_drawn(name, 3) for name in chosen))


def test_a_case_knows_how_much_of_each_tile_is_tissue(tmp_path: Path) -> None:
    cut = cut_slide(tmp_path)
    prepared = prepare_one(cut, bags(EncoderSpec(), sampling="tissue"))
    assert len(prepared["tissue"]) == len(prepared["bags"])
    assert 0.2 < float(prepared["tissue"].min()) < float(prepared["tissue"].max()) == 1


def test_a_batch_from_held_cases_has_no_part_that_is_of_tiles_alone(tmp_path: Path) -> None:
    cases = [made_slide(tmp_path, made_bag(tiles), f"s{tiles}") for tiles in (20, 40)]
    source = bags(most_tiles=16, sampling="tissue")
    held = PreparedCases(cases, source, CPU)
    generator = torch.Generator().manual_seed(1)
    batch = source.change(source.together([source.draw(held[n], generator) for n in range(2)]), generator)
    assert batch.keys() == {"bags", "there", "label"}
    assert batch["bags"].shape == (2, 16, 8)
