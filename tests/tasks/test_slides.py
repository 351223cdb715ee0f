"""Slides from weak labels: cached features and attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed.data.cases import Cases, usable_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.prepared import CACHE_FOLDER, plan_cache, prepare_all
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.spec import DataSpec
from oncofed.data.tiles import read_tiles, stream_tiles
from oncofed.errors import DataError
from oncofed.models import ModelSpec
from oncofed.tasks import SlideClassification, SlideClassificationSpec
from oncofed.tasks.bags import Bags
from oncofed.tasks.deletion import deletion
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from oncofed.training import Plan, Trainer, TrainingSpec
from synthetic import make_slides

pytest.importorskip("tifffile")

CLASSES = {0: "normal", 1: "tumour"}
DATA = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64))
CPU = torch.device("cpu")
Truth = dict[str, tuple[int, int, int, int] | None]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A registered dataset of slides, with their regions' places."""
    folder = tmp_path_factory.mktemp("slides")
    truth = make_slides(folder / "in", 40, side=768)
    table = folder / "in" / "labels.csv"
    register(
        RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=table, tiles=TileSpec(64, 1.0, 0.25))
    )
    return folder / "set", truth


def _cases(dataset: Path) -> Cases:
    return usable_cases(dataset, DATA, Supervision("class", CLASSES), 1, "here").cases


def test_attention_finds_the_region_that_makes_the_label(slides: tuple[Path, Truth]) -> None:
    dataset, truth = slides
    cases = _cases(dataset)
    plan = Plan(
        data=DATA,
        task=SlideClassificationSpec(classes=CLASSES),
        model=ModelSpec(network="attention_mil"),
        training=TrainingSpec(steps_per_round=200, batch_size=8, learning_rate=3e-3, warmup_steps=0),
        rounds=1,
    )
    trainer = Trainer(plan, cases, "here")
    trainer.train(200)
    # All slides: the deal may leave a few of one class to be tested.
    evaluation = trainer.evaluate(tuple(cases), detailed=True)
    assert evaluation.mean is not None
    assert evaluation.mean >= 0.95
    task = trainer.task
    assert isinstance(task, SlideClassification)
    hits = []
    for case in cases:
        region = truth[str(case.image.resolve().name)]
        found = task.infer(trainer.network, task.prepared(case), CPU)
        weights, places = found.attention, found.places
        assert weights is not None
        assert weights.sum() == pytest.approx(1, abs=1e-3)
        assert len(weights) == len(places)
        if region:
            corner = places[int(weights.argmax())]
            hits.append(
                all(low - 64 < at < low + size for at, low, size in zip(corner, region[:2], region[2:], strict=True))
            )
    assert np.mean(hits) > 0.7
    faithful = deletion(task, trainer.network, tuple(cases)[:10], CPU, seed=1)
    assert faithful
    assert faithful.gain > 0
    picture = task.picture(trainer.network, cases.test[0], CPU)
    assert picture.heat is not None
    assert picture.heat.shape == picture.image.shape[:2]
    assert picture.heat.max() == 1


