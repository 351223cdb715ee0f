"""Classification of whole slides from weak labels: features of each tile, and attention over a slide's tiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.cases import Case
from oncofed.data.inputs import Input, Preparation, Prepared
from oncofed.data.slides import Pixels, TileReader
from oncofed.data.spec import DataSpec
from oncofed.data.tiles import SlideTiles, read_tiles, stream_tiles
from oncofed.errors import DataError, TrainingError
from oncofed.models.mil import AttentionMIL
from oncofed.models.networks import Kind, ModelSpec, Request, build_network
from oncofed.models.weights import load_weights
from oncofed.settings import StrictModel
from oncofed.tasks.classification import ClassesSpec, Classification, Classified, caption
from oncofed.tasks.pictures import Picture
from oncofed.tasks.segmentation import inference_type

_TILES_AT_ONCE = 64
_SAME_RESOLUTION = 0.02
_HISTOGRAM_BINS = 8
# ImageNet's, on which encoders are trained.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderSpec(StrictModel):
    """What makes a tile's features. It is not trained: each slide's features are found once and kept."""

    network: Literal["colour", "resnet18", "resnet50"] = Field(
        "colour", description="colour: histograms and contrasts, without weights; others: MONAI's ResNet with weights"
    )
    weights: str | None = Field(
        None, description="safetensors that every site has under this path, such as those of a tile_classification job"
    )


class SlideClassificationSpec(ClassesSpec):
    """What a job learns that gives each slide one class."""

    type: Literal["slide_classification"] = "slide_classification"
    encoder: EncoderSpec = EncoderSpec()
    most_tiles: int = Field(4096, ge=16, le=100_000, description="tiles of a slide that a training step looks at")


def feature_count(spec: EncoderSpec) -> int:
    """Return how many features of a tile an encoder gives."""
    sizes = {"resnet18": 512, "resnet50": 2048}
    return sizes.get(spec.network) or _colour_features(torch.zeros(1, 3, 16, 16)).shape[1]


class Encoder:
    """From tiles to features.

    Args:
        spec: which one.
        device: where it runs.

    Attributes:
        digest: of all that its features follow from.
        size: features of a tile.

    Raises:
        TrainingError: its weights are missing or of another network.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self._device = device
        self._network: nn.Module | None = None
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
        network = build_network(Request(model, 3, 2, 2, (256, 256)), 0)
        try:
            load_weights(network, {name: value for name, value in weights.items() if not name.startswith("fc.")})
        except (TrainingError, RuntimeError):
            raise TrainingError(f"the encoder's weights {path.name} are not those of MONAI's {spec.network}") from None
        self._network = network.eval().to(device)
        self.digest = f"{spec.network} {hashlib.sha256(path.read_bytes()).hexdigest()}"

    @torch.no_grad()
    def __call__(self, tiles: Sequence[Pixels]) -> Tensor:
        """Return features (tile, feature) bfloat16 on the CPU of tiles (size, size, 3) uint8."""
        batch = torch.from_numpy(np.stack(tiles)).to(self._device).permute(0, 3, 1, 2).float() / 255
        if self._network is None:
            return _colour_features(batch).to("cpu", torch.bfloat16)
        mean, deviation = (torch.tensor(v, device=batch.device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        with torch.autocast(self._device.type, inference_type(self._device), enabled=self._device.type == "cuda"):
            features: Tensor = self._network((batch - mean) / deviation)
        return features.to("cpu", torch.bfloat16)


def extract(
    slides: Sequence[SlideTiles], encoder: Encoder, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield each slide's number with its features (tile, feature) bfloat16, as soon as its last tile is done.

    Batches go across the ends of slides, and tiles are read ahead meanwhile.

    Args:
        slides: to read.
        encoder: makes the features.
        progress: called with the tiles done so far.

    Raises:
        DataError: a tile cannot be read.
    """
    parts: list[list[Tensor]] = [[] for _ in slides]
    waiting: list[tuple[int, Pixels]] = []
    done = 0

    def encode() -> list[int]:
        nonlocal done
        features = encoder([tile for _, tile in waiting])
        touched = []
        for number in dict.fromkeys(number for number, _ in waiting):
            rows = [row for row, (of, _) in enumerate(waiting) if of == number]
            parts[number].append(features[rows[0] : rows[-1] + 1])
            touched.append(number)
        done += len(waiting)
        waiting.clear()
        if progress:
            progress(done)
        return [n for n in touched if sum(map(len, parts[n])) == len(slides[n])]

    for number, _, tiles in stream_tiles(slides):
        for tile in tiles:
            waiting.append((number, tile))
            if len(waiting) == _TILES_AT_ONCE:
                for finished in encode():
                    yield finished, torch.cat(parts[finished])
                    parts[finished] = []
    if waiting:
        for finished in encode():
            yield finished, torch.cat(parts[finished])


class Bags(Input):
    """The features of each slide's tiles.

    A batch holds bags (batch, tile, feature) float32, there (batch, tile) bool, and label (batch,) int64.

    Args:
        spec: the job's data: ``patch`` is a tile's size, ``spacing`` its resolution.
        encoder: makes features.
        most_tiles: drawn of a slide for a training step.
    """

    costly = True

    def __init__(self, spec: DataSpec, encoder: Encoder, most_tiles: int) -> None:
        super().__init__(spec, "none")
        self._encoder = encoder
        self._most_tiles = most_tiles

    @property
    def settings(self) -> str:
        """The encoder, and how slides are cut."""
        return json.dumps(["Bags", 1, self._encoder.digest, self.spec.patch, self.spec.spacing])

    def prepare(self, case: Case) -> Prepared:
        """Return a slide's features, its tiles' places, and its class."""
        return next(self.prepare_all([case]))[1]

    def prepare_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Prepared]]:
        """Yield each slide's features; tiles are read across the ends of slides."""
        slides = [slide_tiles(case, self.spec) for case in cases]
        for number, features in extract(slides, self._encoder):
            slide = slides[number]
            places = torch.from_numpy(np.stack([slide.x, slide.y], axis=1))
            yield number, {"bags": features, "places": places, "label": torch.tensor(cases[number].class_label)}

    def size(self, case: Case) -> int | None:
        """Return None: how many tiles a slide has is known when it is read."""
        return None

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return the features of all of a slide's tiles, or of as many as a step looks at."""
        bags = prepared["bags"]
        if len(bags) > self._most_tiles:
            chosen = torch.randperm(len(bags), generator=generator)[: self._most_tiles]
            bags = bags[chosen.to(bags.device)]
        return {"bags": bags.float(), "label": prepared["label"]}

    def together(self, parts: Sequence[Prepared]) -> Batch:
        """Return bags filled up to the longest one."""
        bags = nn.utils.rnn.pad_sequence([part["bags"] for part in parts], batch_first=True)
        lengths = torch.tensor([len(part["bags"]) for part in parts], device=bags.device)
        there = torch.arange(bags.shape[1], device=bags.device)[None] < lengths[:, None]
        return {"bags": bags, "there": there, "label": torch.stack([part["label"] for part in parts])}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return the batch as it is."""
        return batch


def slide_tiles(case: Case, data: DataSpec) -> SlideTiles:
    """Return where a slide's tiles lie, cut as the job wants them.

    Raises:
        DataError: the slide was not registered as one, or was cut otherwise.
    """
    if case.tiles is None:
        raise DataError("it was not registered as a slide: oncofed data register FOLDER --dataset NAME --task slides")
    tiles = read_tiles(case.image, case.tiles)
    size, wanted = tiles.spec.size, data.patch[0]
    if size != wanted or set(data.patch) != {wanted}:
        raise DataError(f"its tiles have {size} pixels a side, expected {wanted}; register it with --tile {wanted}")
    if data.spacing and abs(tiles.spec.mpp / (data.spacing[0] * 1000) - 1) > _SAME_RESOLUTION:
        mpp = data.spacing[0] * 1000
        raise DataError(
            f"its tiles have {tiles.spec.mpp:g} microns a pixel, expected {mpp:g}; register it with --mpp {mpp:g}"
        )
    return tiles


class SlideClassification(Classification):
    """A task that gives each slide one class by attention over its tiles."""

    network_kind: Kind = "bag"

    def __init__(self, spec: SlideClassificationSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._spec = spec
        self._bags: Bags | None = None

    @property
    def in_channels(self) -> int:
        """Features of a tile."""
        return feature_count(self._spec.encoder)

    def input(self, augmentation: Augmentation) -> Input:
        """Return bags of features."""
        return self._input(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return logits of a batch of bags."""
        return network(batch["bags"], batch["there"])

    def scoring_preparation(self) -> Preparation | None:
        """Return bags of features, as training has them."""
        return self.input("none")

    @torch.no_grad()
    def assess(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Classified:
        """Return what a network says of one slide, all its tiles taken together."""
        bags, there, _ = self._bag(case, device)
        logits = network(bags, there)[0]
        return Classified(logits.float().softmax(0).double().cpu().numpy(), case.class_label)

    @torch.no_grad()
    def attention(
        self, network: nn.Module, case: Case, device: torch.device
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return how much each tile counts (tile,), and its corner (tile, 2): x and y in pixels of the finest level."""
        assert isinstance(network, AttentionMIL)
        bags, there, places = self._bag(case, device)
        weights = network.attention(bags, there)[0].float().cpu().numpy()
        return weights, places.numpy()

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its attention as a heat map."""
        found = self.assess(network, case, device, detailed=False)
        tiles = slide_tiles(case, self.data)
        with TileReader(case.image, tiles.spec) as reader:
            overview, scale = reader.overview()
            step = reader.step / scale
        heat = np.zeros(overview.shape[:2], np.float32)
        if isinstance(network, AttentionMIL):
            weights, places = self.attention(network, case, device)
            for weight, (x, y) in zip(weights / weights.max(), places / scale, strict=True):
                heat[int(y) : int(y + step) + 1, int(x) : int(x + step) + 1] = weight
        shown = np.ascontiguousarray(overview.swapaxes(0, 1))
        return Picture(shown, heat=heat.T, caption=caption(found, self.classes), downwards=True)

    def _input(self, device: torch.device) -> Bags:
        if self._bags is None:
            self._bags = Bags(self.data, Encoder(self._spec.encoder, device), self._spec.most_tiles)
        return self._bags

    def _bag(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        prepared = self.prepared(case)
        bags = prepared["bags"].float()[None].to(device)
        return bags, torch.ones(bags.shape[:2], dtype=torch.bool, device=device), prepared["places"]


def _colour_features(tiles: Tensor) -> Tensor:
    """Return means, spreads and histograms of each colour, and how strong its edges are at three scales.

    Args:
        tiles: (tile, 3, x, y), 0 to 1.
    """
    # At half the resolution they cost a quarter and tell the same.
    tiles = functional.avg_pool2d(tiles, 2)
    parts = [tiles.mean((2, 3)), tiles.std((2, 3))]
    bins = (tiles * _HISTOGRAM_BINS).to(torch.uint8).clamp_max(_HISTOGRAM_BINS - 1)
    parts += [(bins == number).float().mean((2, 3)) for number in range(_HISTOGRAM_BINS)]
    for _ in range(3):
        across, down = tiles.diff(dim=2).abs().mean((2, 3)), tiles.diff(dim=3).abs().mean((2, 3))
        parts.append((across + down) * 4)
        tiles = functional.avg_pool2d(tiles, 2)
    return torch.cat(parts, dim=1)
