"""Features of a slide's tiles from a frozen encoder."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from oncofed.data.features import read_features
from oncofed.data.features.kept import find_kept
from oncofed.data.slides import Pixels
from oncofed.data.tiles import SlideTiles, stream_tiles
from oncofed.devices import free_memory, inference_type, is_out_of_memory
from oncofed.errors import SpecError, TrainingError
from oncofed.models.encoders import (
    EncoderEntry,
    Images,
    LoadedEncoder,
    build_network,
    catalogue,
    find_entry,
    load_encoder,
    require_weights,
    weights_at_hand,
)
from oncofed.settings import SettingError, StrictModel

_LOG = logging.getLogger(__name__)

# Tiles of a batch, and number of batches in flight: one is copied while the network works on the other.
_AT_ONCE, _AT_ONCE_GPU = 64, 256
_IN_FLIGHT_GPU = 2


class EncoderSpec(StrictModel):
    """Settings of the encoder of tiles.

    It is not trained: each slide's features are computed once and kept.
    """

    network: str = Field(
        "colour",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$",
        description="a name that `oncofed data encoders` lists; colour: histograms and contrasts, without weights; "
        "with features, that of any other encoder whose features the sites bring",
    )
    weights: str | None = Field(
        None,
        description="safetensors that every site has under this path, such as those of a tile_classification job; "
        "null: those that the site has at hand (oncofed data encoders add)",
    )
    digest: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the weights, as oncofed data encoders check prints it; a site with others does not train",
    )
    unknown: Literal["refuse", "allow"] = Field(
        "refuse",
        description="sites whose features do not say which weights made them, beside sites that know: the run ends "
        "before it trains, or they take part and are named in the report",
    )
    features: int | None = Field(
        None, ge=1, le=65_536, description="numbers of a vector, of an encoder that is not in the catalogue"
    )

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        known = catalogue().get(self.network)
        if known is None:
            if self.features is None:
                try:
                    find_entry(self.network)
                except SpecError as error:
                    question = f"{error}. Of an encoder whose features sites bring, say how many: features"
                    raise SettingError(question, "network") from None
            if self.weights is not None:
                raise SettingError(
                    "weights are for an encoder of the catalogue; others bring features alone", "weights"
                )
        elif self.features is not None:
            raise SettingError(
                f"the catalogue says that {self.network} makes {known.features}: leave it out", "features"
            )
        elif not known.has_weights and (self.weights or self.digest):
            raise SettingError(f"{self.network} has no weights", "weights" if self.weights else "digest")
        return self


def feature_count(spec: EncoderSpec) -> int:
    """Return an encoder's number of features per tile."""
    return spec.features or find_entry(spec.network).features


def weights_file(spec: EncoderSpec) -> Path | None:
    """Return the file of an encoder's weights; None if it needs none, or has none here."""
    entry = catalogue().get(spec.network)
    if entry is None or not entry.has_weights:
        return None
    return Path(spec.weights).expanduser() if spec.weights else weights_at_hand(entry)


def load_weights_of(spec: EncoderSpec) -> LoadedEncoder:
    """Return a network with the weights that the site has for it.

    Raises:
        TrainingError: they are missing, of another network, or not those that the job pins.
    """
    entry = _entry(spec)
    loaded = load_encoder(entry, weights_file(spec) or require_weights(entry))
    if spec.digest and loaded.digest != spec.digest:
        raise TrainingError(
            f"the weights of {spec.network} here are not those that the job pins: found digest {loaded.digest}, "
            f"expected {spec.digest}. Take the file that the other sites have (oncofed data encoders check "
            f"{spec.network} FILE prints a digest), or agree on another in task.encoder.digest"
        )
    return loaded


def _entry(spec: EncoderSpec) -> EncoderEntry:
    entry = catalogue().get(spec.network)
    if entry is None:
        raise TrainingError(
            f"{spec.network} is not in the catalogue of encoders: tiles cannot be encoded here. Bring its features: "
            "oncofed data register --features"
        )
    return entry


