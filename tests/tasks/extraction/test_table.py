"""What a dataset states of its slides goes with their features."""

from __future__ import annotations

from pathlib import Path

import feature_files as made
from oncofed.data.features.kept import Kept, KeptSlide
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.target_columns import parse_targets
from oncofed.tasks.extraction.table import write_table

ROWS = """image,patient,split,age,days,dead,g,size_ml,edema,air,kind
s0,p1,train,61,100,1,II,3.25,1,0,lobular
s1,p1,train,61,100,1,I,1.234,,1,ductal
s2,p2,test,48,2400.5,0,,1800,0,,unknown
s3,p3,train,,30,0,III,,,,
"""
TARGETS = (
    "survival=survival:days,dead:days",
    "grade=grade:g:I<II<III",
    "volume=value:size_ml:ml",
    "findings=labels:edema,air",
    "type=class:kind:ductal|lobular|unknown",
)


def _read(folder: Path, table: Path, targets: tuple[str, ...], out: Path) -> Manifest:
    stated = FeatureOptions(encoder="uni", tile=256, mpp=0.5)
    options = RegisterOptions(folder, "slides", out, workers=1, features=stated, table=table)
    return register(RegisterOptions(**{**vars(options), "targets": parse_targets(targets)}))


def test_targets_and_other_columns_go_with_the_features(tmp_path: Path) -> None:
    for number in range(4):
        made.trident(tmp_path / "in" / f"s{number}.h5", made.vectors(seed=number))
    (tmp_path / "table.csv").write_text(ROWS)
    first = _read(tmp_path / "in", tmp_path / "table.csv", TARGETS, tmp_path / "one")
    assert set(first.targets) == {"survival", "grade", "volume", "findings", "type"}
    kept = Kept(
        dataset="slides",
        encoder="uni",
        size=8,
        slides={
            str(entry.name): KeptSlide(file=f"{entry.name}.h5", made_of="", tiles=12, tile=256, mpp=0.5)
            for entry in first.entries
        },
    )
    write_table(tmp_path / "in", first, kept)
    again = _read(
        tmp_path / "in", tmp_path / "in" / "slides.csv", (str(tmp_path / "in" / "targets.yaml"),), tmp_path / "two"
    )
    assert not again.quarantine
    assert again.targets == first.targets
    assert [(e.name, e.targets, e.tags, e.split) for e in again.entries] == [
        (e.name, e.targets, e.tags, e.split) for e in first.entries
    ]
    patients = [entry.patient for entry in again.entries]
    assert patients[0] == patients[1]
    assert len(set(patients)) == 3


def test_without_targets_no_file_says_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text("targets: {}\n")
    write_table(tmp_path, Manifest(name="slides", training=[]), Kept(dataset="slides", encoder="uni", size=8))
    assert (tmp_path / "slides.csv").read_text() == "image,patient,label,split\n"
    assert not (tmp_path / "targets.yaml").exists()
