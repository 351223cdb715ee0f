"""Features of a slide's tiles from a frozen encoder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.slides import Pixels
from oncofed.data.tiles import SlideTiles, stream_tiles
from oncofed.devices import free_memory, inference_type, is_out_of_memory
from oncofed.errors import TrainingError
from oncofed.models.networks import ModelSpec, NetworkRequest, build_network
from oncofed.models.weights import load_weights
from oncofed.settings import StrictModel

_LOG = logging.getLogger(__name__)

# Tiles of a batch, and number of batches in flight: one is copied while the network works on the other.
_AT_ONCE, _AT_ONCE_GPU = 64, 256
_IN_FLIGHT_GPU = 2
_HISTOGRAM_BINS = 8
# Of ImageNet, on which encoders are trained.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderSpec(StrictModel):
    """Settings of the encoder of tiles.

    It is not trained: each slide's features are computed once and kept.
    """

    network: Literal["colour", "resnet18", "resnet50"] = Field(
        "colour", description="colour: histograms and contrasts, without weights; others: MONAI's ResNet with weights"
    )
    weights: str | None = Field(
        None, description="safetensors that every site has under this path, such as those of a tile_classification job"
    )


def feature_count(spec: EncoderSpec) -> int:
    """Return an encoder's number of features per tile."""
    sizes = {"resnet18": 512, "resnet50": 2048}
    return sizes.get(spec.network) or _colour_features(torch.zeros(1, 3, 16, 16)).shape[1]