class Encoder:
    """Computes features of tiles.

    Args:
        spec: which one.
        device: where it runs.

    Attributes:
        digest: its name, and the digest of its weights.
        recipe: see ``EncoderEntry.recipe``.
        size: number of features per tile.
        device: where it runs.
        at_once: tiles of a batch; halved whenever a GPU runs out of memory.

    Raises:
        TrainingError: its weights are missing, of another network, or not those that the job pins.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        cuda = device.type == "cuda"
        entry = _entry(spec)
        self.device = device
        self._images = Images(entry, device)
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._in_flight = _IN_FLIGHT_GPU if cuda else 1
        self._half = cuda and entry.has_weights
        self.at_once = _AT_ONCE_GPU if cuda else _AT_ONCE
        self.digest: str = spec.network
        self.recipe = entry.recipe
        self.size = feature_count(spec)
        if entry.has_weights:
            loaded = load_weights_of(spec)
            self._network = loaded.network.to(device)
            self.digest = f"{spec.network} {loaded.digest}"
        else:
            self._network = build_network(entry)
        # Group norm would copy each input to contiguous memory.
        self._channels_last = not any(isinstance(module, nn.GroupNorm) for module in self._network.modules())
        if cuda and self._channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def key(self) -> str:
        """Digests of everything that determines the features."""
        return f"{self.digest} {self.recipe}"

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
        images = self._images(tiles)
        if self.device.type == "cuda" and not self._channels_last:
            images = images.contiguous()
        with torch.autocast(self.device.type, inference_type(self.device), enabled=self._half):
            features: Tensor = self._network(images)
        return features.to(torch.bfloat16)


def extract(
    slides: Sequence[SlideTiles],
    encoder: Encoder,
    progress: Callable[[int], None] | None = None,
    change: Callable[[int, Sequence[Pixels]], Sequence[Pixels]] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield slides' features (tile, feature) bfloat16 when complete, in order.

    Each comes with its slide's number. Those that were extracted before are read where they are kept. Batches may span
    slides, and tiles are read ahead.

    Args:
        slides: to read.
        encoder: makes the features.
        progress: called with the number of tiles done.
        change: what the encoder sees of a slide's tiles, by the slide's number; None: the tiles themselves.

    Raises:
        DataError: a tile, or a file of features, cannot be read.
        TrainingError: the GPU has no memory for one tile.
    """
    # What is kept was made of the tiles themselves.
    kept = [None if change else find_kept(slide, encoder.key) for slide in slides]
    missing = [number for number, path in enumerate(kept) if path is None]

    def seen(number: int, tiles: Sequence[Pixels]) -> Sequence[Pixels]:
        return change(missing[number], tiles) if change else tiles

    done = 0  # tiles of slides that are complete
    computed = _computed(
        [slides[number] for number in missing],
        encoder,
        lambda now: progress(done + now) if progress else None,
        seen,
    )
    with contextlib.closing(computed) as new:
        for number, path in enumerate(kept):
            features = next(new) if path is None else torch.from_numpy(read_features(path).features)
            done += len(features)
            if progress:
                progress(done)
            yield number, features.to(torch.bfloat16)


def _computed(
    slides: Sequence[SlideTiles],
    encoder: Encoder,
    progress: Callable[[int], object],
    seen: Callable[[int, Sequence[Pixels]], Sequence[Pixels]],
) -> Generator[Tensor, None, None]:
    """Yield slides' features.

    ``progress`` is called with the number of tiles of the slide under way; ``seen`` says what the encoder sees of a
    slide's tiles, by the slide's number.
    """
    number = 0
    parts: list[Tensor] = []
    with contextlib.closing(stream_tiles(slides)) as runs:
        for features in encoder.stream(_batches((seen(of, tiles) for of, _, tiles in runs), encoder)):
            rest = features
            while len(rest):
                left = len(slides[number]) - sum(map(len, parts))
                parts.append(rest[:left])
                rest = rest[left:]
                if sum(map(len, parts)) == len(slides[number]):
                    yield torch.cat(parts)
                    parts = []
                    number += 1
            progress(sum(map(len, parts)))


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
