"""Made images with a table, registered by the command that a job's card gives."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from typer.testing import CliRunner

from oncofed.cli.main import app
from oncofed.data.features import FeatureBag, write_features
from synthetic import make_slides, make_volume

_JOBS = Path(__file__).parents[1] / "jobs"
# Made slides have pixels of 1 micron, and few of them.
_OF_MADE_SLIDES = {"--tile": "64", "--mpp": "1"}
# Column of a card's table -> a cell of a patient, by the patient's number.
_CELLS: dict[str, Callable[[int], object]] = {
    "patient": lambda n: f"P{n}",
    "label": lambda n: ["normal", "tumour"][n % 2],
    "months": lambda n: 3 + 7 * (n % 11),
    "status": lambda n: ["dead", "alive"][n % 3 == 0],
    "age": lambda n: "" if n % 9 == 0 else 45 + n % 40,
    "sex": lambda n: ["female", "male"][n % 2],
    "stage": lambda n: ["I", "II", "III", "IV"][n % 4],
    "isup": lambda n: n % 6,
    "atelectasis": lambda n: [0, 1, 0, 1, -1][n % 5],
    "effusion": lambda n: [1, 0, ""][n % 3],
    "pleural thickening": lambda n: n % 2,
}


def card_of(job: str) -> str:
    """Return the text of a job's card."""
    return (_JOBS / job / "README.md").read_text(encoding="utf-8")


def columns_of(job: str) -> list[str]:
    """Return the columns of the table that a card shows."""
    (header,) = re.findall(r"^```csv\n(.*)$", card_of(job), re.MULTILINE)
    return str(header).split(",")


def make_pictures(folder: Path, count: int, channels: int) -> list[str]:
    """Write noise with a bright square, larger by the number's rest by six; return the names."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"{number:03}.png" for number in range(count)]
    for number, name in enumerate(names):
        pixels = rng.normal(80, 12, (32, 32, channels))
        pixels[4 : 8 + 4 * (number % 6), 4:16] += 60
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).squeeze()).save(folder / name)
    return names


def _make_volumes(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"P{number}.nii.gz" for number in range(count)]
    for number, name in enumerate(names):
        nib.save(nib.Nifti1Image(100 * make_volume(number)[0], np.eye(4)), folder / name)
    return names


def _make_drawn_volumes(folder: Path, count: int) -> list[str]:
    """Write volumes and their masks, in a folder each."""
    names = [f"P{number}.nii.gz" for number in range(count)]
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True)
    for number, name in enumerate(names):
        image, label = make_volume(number)
        nib.save(nib.Nifti1Image(100 * image, np.eye(4)), folder / "images" / name)
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labels" / name)
    return names


def _make_slides(folder: Path, count: int) -> list[str]:
    names = sorted(make_slides(folder, count, side=512))
    (folder / "labels.csv").unlink()
    return names


def _make_features(folder: Path, count: int) -> list[str]:
    """Write features as of the jobs' encoder, which differ by the number's rest by two."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"{number:03}.h5" for number in range(count)]
    places = np.array([(n % 4 * 512, n // 4 * 512) for n in range(12)], np.int32)
    for number, name in enumerate(names):
        values = rng.normal(number % 2, 1, (12, 1536)).astype(np.float16)
        write_features(folder / name, FeatureBag(values, places, 512.0, 256, 0.5, "uni2-h", "ab" * 32))
    return names


_MAKERS: dict[str, Callable[[Path, int], list[str]]] = {
    "chest_findings": lambda folder, count: make_pictures(folder, count, 1),
    "grade_tiles": lambda folder, count: make_pictures(folder, count, 3),
    "survival_ct": _make_volumes,
    "hippocampus_survival": _make_drawn_volumes,
    "survival_slides": _make_slides,
    "survival_features": _make_features,
    "slide_features": _make_features,
}
CARDED = sorted(_MAKERS)


def register_by_card(job: str, source: Path, out: Path, count: int = 40) -> Path:
    """Make ``count`` patients and a table with the card's columns, and register them as the card says."""
    names = _MAKERS[job](source, count)
    table = source.parent / "table.csv"
    cells: dict[str, Callable[[int], object]] = {**_CELLS, "image": lambda n: names[n]}
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns_of(job))
        rows.writerows([cells[column](n) for column in columns_of(job)] for n in range(count))
    command = re.findall(r"^oncofed (data register (?:.*\\\n)*.*)$", card_of(job), re.MULTILINE)[0]
    words = shlex.split(command.replace("\\\n", " "))
    words[2] = str(source)
    made = {"--labels": str(table), **({} if "--features" in words else _OF_MADE_SLIDES)}
    words = [made.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.output
    return out
