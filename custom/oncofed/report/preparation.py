"""What a run's slides went through before the network: encoder and stains, for result, report and card."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from oncofed.settings import StrictModel


class EncoderUse(StrictModel):
    """The encoder of a run's tiles."""

    network: str = Field(description="its name, as the job has it")
    features: int = Field(description="numbers of a vector")
    digest: str | None = Field(description="of its weights, as the sites told it or the job pins it; null: not known")
    tile: int = Field(description="side of a tile in pixels, as the encoder sees it")
    mpp: float | None = Field(description="microns per pixel of a tile; null: each dataset's own")
    unknown: list[str] = Field([], description="sites whose features count, though they do not know of which weights")

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        yield "Encoder", f"{self.network}, {self.features:,} numbers a tile"
        digest = self.digest or ("not known" if self.unknown else "none: it has none")
        yield "Encoder's weights (SHA-256)", digest
        if self.unknown:
            said = "brought features without the digest of the weights that made them: they count, as the job pins none"
            yield "Encoder not known", f"{', '.join(self.unknown)} {said} (task.encoder.digest)"
        size = f"{self.mpp:g} µm a pixel" if self.mpp else "at each dataset's own resolution"
        yield "Tiles", f"{self.tile} x {self.tile} pixels, {size}"


class StainUse(StrictModel):
    """What was done about a run's stains."""

    normalise: str = Field(description="method, or none")
    augment: str = Field(description="method, or none")
    sites: list[str] | None = Field(
        description="whose slides' sums made the template; null: there is none, or it came with the initial weights"
    )
    published: list[str] = Field([], description="numbers of the template of which no site told: published ones stand")

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        parts = [f"normalised ({self.normalise})"] if self.normalise != "none" else []
        parts += [f"changed at random in training ({self.augment})"] if self.augment != "none" else []
        yield "Stains", ", ".join(parts)
        if self.sites is None:
            return
        if not self.sites:
            yield "Template of stains", "published values: no site told sums of enough slides"
            return
        count = f"agreed by {len(self.sites)} {'site' if len(self.sites) == 1 else 'sites'}: {', '.join(self.sites)}"
        left = f"; published values for {', '.join(self.published)}" if self.published else ""
        yield "Template of stains", f"{count}{left}"
