"""``report.html``: a run's table, curves and pictures in one file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from oncofed.data.slides.tile_quality import FLAGS
from oncofed.report.attention import deletion_curves
from oncofed.report.over_sites import of_target, over_sites
from oncofed.report.pages import render
from oncofed.report.remarks import remarks, selection, untold_gains
from oncofed.report.result import Result
from oncofed.tasks.pictures import Picture
from oncofed.tasks.targets import figure_titles

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_REFERENCE, _PREDICTION = "#2ca02c", "#ff7f0e"
_STYLES = {"solid": "-", "dashed": "--", "dotted": ":", "dash-dotted": "-."}

# Letters of a caption that fit over a picture.
_CAPTION_WIDTH = 40
_OPACITY = 0.5  # of the hottest place, so that nuclei are seen through it


def write_report(result: Result, pictures: dict[str, Picture], folder: Path) -> Path:
    """Write ``folder/report.html`` and return it.

    Args:
        result: of the run.
        pictures: one slice by site.
        folder: of the run.
    """
    together, curves = over_sites(result.pooled_test), _curves(result)
    targets = result.pooled_test.targets if result.pooled_test else {}
    html = render(
        "report.html",
        result=result,
        classes=line_styles(drawn_classes(result)),
        models=result.models,
        remarks=remarks(result),
        selection=selection(result),
        untold=untold_gains(result),
        curves=svg(curves) if curves else "",
        over_sites=svg(together) if together else "",
        target_plots={name: [svg(plot) for plot in of_target(target)] for name, target in targets.items()},
        by_class=[
            name
            for name in result.classes
            if any(name in s.by_class.get("federated", {}) for s in result.sites.values())
        ],
        titles=figure_titles(result.targets),
        figures=sorted({name for site in result.sites.values() for name in site.more.get("federated", {})}),
        flags=FLAGS if any(site.tiles for site in result.sites.values()) else (),
        intervals=any(site.interval for site in result.sites.values()),
        pictures=svg(_slices(pictures)) if pictures else "",
        contours=any(picture.reference is not None for picture in pictures.values()),
        volumes=any(picture.reference is not None and not picture.downwards for picture in pictures.values()),
        attention=result.attention,
        attention_curves=svg(deletion_curves(result.attention)) if result.attention else "",
        card=(folder / "model" / "card.md").is_file(),
        heat=any(picture.heat is not None for picture in pictures.values()),
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def drawn_classes(result: Result) -> list[str]:
    """Return the names of the label values that contours stand for; beside other targets those of what is drawn."""
    return [name for target in result.targets.values() for name in target.drawn] or result.classes


def line_styles(classes: list[str]) -> list[tuple[str, str]]:
    """Return (line style, name) of each class."""
    return [(_style(index)[0], name) for index, name in enumerate(classes)]


def _style(index: int) -> tuple[str, str]:
    return list(_STYLES.items())[index % len(_STYLES)]


def svg(figure: Figure) -> Markup:
    """Return a figure as SVG, and close it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704 - made by matplotlib, which escapes names


def picture_svg(picture: Picture) -> Markup:
    """Return a case's picture with its caption as SVG."""
    return svg(_slices({"": picture}))


def _curves(result: Result) -> Figure | None:
    """Return scores and losses by round, of which there are any; None of neither."""
    validation, losses = _by_site(result.curves.get("validation_by_site", {})), _by_site(result.curves.get("loss", {}))
    scored = validation or result.curves.get("validation")
    drawn = [draw for draw, found in ((_draw_validation, scored), (_draw_losses, losses)) if found]
    if not drawn:
        return None
    figure, row = plt.subplots(1, len(drawn), figsize=(5 * len(drawn), 3.4), squeeze=False)
    for axes, draw in zip(row[0], drawn, strict=True):
        draw(axes, result)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _by_site(rounds: Mapping[str, Mapping[str, float | None]]) -> dict[str, list[tuple[int, float]]]:
    """Return (round, value) of each site that has any."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, values in rounds.items():
        for site, value in values.items():
            if value is not None:
                found.setdefault(site, []).append((int(number), value))
    return dict(sorted(found.items()))


def _draw_validation(axes: Axes, result: Result) -> None:
    by_site = _by_site(result.curves.get("validation_by_site", {}))
    for site, points in by_site.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=site)
    mean = sorted((int(k), v) for k, v in result.curves.get("validation", {}).items())
    shown = [score for points in (*by_site.values(), mean) for _, score in points]
    low = 0 if min(shown) >= 0 else -1  # of one such as kappa
    if mean:
        axes.plot(*zip(*mean, strict=True), color="black", linewidth=2, label="mean")
    whose = "each site's" if by_site else "all sites'"
    title = f"Global model on {whose} validation patients"
    axes.set(xlabel="round", ylabel=result.metric_name, title=title, ylim=(low, 1))


def _draw_losses(axes: Axes, result: Result) -> None:
    for site, points in _by_site(result.curves["loss"]).items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=site)
    axes.set(xlabel="round", ylabel="loss", title="Training loss, mean of each round")


def _slices(pictures: dict[str, Picture]) -> Figure:
    figure, row = plt.subplots(1, len(pictures), figsize=(3.2 * len(pictures), 3.6), squeeze=False)
    for axes, (site, picture) in zip(row[0], sorted(pictures.items()), strict=True):
        low, high = np.percentile(picture.image, (1, 99.5))
        origin = "upper" if picture.downwards else "lower"
        shown = picture.image.swapaxes(0, 1)
        if shown.ndim == 3:
            shown = np.clip((shown.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
        axes.imshow(shown, cmap="gray", origin=origin, vmin=low, vmax=high, aspect=picture.aspect)
        if picture.reference is not None and picture.prediction is not None:
            _contours(axes, picture.reference, picture.prediction)
        if picture.heat is not None:
            root = np.sqrt(picture.heat.T)  # of thousands of tiles few have a share that a linear scale shows
            axes.imshow(root, cmap="inferno", origin=origin, alpha=_OPACITY * root, vmin=0, vmax=1)
        title = "\n".join(_wrapped(site, picture.caption)) if picture.caption else site
        axes.set_title(title, fontsize=8 if picture.caption else 10)
        axes.axis("off")
    return figure


def _wrapped(*texts: str) -> Iterator[str]:
    """Yield lines that fit over a picture of the grid."""
    for line in (line for text in texts for line in text.splitlines()):
        yield from textwrap.wrap(line, _CAPTION_WIDTH)


def _contours(axes: Axes, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
    for value in (int(v) for v in np.union1d(reference, prediction) if v > 0):
        style = _style(value - 1)[1]
        for labels, colour in ((reference, _REFERENCE), (prediction, _PREDICTION)):
            mask = labels == value
            if mask.any() and not mask.all():
                axes.contour(mask.T, [0.5], colors=colour, linewidths=0.9, linestyles=style)
