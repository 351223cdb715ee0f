"""Encoders of tiles: features independent of batches and memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oncofed.data.slides import Pixels, TileSpec
from oncofed.data.tiles import SlideTiles
from oncofed.errors import DataError, TrainingError
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.encoders import find_entry, keep_weights, load_encoder
from oncofed.models.weights import weights_of
from oncofed.tasks import encoder as encoder_module
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract, feature_count
from timm_networks import need_timm, random_weights, small, write

CPU = torch.device("cpu")


def _tiles(count: int, side: int = 32) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a ResNet18."""
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 9, 2, (64, 64)), 1)
    path = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, path)
    return path


class Small(nn.Module):
    """Accepts tiles up to its memory.

    Its feature is a tile's mean red.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.batches: list[int] = []
        self.held: list[weakref.ref[Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        activations = images * 2
        self.batches.append(len(images))
        self.held.append(weakref.ref(activations))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return activations[:, :1].mean((2, 3))


def _with(network: nn.Module, in_flight: int = 1) -> Encoder:
    encoder = Encoder(EncoderSpec(), CPU)
    encoder._network, encoder._in_flight = network, in_flight
    return encoder


def test_custom_encoders_and_their_faults(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCOFED_ENCODERS", str(tmp_path / "encoders"))
    encoder = Encoder(EncoderSpec(network="resnet18", weights=str(weights)), CPU)
    features = encoder([np.zeros((64, 64, 3), np.uint8)] * 2)
    assert features.shape == (2, 512)
    assert features.dtype == torch.bfloat16
    assert weights.name not in encoder.digest
    with pytest.raises(TrainingError, match="not the weights of MONAI's ResNet-50"):
        Encoder(EncoderSpec(network="resnet50", weights=str(weights)), CPU)
    with pytest.raises(TrainingError, match="weights cannot be read"):
        Encoder(EncoderSpec(network="resnet18", weights=str(tmp_path / "none")), CPU)
    with pytest.raises(TrainingError, match="weights of resnet18 are not at hand here"):
        Encoder(EncoderSpec(network="resnet18"), CPU)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"network": "unii"}, "no encoder unii; did you mean uni"),
        ({"network": "uni", "features": 1024}, "the catalogue says that uni makes 1024"),
        ({"network": "titan", "features": 768, "weights": "x"}, "weights are for an encoder of the catalogue"),
        ({"network": "colour", "digest": "0" * 64}, "colour has no weights"),
        ({"network": "../uni"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EncoderSpec(**settings)


def test_an_encoder_that_is_not_in_the_catalogue_brings_features_alone() -> None:
    spec = EncoderSpec(network="TITAN", features=768)
    assert (feature_count(spec), feature_count(EncoderSpec(network="virchow2"))) == (768, 2560)
    with pytest.raises(TrainingError, match=r"TITAN is not in the catalogue.*data register --features"):
        Encoder(spec, CPU)


def test_weights_at_hand_have_to_be_those_that_the_job_pins(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONCOFED_ENCODERS", str(tmp_path / "encoders"))
    entry = find_entry("resnet18")
    keep_weights(entry, load_encoder(entry, weights))
    digest = load_encoder(entry, weights).digest
    encoder = Encoder(EncoderSpec(network="resnet18", digest=digest), CPU)
    assert encoder.digest == f"resnet18 {digest}"
    named = Encoder(EncoderSpec(network="resnet18", weights=str(weights)), CPU)
    tiles = _tiles(3, 64)
    assert torch.equal(encoder(tiles), named(tiles))
    with pytest.raises(TrainingError, match=rf"not those that the job pins: found digest {digest}, expected 0000"):
        Encoder(EncoderSpec(network="resnet18", digest="0" * 64), CPU)


def test_a_transformer_encodes_tiles_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_timm()
    entry = small("virchow2")
    monkeypatch.setattr("oncofed.tasks.encoder.catalogue", lambda: {"virchow2": entry})
    path = write(random_weights(entry), tmp_path / "virchow2.safetensors")
    encoder = Encoder(EncoderSpec(network="virchow2", weights=str(path)), CPU)
    features = encoder(_tiles(3, 256))
    assert features.shape == (3, 96)
    assert bool(torch.isfinite(features).all())
    assert torch.equal(features[1:], encoder(_tiles(3, 256)[1:]))


@torch.no_grad()
def test_features_are_those_of_the_network_on_normalised_tiles(weights: Path) -> None:
    encoder = Encoder(EncoderSpec(network="resnet18", weights=str(weights)), CPU)
    tiles = _tiles(5)
    assert encoder._network is not None
    batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = encoder._network((batch - mean) / deviation).to(torch.bfloat16)
    assert torch.equal(encoder(tiles), expected)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("most", [1, 5, 16, 100])
def test_little_memory_halves_batches_without_changing_features(
    most: int, in_flight: int, caplog: pytest.LogCaptureFixture
) -> None:
    network, tiles = Small(most), _tiles(150)
    encoder = _with(network, in_flight)
    batches = [tiles[first : first + 64] for first in range(0, 150, 64)]
    features = torch.cat(list(encoder.stream(batches)))
    assert torch.equal(features, _with(Small(1000))(tiles))
    assert encoder.at_once == min(64, {1: 1, 5: 4, 16: 16, 100: 64}[most])
    assert max(network.batches) == 64
    assert ("tiles at once from now on" in caplog.text) == (most < 64)


def test_memory_of_a_failed_batch_is_freed_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Small(8)
    encoder = _with(network, in_flight=2)
    alive = []
    halve = encoder._halve

    def halved(tiles: int) -> None:
        alive.append(sum(held() is not None for held in network.held))
        halve(tiles)

    monkeypatch.setattr(encoder, "_halve", halved)
    assert len(encoder(_tiles(32))) == 32
    assert alive == [0, 0]


def test_a_tile_too_large_for_memory_is_an_error_with_the_reason() -> None:
    with pytest.raises(TrainingError, match=r"^one tile alone does not fit into the GPU's memory .*network$"):
        _with(Small(0))(_tiles(3))


class Runs:
    """A stand-in for the tile stream that records closing."""

    def __init__(self, slides: list[int], fails_at: int | None = None) -> None:
        self._slides, self._fails_at = slides, fails_at
        self.closed = False

    def __call__(self, slides: Any) -> Iterator[tuple[int, int, list[Pixels]]]:
        try:
            for number, count in enumerate(self._slides):
                tiles = [np.full((32, 32, 3), 10 * number + 1, np.uint8)] * count
                for first in range(0, count, 32):
                    if number == self._fails_at:
                        raise DataError("its tiles cannot be read")
                    yield number, first, tiles[first : first + 32]
        finally:
            self.closed = True


def _of(counts: list[int]) -> list[SlideTiles]:
    return [SlideTiles(Path(), TileSpec(32), np.zeros(n, np.int32), np.zeros(n, np.int32)) for n in counts]


@pytest.mark.parametrize("most", [3, 1000])
def test_each_slide_gets_the_features_of_its_own_tiles(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    counts = [70, 1, 64, 130, 2]
    runs = Runs(counts)
    monkeypatch.setattr(encoder_module, "stream_tiles", runs)
    network, done = Small(most), list[int]()
    found = dict(extract(_of(counts), _with(network, in_flight=2), done.append))
    assert [len(features) for features in found.values()] == counts
    assert all(len(features.unique()) == 1 for features in found.values())
    assert len({float(features[0, 0]) for features in found.values()}) == len(counts)
    assert done[-1] == sum(counts)
    assert done == sorted(done)
    assert runs.closed
    if most == 1000:
        assert network.batches == [64, 64, 64, 64, 11]


@pytest.mark.parametrize("fails_at", [None, 2])
def test_the_tile_stream_is_always_closed(monkeypatch: pytest.MonkeyPatch, fails_at: int | None) -> None:
    counts = [64, 64, 64]
    runs = Runs(counts, fails_at)
    monkeypatch.setattr(encoder_module, "stream_tiles", runs)
    encoder = _with(Small(1000 if fails_at else 0))
    with pytest.raises(DataError if fails_at else TrainingError):
        list(extract(_of(counts), encoder))
    assert runs.closed