class Encoder:
    """Computes features of tiles.

    Args:
        spec: which one.
        device: where it runs.

    Attributes:
        digest: of everything that determines the features.
        size: number of features per tile.
        device: where it runs.
        at_once: tiles of a batch; halved whenever a GPU runs out of memory.

    Raises:
        TrainingError: its weights are missing or of another network.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.device = device
        self._network: nn.Module | None = None
        self._channels_last = False
        self._mean, self._deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._in_flight = _IN_FLIGHT_GPU if cuda else 1
        self.at_once = _AT_ONCE_GPU if cuda else _AT_ONCE
        self.digest: str = spec.network
        self.size = feature_count(spec)
        if spec.network == "colour":
            return
        if spec.weights is None:
            raise TrainingError(
                f"task.encoder.weights is missing: {spec.network} needs a file of weights, at the same path everywhere"
            )
        path = Path(spec.weights).expanduser()
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"the encoder's weights cannot be read: {type(error).__name__}: {path.name}") from None
        norm: Literal["batch", "group"] = "batch" if any("running_mean" in name for name in weights) else "group"
        model = ModelSpec(network=spec.network, norm=norm, arguments={"feed_forward": False})
        network = build_network(NetworkRequest(model, 3, 2, 2, (256, 256)), 0)
        try:
            load_weights(network, {name: value for name, value in weights.items() if not name.startswith("fc.")})
        except (TrainingError, RuntimeError):
            raise TrainingError(f"the encoder's weights {path.name} are not those of MONAI's {spec.network}") from None
        self._network = network.eval().to(device)
        # Group norm would copy each input to contiguous memory.
        self._channels_last = cuda and norm == "batch"
        if self._channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.digest = f"{spec.network} {hashlib.sha256(path.read_bytes()).hexdigest()}"

    def __call__(self, tiles: Sequence[Pixels]) -> Tensor:
        """Return (tile, feature) bfloat16 of (size, size, 3) uint8 tiles."""
        return torch.cat(list(self.stream([tiles])))

    def stream(self, batches: Iterable[Sequence[Pixels]]) -> Iterator[Tensor]:
        """Yield the features of batches of tiles, in order.

        Those of a batch come in one part or, above ``at_once`` tiles, in several.

        On a GPU the next batch is requested and copied while the network works on the current one.

        Args:
            batches: of tiles (size, size, 3) uint8, all of one size.

        Yields:
            (tile, feature) bfloat16 on the CPU.

        Raises:
            TrainingError: the GPU has no memory for one tile.
        """
        flying: deque[Callable[[], Tensor]] = deque()
        for batch in batches:
            rest = batch
            while len(rest):
                tiles = rest[: self.at_once]
                features = self._tried(tiles)
                if features is None:
                    while flying:
                        yield flying.popleft()()
                    self._halve(len(tiles))
                    continue
                rest = rest[len(tiles) :]
                flying.append(features)
                if len(flying) == self._in_flight:
                    yield flying.popleft()()
        while flying:
            yield flying.popleft()()

    def _tried(self, tiles: Sequence[Pixels]) -> Callable[[], Tensor] | None:
        """Return a future of a batch's features.

        None if memory is too short for it.
        """
        try:
            return self._begin(tiles)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The error's traceback holds the network's memory until this returns.
            return None

    def _halve(self, tiles: int) -> None:
        if tiles == 1:
            raise TrainingError(
                "one tile alone does not fit into the GPU's memory beside the encoder. Free the GPU of other programs, "
                "or take a smaller task.encoder.network"
            )
        self.at_once = math.ceil(tiles / 2)
        free_memory()
        _LOG.warning("out of memory: %d tiles at once from now on", self.at_once)

    def _begin(self, tiles: Sequence[Pixels]) -> Callable[[], Tensor]:
        """Start a batch, and return a future of its features."""
        if self._copies is None:
            features = self._features(torch.from_numpy(np.stack(tiles)).to(self.device)).cpu()
            return lambda: features
        # PyTorch does not reuse pinned memory while a copy reads from it.
        pinned = torch.empty((len(tiles), *tiles[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(tiles, out=pinned.numpy())
        network = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            batch = pinned.to(self.device, non_blocking=True)
        network.wait_stream(self._copies)
        # The same for GPU memory that the network still reads.
        batch.record_stream(network)
        found = self._features(batch)
        back = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        back.copy_(found, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(network)

        def wait() -> Tensor:
            done.synchronize()
            return back.clone()

        return wait

    @torch.no_grad()
    def _features(self, tiles: Tensor) -> Tensor:
        """Return (tile, feature) bfloat16 of (tile, y, x, 3) uint8."""
        batch = tiles.permute(0, 3, 1, 2).float() / 255
        if self._network is None:
            return _colour_features(batch).to(torch.bfloat16)
        if self.device.type == "cuda" and not self._channels_last:
            batch = batch.contiguous()
        with torch.autocast(self.device.type, inference_type(self.device), enabled=self.device.type == "cuda"):
            features: Tensor = self._network((batch - self._mean) / self._deviation)
        return features.to(torch.bfloat16)


def extract(
    slides: Sequence[SlideTiles],
    encoder: Encoder,
    progress: Callable[[int], None] | None = None,
    change: Callable[[int, Sequence[Pixels]], Sequence[Pixels]] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield slides' features (tile, feature) bfloat16 when complete.

    Each comes with its slide's number. Batches may span slides, and tiles are read ahead.

    Args:
        slides: to read.
        encoder: makes the features.
        progress: called with the number of tiles done.
        change: what the encoder sees of a slide's tiles, by the slide's number; None: the tiles themselves.

    Raises:
        DataError: a tile cannot be read.
        TrainingError: the GPU has no memory for one tile.
    """
    number = done = 0
    parts: list[Tensor] = []
    with contextlib.closing(stream_tiles(slides)) as runs:
        seen = (change(of, tiles) if change else tiles for of, _, tiles in runs)
        for features in encoder.stream(_batches(seen, encoder)):
            done += len(features)
            if progress:
                progress(done)
            rest = features
            while len(rest):
                missing = len(slides[number]) - sum(map(len, parts))
                parts.append(rest[:missing])
                rest = rest[missing:]
                if sum(map(len, parts)) == len(slides[number]):
                    yield number, torch.cat(parts)
                    parts = []
                    number += 1


def _batches(runs: Iterable[Sequence[Pixels]], encoder: Encoder) -> Iterator[list[Pixels]]:
    """Yield tiles in batches of the encoder's current size."""
    batch: list[Pixels] = []
    for run in runs:
        for tile in run:
            batch.append(tile)
            if len(batch) >= encoder.at_once:
                yield batch
                batch = []
    if batch:
        yield batch


def _colour_features(tiles: Tensor) -> Tensor:
    """Return colour statistics and edge strength.

    Means, spreads and histograms of each colour, and its edge strength at three scales.

    Args:
        tiles: (tile, 3, x, y), 0 to 1.
    """
    # Half the resolution costs a quarter, and the features say the same.
    tiles = functional.avg_pool2d(tiles, 2)
    parts = [tiles.mean((2, 3)), tiles.std((2, 3))]
    bins = (tiles * _HISTOGRAM_BINS).to(torch.uint8).clamp_max(_HISTOGRAM_BINS - 1)
    parts += [(bins == number).float().mean((2, 3)) for number in range(_HISTOGRAM_BINS)]
    for _ in range(3):
        across, down = tiles.diff(dim=2).abs().mean((2, 3)), tiles.diff(dim=3).abs().mean((2, 3))
        parts.append((across + down) * 4)
        tiles = functional.avg_pool2d(tiles, 2)
    return torch.cat(parts, dim=1)
