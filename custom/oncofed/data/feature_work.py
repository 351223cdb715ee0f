"""A slide that brings its features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oncofed.data import case_facts
from oncofed.data.case_readers import Work
from oncofed.data.case_results import CaseFound, CaseRefused, CaseResult
from oncofed.data.features.checks import require_usable
from oncofed.data.features.files import open_features
from oncofed.data.features.survey import Agreed, FeatureOptions
from oncofed.data.files import Use
from oncofed.data.layouts import Item
from oncofed.data.manifest import Entry, FeatureFacts
from oncofed.data.slides import open_slide
from oncofed.errors import DataError

# Raised when facts gain a field.
_FACTS_VERSION = "1"


@dataclass(frozen=True)
class FeatureWork:
    """A slide's features with its label, and its image where that is there.

    ``options`` is what the user states, ``agreed`` what the folder's files have in common.
    """

    root: Path
    prefix: str
    item: Item
    options: FeatureOptions
    agreed: Agreed

    @property
    def key(self) -> str:
        """Key of the case in the index."""
        return f"features:{self.item.name}"

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.item.name

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield self._features, "features"
        if self._slide:
            yield self._slide, "image"

    def stamp(self) -> str:
        """A string that changes when its files do."""
        paths = [
            path for name in dict.fromkeys((self._features, *self.item.images)) for path in files_of(self.root / name)
        ]
        agreed = f"{self.agreed.encoder} {self.agreed.digest} {self.agreed.size}"
        return f"{_FACTS_VERSION} {self.item!r} {self.options!r} {agreed} {case_facts.stamp(paths)}"

    def read(self) -> CaseResult:
        """Check the features; their numbers are read once."""
        item = self.item
        try:
            slide = self._slide_facts()
            facts, notes = self._feature_facts(slide)
            checksum = case_facts.checksum(files_of(self.root / self._features))
        except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
            return self.set_aside(case_facts.reason_of(error))
        entry = Entry(
            **{key: value for key, value in slide.items() if key != "notes"},
            name=item.name,
            patient=item.patient,
            label=item.label if isinstance(item.label, int) else None,
            split=item.split,
            modality="SM",
            tags=item.tags,
            targets=dict(item.targets),
            unread=dict(item.unread),
            features=facts,
            finite=True,
            checksum=checksum,
            stamp=case_facts.stamp(self._listed(slide["image"])),
            notes=[*notes, *slide.get("notes", ()), *item.notes],
            source=self._features,
        )
        return CaseFound(entry)

    def set_aside(self, reason: str) -> CaseRefused:
        """Return the slide as one that cannot be used."""
        return CaseRefused(self.item.name, reason=reason, source=self._features)

    def renamed(self, name: str) -> Work:
        """Return the case by another name."""
        return replace(self, item=replace(self.item, name=name))

    def _feature_facts(self, slide: dict[str, Any]) -> tuple[FeatureFacts, tuple[str, ...]]:
        spacing, size = slide.get("spacing"), slide.get("shape")
        with open_features(self.root / self._features, self.agreed.encoder) as found:
            known = found.completed(self.options.tile, self.options.mpp, spacing[0] * 1000 if spacing else None)
            # The user's word is compared with what the slide says.
            stated = known if found.mpp or not self.options.mpp else replace(known, mpp=self.options.mpp)
            require_usable(stated, (size[0], size[1]) if size else None)
            facts = FeatureFacts(
                file=f"{self.prefix}{self._features}",
                encoder=self.agreed.encoder,
                digest=known.digest or self.agreed.digest,
                recipe=known.recipe,
                level=known.level,
                size=known.rows.shape[1],
                tiles=len(known.rows),
                tile=known.tile,
                mpp=None if known.mpp is None else round(known.mpp, 6),
            )
            return facts, known.notes

    def _slide_facts(self) -> dict[str, Any]:
        """Return facts of the slide's image; a note where it cannot be read."""
        features = {"image": f"{self.prefix}{self._features}"}
        if not self._slide:
            return features
        try:
            opened = open_slide(self.root / self._slide)
        except DataError as error:
            return features | {"notes": [f"it has no heat map, for its slide {error}"]}
        try:
            finest = opened.levels[0]
            return {
                "image": f"{self.prefix}{self._slide}",
                "shape": [finest.width, finest.height],
                "channels": 3,
                "spacing": None if opened.unknown else [finest.mpp / 1000] * 2,
                "dtype": "uint8",
                "vendor": opened.vendor,
            }
        finally:
            opened.close()

    @property
    def _features(self) -> str:
        assert self.item.features is not None
        return self.item.features

    @property
    def _slide(self) -> str | None:
        return None if self.item.images[0] == self._features else self.item.images[0]

    def _listed(self, image: str) -> list[Path]:
        """Return the files as ``Case.files`` does."""
        paths = dict.fromkeys((image, f"{self.prefix}{self._features}"))
        return [self.root / path.removeprefix(self.prefix) for path in paths]


def files_of(path: Path) -> list[Path]:
    """Return a file, or all those of a Zarr store."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
