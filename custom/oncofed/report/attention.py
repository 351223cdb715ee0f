"""The plot of how far answers move without tiles."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from oncofed.tasks.deletion import Deletion

_STYLES = ("-", "--", ":")


def deletion_curves(found: Deletion) -> Figure:
    """Return a curve for each kind of tiles that were dropped."""
    figure, axes = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
    for (name, curve), style in zip(found.moved.items(), _STYLES, strict=True):
        axes.plot(found.shares, curve, style, marker="o", markersize=3, label=f"without {name}")
    ticks = [f"{share:.0%}" for share in found.shares]
    axes.set(xscale="log", xlabel="tiles dropped", ylabel="the answer moved by")
    axes.set_xticks(found.shares, ticks)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure
