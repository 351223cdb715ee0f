"""Bags of features: of a slide's tiles, or of all slides of a patient.

A slide's features are computed from its tiles, or read where it brings them. Both kinds may be one patient's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor

from oncofed.data.augment import Batch
from oncofed.data.case import Case
from oncofed.data.feature_report import WantedFeatures
from oncofed.data.features import Stored, open_features
from oncofed.data.features.kept import kept_at
from oncofed.data.inputs import BatchSource, Prepared, class_label
from oncofed.data.slides import Pixels
from oncofed.data.slides.resolution import SAME_RESOLUTION
from oncofed.data.spec import DataSpec
from oncofed.data.stain.of_case import Normaliser
from oncofed.data.tiles import SlideTiles, read_tiles, tissue_shares
from oncofed.errors import DataError
from oncofed.models.encoders import unusual_tiles
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract, feature_count
from oncofed.tasks.feature_origin import facts_of, feature_faults, has_weights, origin_digest, require_origin
from oncofed.tasks.inferred import UNPLACED
from oncofed.tasks.settings import TaskSettings

# Bytes of a tile in a bag besides its features: two coordinates of 32 bits, and the number of its slide.
_BYTES_BESIDE, _BYTES_OF_FEATURE = 10, 2
# Parts of a prepared case that are no sample's.
_STAY = frozenset({"bags", "places", "slides", "tissue", "chosen"})


class BagSettings(TaskSettings):
    """Settings of what a bag holds."""

    encoder: EncoderSpec = EncoderSpec()
    bag: Literal["slide", "patient"] = Field(
        "slide", description="what is answered for; patient: all slides of a patient are one bag, and state the same"
    )
    most_tiles: int = Field(4096, ge=16, le=100_000, description="tiles of a bag that a training step looks at")
    sampling: Literal["tiles", "slides", "tissue"] = Field(
        "tiles",
        description="how those are drawn: each tile alike, each slide of a patient alike, or by the share of a tile "
        "that is tissue, which features from elsewhere do not tell",
    )

    @property
    def whole_patients(self) -> bool:
        """Whether all slides of a patient are one case."""
        return self.bag == "patient"

    def wanted_features(self, data: DataSpec) -> WantedFeatures:
        """Return which features of slides the job takes."""
        return WantedFeatures(self.encoder.network, lambda facts: feature_faults(facts, self.encoder, data))


class Bags(BatchSource):
    """The features of each case's tiles.

    A prepared case holds bags (tile, feature) bfloat16, places (tile, 2) int32, the upper left corners in pixels of
    the slide's finest level or ``UNPLACED``, and slides (tile,) int16, the number of a tile's slide in ``Case.slides``.
    A batch holds bags (batch, tile, feature) float32, there (batch, tile) bool, and label (batch,) int64.

    Args:
        data: the job's data: ``patch`` is a tile's size, ``spacing`` its resolution.
        settings: the job's bags.
        device: where the encoder runs.
        truth: from a case to its labels.
    """

    costly = True

    def __init__(
        self,
        data: DataSpec,
        settings: BagSettings,
        device: torch.device,
        truth: Callable[[Case], Prepared] = class_label,
    ) -> None:
        super().__init__(data, "none")
        self._bag = settings
        self._device = device
        self._truth = truth

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, whose weights a site needs that brings slides."""
        return Encoder(self._bag.encoder, self._device)

    def settings_of(self, case: Case) -> str:
        """Return the encoder, and where slides are cut; of features their origin.

        Raises:
            DataError: a slide was not registered as one, or was cut otherwise.
        """
        made_of = [
            f"{self.encoder.key} {slide_tiles(slide, self.spec).digest}"
            if slide.features is None
            else slide.entry and str(slide.entry.features)
            for slide in case.slides
        ]
        return json.dumps(["Bags", 4, made_of, self.spec.patch, self.spec.spacing, *self.stain_settings])

    def origin(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Return the digest of the encoder's weights; None: unknown. See ``feature_origin``."""
        slides = [slide for case in cases for slide in case.slides]
        require_origin(slides, self._bag.encoder, self.spec)
        if not has_weights(self._bag.encoder):
            return {}
        cut = any(slide.features is None for slide in slides)
        own = self.encoder.digest.partition(" ")[2] if cut else None
        return {"encoder": origin_digest(slides, own)}

    def remarks(self, cases: Sequence[Case]) -> list[str]:
        """Return a note where tiles are not those that the encoder was made for."""
        slides = [slide for case in cases for slide in case.slides]
        brought = [(facts.tile, facts.mpp) for facts in facts_of(slides) if facts.level == "tile"]
        asked = (self.spec.patch[0], self.spec.spacing[0] * 1000 if self.spec.spacing else None)
        cut = [asked] if any(slide.features is None for slide in slides) else []
        return unusual_tiles(self._bag.encoder.network, [*brought, *cut])

    def prepare(self, case: Case) -> Prepared:
        """Return a case's features, and its tiles' places."""
        return next(self.prepare_all([case]))[1]

    def prepare_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Prepared]]:
        """Yield each case's features; tiles are read across the ends of slides."""
        cut = [(number, slide) for number, case in enumerate(cases) for slide in case.slides if slide.features is None]
        missing = Counter(number for number, _ in cut)
        for number, case in enumerate(cases):
            if not missing[number]:
                yield number, self._joined(case, {})
        tiles = [slide_tiles(slide, self.spec) for _, slide in cut]
        found: dict[Case, Prepared] = {}
        for place, features in self._extracted([slide for _, slide in cut], tiles):
            number, slide = cut[place]
            corners = torch.from_numpy(np.stack([tiles[place].x, tiles[place].y], axis=1))
            found[slide] = {"bags": features, "places": corners}
            missing[number] -= 1
            if not missing[number]:
                yield number, self._joined(cases[number], found)
                found = {}

    def _extracted(self, slides: Sequence[Case], tiles: Sequence[SlideTiles]) -> Iterator[tuple[int, Tensor]]:
        """Yield each slide's number and features, (tile, feature)."""
        if not slides:
            return
        if self.spec.stain.normalise == "none":
            yield from extract(tiles, self.encoder)
            return
        stain = Normaliser(self.spec.stain, self.spec.template)

        def normalised(number: int, read: Sequence[Pixels]) -> Sequence[Pixels]:
            return stain.tiles(read, slides[number], self.encoder.device)

        yield from extract(tiles, self.encoder, change=normalised)

    def _joined(self, case: Case, computed: dict[Case, Prepared]) -> Prepared:
        """Return the bag of all slides of a case, with those whose features were computed."""
        parts = [computed[slide] if slide.features is None else self._brought(slide) for slide in case.slides]
        lengths = torch.tensor([len(part["bags"]) for part in parts])
        slides = torch.arange(len(parts), dtype=torch.int16).repeat_interleave(lengths)
        joined = (
            parts[0] if len(parts) == 1 else {n: torch.cat([part[n] for part in parts]) for n in ("bags", "places")}
        )
        return {**joined, "slides": slides}

    def _brought(self, slide: Case) -> Prepared:
        """Return the features that a slide brings.

        Raises:
            DataError: they cannot be read, or are not the job's.
        """
        require_origin([slide], self._bag.encoder, self.spec)
        with opened_features(slide) as stored:
            count, found = stored.rows.shape
            size = feature_count(self._bag.encoder)
            if found != size:
                raise DataError(
                    f"its features have {found} numbers a vector, expected {size}. Register the dataset again"
                )
            features, first = torch.empty(count, size, dtype=torch.bfloat16), 0
            for part in stored.rows.parts():  # a hundred thousand vectors in single precision would be as large again
                features[first : first + len(part)] = torch.from_numpy(np.ascontiguousarray(part, np.float32))
                first += len(part)
            corners = stored.pixels() if stored.level == "tile" else None
        if corners is None:
            places = torch.full((count, 2), UNPLACED, dtype=torch.int32)
        else:
            places = torch.from_numpy(np.ascontiguousarray(corners))
        return {"bags": features, "places": places}

    def truth(self, case: Case) -> Prepared:
        """Return a case's labels."""
        return self._truth(case)

    def beside_image(self, case: Case) -> Prepared:
        """Return a case's row and labels; where tiles are drawn by it, also how much of each is tissue."""
        found = super().beside_image(case)
        if self._bag.sampling == "tissue":
            found["tissue"] = torch.cat([torch.from_numpy(_tissue(slide)) for slide in case.slides])
        return found

    def size(self, case: Case) -> int | None:
        """Return a prepared case's size in bytes.

        By the number of tiles found when it was registered.
        """
        tiles = 0
        try:
            for slide in case.slides:
                facts = slide.entry.features if slide.entry else None
                tiles += facts.tiles if facts and slide.features else len(slide_tiles(slide, self.spec))
        except DataError:  # which preparing it tells
            return None
        return tiles * (feature_count(self._bag.encoder) * _BYTES_OF_FEATURE + _BYTES_BESIDE) + 8

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a case's features, and the tiles to draw from.

        Steps do not take all tiles.
        """
        drawn = {name: values for name, values in prepared.items() if name not in _STAY or name == "bags"}
        tiles, most = len(drawn["bags"]), self._bag.most_tiles
        if tiles > most:
            chances = self._chances(prepared)
            if chances is None:
                chosen = torch.randperm(tiles, generator=generator)[:most]
            else:
                chosen = torch.multinomial(chances, most, generator=generator)
            # In the slide's order, which some heads look at.
            drawn["chosen"] = chosen.sort().values
        return drawn

    def _chances(self, prepared: Prepared) -> Tensor | None:
        """Return each tile's chance to be drawn first, (tile,) up to a factor; None: all alike."""
        if self._bag.sampling == "slides":
            slides = prepared["slides"].long()
            return 1 / torch.bincount(slides)[slides].double()
        return prepared["tissue"].double() if self._bag.sampling == "tissue" else None

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
        labels = {name: torch.stack([part[name] for part in parts]) for name in parts[0].keys() - _STAY}
        return {"bags": bags, "there": present, **labels}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return the batch with float32 features.

        They travel to the device in half the bytes.
        """
        return {**batch, "bags": batch["bags"].float()}


def alike(data: DataSpec, bags: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return features (bag, tile, feature) float32 as the average site would have them; as they are where none asks.

    Args:
        data: the job's.
        bags: of this site.
        rows: of the table as registered, (bag, column); None: the job has none.
    """
    harmonizer = data.harmonizer
    return bags if harmonizer is None else harmonizer.bags(bags, rows)


@contextmanager
def opened_features(slide: Case) -> Iterator[Stored]:
    """Open the features that a slide brings, with what was stated when they were registered.

    Raises:
        DataError: they cannot be read.
    """
    assert slide.features
    entry = slide.entry
    facts = entry.features if entry else None
    finest = entry.spacing[0] * 1000 if entry and entry.spacing else None
    with open_features(slide.features, facts.encoder if facts else None) as stored:
        yield stored.completed(facts.tile if facts else None, facts.mpp if facts else None, finest)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _tissue(slide: Case) -> np.ndarray:
    """Return how much of each tile is tissue, (tile,) float32; ones for features, which do not tell."""
    if slide.features is None and slide.tiles:
        return tissue_shares(slide.tiles)
    facts = slide.entry.features if slide.entry else None
    return np.ones(facts.tiles if facts else 0, np.float32)


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
    # Resampled to just what registering asked for; features from elsewhere are cut at a level of the scanner, and may
    # differ more: see ``features.survey``.
    if data.spacing and abs(tiles.spec.mpp / (data.spacing[0] * 1000) - 1) > SAME_RESOLUTION:
        mpp = data.spacing[0] * 1000
        raise DataError(
            f"its tiles have {tiles.spec.mpp:g} microns a pixel, expected {mpp:g}; register it with --mpp {mpp:g}"
        )
    return replace(tiles, kept=kept_at(case))