def test_features_are_found_once_and_taken_up_after_a_break(
    slides: tuple[Path, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = slides
    cases = _cases(dataset)
    for path in (dataset / CACHE_FOLDER).glob("*"):
        path.unlink()
    task = SlideClassification(SlideClassificationSpec(classes=CLASSES), DATA)
    bags = task.input("none")
    stream = bags.prepare_all(cases.train[:3])
    next(stream)
    stream.close()  # as a process that is killed after its first slide
    expected = dict(bags.prepare_all(cases.train[:3]))
    assert {len(prepared["bags"]) == len(prepared["places"]) for prepared in expected.values()} == {True}
    assert all(prepared["bags"].dtype == torch.bfloat16 for prepared in expected.values())
    plan = Plan(
        data=DATA, task=task._spec, model=ModelSpec(network="attention_mil"), training=TrainingSpec(batch_size=4)
    )
    Trainer(plan, cases, "here").prepare()
    monkeypatch.setattr("oncofed.tasks.encoder.stream_tiles", lambda *a: pytest.fail("a tile was read"))
    trainer = Trainer(plan, cases, "here")
    batch = next(trainer.prepare())
    assert batch["bags"].shape[:2] == batch["there"].shape
    assert batch["bags"].dtype == torch.float32
    assert not batch["bags"][~batch["there"]].any()


def test_the_stream_gives_each_tile_once_and_in_order(slides: tuple[Path, Truth]) -> None:
    dataset, _ = slides
    cases = _cases(dataset).train[:3]
    tiles = [read_tiles(case.image, case.tiles) for case in cases if case.tiles]
    seen: list[list[int]] = [[] for _ in tiles]
    for number, first, pixels in stream_tiles(tiles, threads=3, ahead=2):
        seen[number] += range(first, first + len(pixels))
        assert pixels[0].shape == (64, 64, 3)
    assert seen == [list(range(len(slide))) for slide in tiles]


def test_features_do_not_depend_on_what_else_is_in_a_batch(slides: tuple[Path, Truth]) -> None:
    dataset, _ = slides
    cases = _cases(dataset).train[:3]
    tiles = [read_tiles(case.image, case.tiles) for case in cases if case.tiles]
    encoder = Encoder(EncoderSpec(), CPU)
    together = dict(extract(tiles, encoder))
    for number, slide in enumerate(tiles):
        alone = dict(extract([slide], encoder))[0]
        torch.testing.assert_close(alone, together[number])
        assert alone.shape == (len(slide), encoder.size)


def test_a_batch_holds_what_each_bag_holds_and_nothing_more() -> None:
    bags = Bags(DATA, SlideClassificationSpec(classes=CLASSES, most_tiles=30), CPU)
    lengths = (7, 30, 50)
    prepared = [
        {"bags": torch.randn(length, 62).bfloat16(), "label": torch.tensor(number)}
        for number, length in enumerate(lengths)
    ]
    generator, again = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    drawn = bags.together([bags.draw(one, generator) for one in prepared])
    assert drawn["bags"].dtype == torch.bfloat16
    batch = bags.change(drawn, generator)
    chosen = torch.randperm(50, generator=again)[:30].sort().values
    expected = [prepared[0]["bags"], prepared[1]["bags"], prepared[2]["bags"][chosen]]
    assert torch.equal(batch["bags"], torch.nn.utils.rnn.pad_sequence([e.float() for e in expected], batch_first=True))
    assert batch["bags"].dtype == torch.float32
    assert batch["there"].sum(1).tolist() == [7, 30, 30]
    assert batch["there"][0, :7].all()
    assert batch["label"].tolist() == [0, 1, 2]
    assert torch.equal(generator.get_state(), again.get_state())


def test_a_batch_of_bags_on_a_device_is_made_there_without_reading_a_value() -> None:
    # A tensor on "meta" has no values: reading one raises.
    bags = Bags(DATA, SlideClassificationSpec(classes=CLASSES, most_tiles=30), CPU)
    prepared = [
        {"bags": torch.empty(length, 62, dtype=torch.bfloat16, device="meta"), "label": torch.empty((), device="meta")}
        for length in (7, 50)
    ]
    generator = torch.Generator().manual_seed(1)
    batch = bags.change(bags.together([bags.draw(one, generator) for one in prepared]), generator)
    assert {values.device.type for values in batch.values()} == {"meta"}
    assert batch["bags"].shape == (2, 30, 62)


def test_the_bytes_of_bags_are_known_before_a_tile_is_read(
    slides: tuple[Path, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = _cases(slides[0]).train[:3]
    bags = SlideClassification(SlideClassificationSpec(classes=CLASSES), DATA).input("none")
    prepared = dict(prepare_all(cases, bags, keep=False))
    whole = sum(values.nbytes for one in prepared.values() for values in one.values())
    monkeypatch.setattr("oncofed.tasks.encoder.stream_tiles", lambda *a: pytest.fail("a tile was read"))
    assert sum(bags.size(case) or 0 for case in cases) == whole
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10 * whole, 10 * whole))
    plan = plan_cache(cases, bags, torch.device("cuda"))
    assert (plan.bytes, plan.held) == (whole, "gpu")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (whole, whole))
    assert plan_cache(cases, bags, torch.device("cuda")).held == "memory"
    assert bags.size(replace(cases[0], tiles=None)) is None


def test_slides_that_were_cut_otherwise_are_refused(slides: tuple[Path, Truth]) -> None:
    case = _cases(slides[0]).train[0]
    for data, why in (
        (DATA.model_copy(update={"patch": (128, 128)}), "its tiles have 64 pixels a side, expected 128; .*--tile 128"),
        (DATA.model_copy(update={"spacing": (0.0005, 0.0005)}), r"have 1 microns a pixel, expected 0\.5; .*--mpp 0\.5"),
    ):
        task = SlideClassification(SlideClassificationSpec(classes=CLASSES), data)
        with pytest.raises(DataError, match=why):
            task.input("none").prepare(case)
