"""A site's profile as a page with histograms and pictures.

It shows patients' images: it stays at the site.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from oncofed.data.images import read_image
from oncofed.data.manifest import Entry, Manifest, inside
from oncofed.data.profile import Profile
from oncofed.errors import DataError
from oncofed.report.html import svg
from oncofed.report.pages import render

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_PICTURES = 12
_SIDE = 160
_BARS = 20


def write_profile_page(profile: Profile, manifest: Manifest, folder: Path, path: Path) -> Path:
    """Write the page and return it.

    Args:
        profile: of the dataset.
        manifest: of the dataset.
        folder: of the dataset.
        path: of the page.
    """
    entries = [entry for entry in manifest.entries if entry.is_read]
    html = render(
        "profile.html",
        profile=profile,
        histograms=svg(_histograms(entries, manifest)),
        pictures=_pictures(folder, entries),
        quarantine=manifest.quarantine[:100],
    )
    path.write_text(html, encoding="utf-8")
    return path


def _histograms(entries: Sequence[Entry], manifest: Manifest) -> Figure:
    panels: list[tuple[str, str, list[float]]] = []
    for number in range(max((len(entry.shape or []) for entry in entries), default=0)):
        sizes = [float(entry.shape[number]) for entry in entries if entry.shape and len(entry.shape) > number]
        panels.append((f"size, stored axis {number + 1}", "voxels", sizes))
    for number in range(3):
        spacings = [entry.spacing[number] for entry in entries if entry.spacing and len(entry.spacing) > number]
        if spacings:
            panels.append((f"spacing, stored axis {number + 1}", "mm", spacings))
    known = [entry.intensity for entry in entries if entry.intensity]
    panels.append(("median intensity in the foreground", "stored units", [i.median for i in known]))
    panels.append(("99.5th percentile of intensity", "stored units", [i.high for i in known]))
    for value, name in manifest.labels.items():
        shares = [
            100 * (entry.label_values or {}).get(value, 0) / max(sum((entry.label_values or {}).values()), 1)
            for entry in entries
            if entry.label_values
        ]
        if value != "0" and shares:
            panels.append((f"share of {name if name != value else f'label {value}'}", "% of voxels", shares))
    objects = [float(entry.instances) for entry in entries if entry.instances is not None]
    if manifest.label_kind == "instances" and objects:
        panels.append(("numbered objects", "of an image", objects))
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, 2.3 * rows), squeeze=False)
    for axis, (title, unit, values) in zip(axes.flat, panels, strict=False):
        axis.hist(values, bins=min(_BARS, max(3, len(set(values)))), color="#4477aa")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.set_ylabel("cases", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.yaxis.get_major_locator().set_params(integer=True)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    return figure


def _pictures(folder: Path, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return pictures of cases spread over the dataset.

    Pairs of (caption, PNG in base64).
    """
    chosen = [entry for entry in entries if not entry.tiles]
    chosen = chosen[:: max(1, len(chosen) // _PICTURES)][:_PICTURES]
    pictures = []
    for entry in chosen:
        try:
            image = read_image(inside(folder, entry.images[0]))
        except DataError:
            continue
        values = image.values
        if image.dimensions == 3:
            values = values[:, :, values.shape[2] // 2]
        low, high = np.percentile(values[..., :3], (1, 99))
        scaled = np.clip((values.astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1) * 255
        pixels = scaled.astype(np.uint8).swapaxes(0, 1)
        picture = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])
        if image.dimensions == 3:
            # RAS: the first axis points right, the second to the front, which belongs on top.
            picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        picture.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        pictures.append((entry.name or "", base64.b64encode(buffer.getvalue()).decode()))
    return pictures
