"""The nuclei job over real images.

Registered, checked, split by stain and size, and trained in a federation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import left_running, oncofed

pytestmark = [pytest.mark.slow, pytest.mark.federation]


def test_from_a_folder_of_microscopy_to_a_federation(real_data: Path, tmp_path: Path) -> None:
    workspace = ["--workspace", tmp_path / "workspace"]
    registered = oncofed(
        *("data", "register", real_data / "nuclei", "--task", "segmentation", "--json", *workspace), home=tmp_path
    )
    assert json.loads(registered.stdout)["cases"] == 502
    checked = oncofed("data", "check", "nuclei_segmentation", "nuclei", "--json", *workspace, home=tmp_path)
    report = json.loads(checked.stdout)
    assert report["may_train"], report["why_not"]
    assert {row["aspect"]: row["verdict"] for row in report["rows"]}["labels"] == "converted"
    split = oncofed(
        *("data", "split", "nuclei", "--by", "stain,size", "--out", tmp_path / "sites", "--json", *workspace),
        home=tmp_path,
    )
    sites = json.loads(split.stdout)
    assert {"he-320x256", "brightfield-1024x1024", "fluorescence-256x256"} <= set(sites)
    assert sum(site["cases"] for site in sites.values()) == 502
    arguments = [
        f"{name}={sites[folder]['folder']}"
        for name, folder in (
            ("he", "he-320x256"),
            ("fluorescence", "fluorescence-360x360"),
        )
    ]
    ran = oncofed(
        *("job", "run", "nuclei_segmentation", "--site", arguments[0], "--site", arguments[1], "--rounds", "1"),
        *("--no-baselines", "--json", "--out", tmp_path / "run", *workspace),
        home=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["status"] == "completed"
    assert result["metric"] == "pq"
    assert result["sites"]["fluorescence"]["more"]["federated"]["dice"] > 0.3
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert left_running(tmp_path) == []
