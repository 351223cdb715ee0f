"""The result of reading a case: found or refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from oncofed.data.manifest import Entry, Quarantined


@dataclass(frozen=True)
class CaseFound:
    """A case that was read.

    Attributes:
        entry: as the manifest lists it; patient and study are those of the files, not yet hashed.
        looks_like_mask: the image has no label, and holds only a few whole numbers, as a mask would.
        not_drawn: paths of label files that lie outside the image.
    """

    entry: Entry
    looks_like_mask: bool = False
    not_drawn: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.entry.name or ""


@dataclass(frozen=True)
class CaseRefused:
    """A case that cannot be used, and why.

    ``source`` is its first file.
    """

    name: str
    reason: str
    source: str

    def quarantined(self) -> Quarantined:
        """Return the case as the manifest lists it."""
        return Quarantined(name=self.name, reason=self.reason, source=self.source)


CaseResult = CaseFound | CaseRefused


def to_json(result: CaseResult) -> dict[str, Any]:
    """Return a result as JSON's values, for the index."""
    if isinstance(result, CaseRefused):
        return {"refused": asdict(result)}
    entry = result.entry.model_dump(exclude_none=True)
    return {"entry": entry, "looks_like_mask": result.looks_like_mask, "not_drawn": list(result.not_drawn)}


def from_json(values: dict[str, Any]) -> CaseResult:
    """Return the result from the values of ``to_json``."""
    if "refused" in values:
        return CaseRefused(**values["refused"])
    return CaseFound(
        entry=Entry.model_validate(values["entry"]),
        looks_like_mask=values["looks_like_mask"],
        not_drawn=tuple(values["not_drawn"]),
    )
