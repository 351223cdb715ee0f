"""The plot of a comparison of strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def write_plot(comparison: dict[str, Any], path: Path) -> None:
    """Plot curves by round and each strategy's scores as SVG.

    Args:
        comparison: content of ``comparison.json``.
        path: of the file.
    """
    rows = [row for row in comparison["rows"] if row["mean"] is not None]
    figure, (curves, scores) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for row in rows:
        points = sorted((int(number), value) for number, value in row["curve"].items())
        curves.plot([n for n, _ in points], [v for _, v in points], marker=".", label=row["strategy"])
    curves.set(xlabel="round", ylabel=f"mean validation {comparison['metric_name']}")
    curves.legend(frameon=False, fontsize=8)
    for index, row in enumerate(rows):
        values = list(row["sites"].values())
        scores.plot([index] * len(values), values, "o", alpha=0.6, color=f"C{index}")
        scores.hlines(row["mean"], index - 0.25, index + 0.25, color=f"C{index}")
    for name, style in (("alone", ":"), ("pooled", "--")):
        if comparison[name] is not None:
            scores.axhline(comparison[name], linestyle=style, color="grey", linewidth=1, label=name)
    if scores.get_legend_handles_labels()[0]:
        scores.legend(frameon=False, fontsize=8)
    scores.set_xticks(range(len(rows)), [row["strategy"] for row in rows], rotation=20)
    scores.set(ylabel=f"{comparison['metric_name']} of each site's test patients")
    for axes in (curves, scores):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
