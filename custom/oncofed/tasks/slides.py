"""Classification of whole slides from weak labels.

Bags of tiles' features, and attention over a slide's tiles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Generator, Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared, class_label
from oncofed.data.slides import Pixels, TileReader
from oncofed.data.spec import DataSpec
from oncofed.data.stain.of_case import Normaliser
from oncofed.data.tiles import SlideTiles, read_tiles
from oncofed.devices import training_device
from oncofed.errors import DataError
from oncofed.models.mil import AttentionMIL
from oncofed.models.networks import Kind
from oncofed.tasks.classification import ClassesSpec, Classification, Classified, caption
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract, feature_count
from oncofed.tasks.inferred import SlideScores
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type

_SAME_RESOLUTION = 0.02
# Bytes of a tile in a bag besides its features: two coordinates of 32 bits.
_BYTES_OF_PLACES, _BYTES_OF_FEATURE = 8, 2


class SlideClassificationSpec(ClassesSpec):
    """Settings of slide classification."""

    type: Literal["slide_classification"] = "slide_classification"
    encoder: EncoderSpec = EncoderSpec()
    most_tiles: int = Field(4096, ge=16, le=100_000, description="tiles of a slide that a training step looks at")


class Bags(BatchSource):
    """The features of each slide's tiles.

    A batch holds bags (batch, tile, feature) float32, there (batch, tile) bool, and label (batch,) int64.

    Args:
        spec: the job's data: ``patch`` is a tile's size, ``spacing`` its resolution.
        encoder: makes features.
        most_tiles: drawn of a slide for a training step.
        truth: from a case to its labels.
    """

    costly = True

    def __init__(
        self,
        spec: DataSpec,
        encoder: Encoder,
        most_tiles: int,
        truth: Callable[[Case], Prepared] = class_label,
    ) -> None:
        super().__init__(spec, "none")
        self._truth = truth
        self._encoder = encoder
        self._most_tiles = most_tiles

    @property
    def settings(self) -> str:
        """The encoder, and how slides are cut."""
        how = ["Bags", 2, self._encoder.digest, self.spec.patch, self.spec.spacing]
        return json.dumps([*how, *self.stain_settings])

    def prepare(self, case: Case) -> Prepared:
        """Return a slide's features, and its tiles' places."""
        return next(self.prepare_all([case]))[1]

    def prepare_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Prepared]]:
        """Yield each slide's features; tiles are read across the ends of slides."""
        slides = [slide_tiles(case, self.spec) for case in cases]
        stain = Normaliser(self.spec.stain, self.spec.template)

        def normalised(number: int, tiles: Sequence[Pixels]) -> Sequence[Pixels]:
            return stain.tiles(tiles, cases[number], self._encoder.device)

        for number, features in extract(slides, self._encoder, change=normalised):
            slide = slides[number]
            places = torch.from_numpy(np.stack([slide.x, slide.y], axis=1))
            yield number, {"bags": features, "places": places}

    def truth(self, case: Case) -> Prepared:
        """Return a slide's labels."""
        return self._truth(case)

    def size(self, case: Case) -> int | None:
        """Return a prepared case's size in bytes.

        By the number of tiles found when it was registered.
        """
        try:
            tiles = len(slide_tiles(case, self.spec))
        except DataError:  # which preparing it tells
            return None
        return tiles * (self._encoder.size * _BYTES_OF_FEATURE + _BYTES_OF_PLACES) + 8

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a slide's tile features, and the tiles to draw from.

        Steps do not take all tiles.
        """
        drawn = {name: values for name, values in prepared.items() if name != "places"}
        if len(drawn["bags"]) > self._most_tiles:
            drawn["chosen"] = torch.randperm(len(drawn["bags"]), generator=generator)[: self._most_tiles]
        return drawn

    def together(self, parts: Sequence[Prepared]) -> Batch:
        """Return bags (bfloat16) padded to the longest one.

        Gathered on their device, without the host waiting.
        """
        counts = [len(part.get("chosen", part["bags"])) for part in parts]
        like = parts[0]["bags"]
        bags = like.new_empty(len(parts), max(counts), like.shape[1])
        for bag, count, part in zip(bags, counts, parts, strict=True):
            if "chosen" in part:
                torch.index_select(part["bags"], 0, _sent(part["chosen"], like.device), out=bag[:count])
            else:
                bag[:count] = part["bags"]
            bag[count:] = 0
        lengths = _sent(torch.tensor(counts), like.device)
        present = torch.arange(bags.shape[1], device=like.device)[None] < lengths[:, None]
        labels = {name: torch.stack([part[name] for part in parts]) for name in parts[0].keys() - {"bags", "chosen"}}
        return {"bags": bags, "there": present, **labels}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return the batch with float32 features.

        They travel to the device in half the bytes.
        """
        return {**batch, "bags": batch["bags"].float()}


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def slide_tiles(case: Case, data: DataSpec) -> SlideTiles:
    """Return where a slide's tiles lie, cut as the job wants them.

    Raises:
        DataError: the slide was not registered as one, or was cut otherwise.
    """
    if case.tiles is None:
        raise DataError("it was not registered as a slide: oncofed data register FOLDER --dataset NAME --task slides")
    tiles = read_tiles(case.image, case.tiles)
    size, expected = tiles.spec.size, data.patch[0]
    if size != expected or set(data.patch) != {expected}:
        raise DataError(f"its tiles have {size} pixels a side, expected {expected}; register it with --tile {expected}")
    if data.spacing and abs(tiles.spec.mpp / (data.spacing[0] * 1000) - 1) > _SAME_RESOLUTION:
        mpp = data.spacing[0] * 1000
        raise DataError(
            f"its tiles have {tiles.spec.mpp:g} microns a pixel, expected {mpp:g}; register it with --mpp {mpp:g}"
        )
    return tiles


def attention_picture(
    case: Case, data: DataSpec, attention: NDArray[np.float32] | None, places: NDArray[np.int32] | None, caption: str
) -> Picture:
    """Return a slide, small, with attention as a heat map.

    Args:
        case: the slide.
        data: of the job.
        attention: how much each tile counts, (tile,); None: the network does not say.
        places: corner of each tile, (tile, 2), in pixels of the finest level.
        caption: in words.
    """
    tiles = slide_tiles(case, data)
    with TileReader(case.image, tiles.spec) as reader:
        overview, scale = reader.overview()
        step = reader.step / scale
    heat = np.zeros(overview.shape[:2], np.float32)
    if attention is not None and places is not None:
        for weight, (x, y) in zip(attention / attention.max(), places / scale, strict=True):
            heat[int(y) : int(y + step) + 1, int(x) : int(x + step) + 1] = weight
    shown = np.ascontiguousarray(overview.swapaxes(0, 1))
    return Picture(shown, heat=heat.T, caption=caption, downwards=True)


@register_task_type("slide_classification")
class SlideClassification(Classification):
    """A task that gives each slide one class by attention over its tiles."""

    Settings = SlideClassificationSpec
    network_kind: Kind = "bag"

    def __init__(self, spec: SlideClassificationSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._spec = spec
        self._bags: Bags | None = None

    @property
    def in_channels(self) -> int:
        """Features of a tile."""
        return feature_count(self._spec.encoder)

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return bags of features."""
        return self._input(training_device())

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return logits of a batch of bags."""
        return network(batch["bags"], batch["there"])

    def scoring_preparation(self) -> Preparation | None:
        """Return bags of features, as training has them."""
        return self.input("none")

    def inference_preparation(self) -> Preparation:
        """Return bags of features, as training has them."""
        return self.input("none")

    @torch.no_grad()
    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> SlideScores:
        """Return a network's answer for one slide, with attention."""
        bags = prepared["bags"].to(device).float()[None]
        present = torch.ones(bags.shape[:2], dtype=torch.bool, device=device)
        logits = network(bags, present)[0].float().double().cpu().numpy()
        attention = None
        if isinstance(network, AttentionMIL):
            attention = network.attention(bags, present)[0].float().cpu().numpy()
        return SlideScores(logits, attention, prepared["places"].cpu().numpy())

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Classified:
        """Evaluate a network on one slide, all tiles together."""
        found = self.infer(network, self.prepared(case), device)
        return Classified(found.probabilities(self.temperature), case.class_label)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its attention as a heat map."""
        found = self.infer(network, self.prepared(case), device)
        text = caption(Classified(found.probabilities(self.temperature), case.class_label), self.classes)
        return attention_picture(case, self.data, found.attention, found.places, text)

    def _input(self, device: torch.device) -> Bags:
        if self._bags is None:
            self._bags = Bags(self.data, Encoder(self._spec.encoder, device), self._spec.most_tiles)
        return self._bags
