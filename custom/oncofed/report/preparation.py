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


class Distances(StrictModel):
    """How far one site's values are from the common ones, before ComBat and after."""

    before: float = Field(description="of its means from the common ones, mean over values, in spreads; before")
    after: float = Field(description="the same after ComBat")
    factor_before: float = Field(
        description="by which its spreads differ from the common ones, mean over values; before"
    )
    factor_after: float = Field(description="the same after ComBat")


class HarmonizationUse(StrictModel):
    """What was done about sites that measure differently."""

    intensity: str = Field("none", description="method, or none")
    features: str = Field("none", description="method, or none")
    columns: list[str] = Field([], description="of the table, made alike by ComBat")
    preserved: list[str] = Field([], description="columns whose effect was kept")
    sites: dict[str, dict[str, Distances]] = Field(
        {}, description="that told sums of at least five patients -> features or columns -> before and after"
    )
    constant: int = Field(0, description="features that never vary, and stay as they are")

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        if self.intensity != "none":
            yield "Intensities", f"mapped to a common template ({self.intensity})"
        what = [*(["features"] if self.features != "none" else []), *self.columns]
        if not what:
            return
        kept = f"; the effect of {', '.join(self.preserved)} is kept" if self.preserved else ""
        yield "Made alike between sites (ComBat)", f"{', '.join(what)}{kept}"
        for site, groups in self.sites.items():
            for group, of in groups.items():
                means = f"means {of.before:.2f} and {of.after:.2f} spreads from the common ones"
                spreads = f"spreads differ by a factor of {of.factor_before:.2f} and {of.factor_after:.2f}"
                yield f"{site}, {group}, before and after", f"{means}; {spreads}"
        if not self.sites:
            yield "Agreed on", "with the initial weights: not in this run"
        if self.constant:
            yield "Features that never vary", f"{self.constant}, left as they are"


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
