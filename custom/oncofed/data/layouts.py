"""Which cases lie in a folder, by the layouts that hospitals and data sets use; no pixel is read here.

Decathlon: Antonelli et al. 2022. nnU-Net raw: Isensee et al., Nature Methods 2021. BIDS names a patient ``sub-X``, TCGA
by the first twelve letters of its barcodes.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from oncofed.data.images import image_format, stem
from oncofed.data.manifest import MANIFEST_FILE, Manifest, Quarantined, Split, read_manifest
from oncofed.errors import DataError

IMAGE_FOLDERS = ("images", "imagesTr", "imgs", "image")
LABEL_FOLDERS = ("labels", "labelsTr", "masks", "annotations", "label", "mask")
_SLIDES_ALONE = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide")
SLIDES = (*_SLIDES_ALONE, ".tif", ".tiff")
_LABEL_ENDINGS = ("_seg", "-seg", "_label", "-label", "_mask", "-mask", "_labels", "_segmentation")
_PATIENT_PATTERNS = (r"(?:^|/)(sub-[A-Za-z0-9]+)", r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})")
_SPLIT_NAMES: dict[str, Split] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Item:
    """One case as its folder's layout tells it.

    Attributes:
        name: unique in the dataset.
        patient: as the source names it; it is hashed before it is written anywhere.
        images: paths inside the folder, one a channel.
        label: path of a mask inside the folder, or number of a class.
        split: where the layout says it.
        modality: where the layout says it.
        tags: other columns of a table.
    """

    name: str
    patient: str
    images: tuple[str, ...]
    label: str | int | None = None
    split: Split | None = None
    modality: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Layout:
    """What a folder holds.

    Attributes:
        kind: name of the layout, for people.
        items: its cases.
        labels: label value -> name, as far as the layout says.
        modality: channel -> name, as far as the layout says.
        task: what the layout is for; None where it does not say.
        bad: cases that cannot be used.
        left_out: path of a file that is no case -> why it is not.
        tables: paths of the tables and manifests that it is read from.
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    bad: list[Quarantined] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


def find_layout(root: Path, files: Sequence[str], table: Path | None, task: str | None) -> Layout | None:
    """Return the cases of ``root``, or None where it holds neither a known layout nor an image file.

    Args:
        root: the folder.
        files: as ``find_files`` finds them.
        table: a CSV or TSV file with a column ``image``; None looks for one in the folder.
        task: "segmentation", "classification" or "slides", where the user says it.

    Raises:
        DataError: a manifest or table is there and cannot be used.
    """
    if table is not None:
        return _table(root, table, files)
    if MANIFEST_FILE in files:
        return _from_manifest(root, files)
    tables = [f for f in files if "/" not in f and f.lower().endswith((".csv", ".tsv")) and _is_table(root / f)]
    if len(tables) > 1:
        raise DataError(f"{root}: found {len(tables)} tables ({', '.join(tables)}). Say which with --labels FILE.")
    if tables:
        return _table(root, root / tables[0], files)
    pairs = _folders(files)
    if pairs and task != "classification":
        return _pairs(files, *pairs)
    slides = [f for f in files if f.lower().endswith(SLIDES)]
    if task == "slides" or (task is None and any(not image_format(Path(f)) for f in slides)):
        items = [Item(_name(f), patient_of(f, _name(f)), (f,), modality="SM") for f in slides]
        return Layout("slides", _unique(items), task="slides")
    images = [f for f in files if image_format(Path(f))]
    if not images:
        return None
    if task == "classification" or (task is None and _is_class_folders(files, images)):
        return _class_folders(files, images)
    return _loose(files, images)


def patient_of(path: str, default: str) -> str:
    """Return the patient whom a path names by BIDS or TCGA, else ``default``."""
    for pattern in _PATIENT_PATTERNS:
        found = re.search(pattern, path)
        if found:
            return found[1]
    return default


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns (lower case) and rows of a CSV or TSV file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Expected a table with columns image, label, patient, split.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table in UTF-8 ({error}).") from None
    lines = text.splitlines()
    delimiter = "\t" if lines and lines[0].count("\t") > lines[0].count(",") else ","
    if lines and ";" in lines[0] and delimiter not in lines[0]:
        delimiter = ";"
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    return columns, [{k: (v or "").strip() for k, v in row.items() if k and isinstance(v, str)} for row in reader]


def _is_table(path: Path) -> bool:
    try:
        return "image" in read_table(path)[0]
    except DataError:
        return False


def _table(root: Path, table: Path, files: Sequence[str]) -> Layout:
    columns, rows = read_table(table)
    if "image" not in columns:
        raise DataError(f"{table}: found the columns {columns}, expected at least image (and label, patient, split).")
    layout = Layout("table", tables=[path for path in files if root / path == table])
    known = set(files)
    masks = _masks(files, LABEL_FOLDERS)
    classes = _table_classes(rows, known) if "label" in columns else {}
    layout.labels = {number: name for name, number in classes.items() if name != str(number)}
    if classes:
        layout.task = "classification"
    for number, row in enumerate(rows, start=2):
        image = _resolve(row["image"], known, IMAGE_FOLDERS)
        if image is None:
            layout.bad.append(Quarantined(name=row["image"] or f"line {number}", reason=_why_not(row["image"], number)))
            continue
        text = row.get("label", "")
        label: str | int | None = classes.get(text)
        if "label" not in columns:
            label = masks.get(stem(Path(image)))
        elif text and label is None:
            label = _resolve(text, known, LABEL_FOLDERS)
            if label is None:
                reason = _why_not(text, number, "label")
                layout.bad.append(Quarantined(name=row["image"], reason=reason, source=image))
                continue
        split = _SPLIT_NAMES.get(row.get("split", "").lower())
        if row.get("split") and split is None:
            reason = f"line {number} says split {row['split']!r}, expected one of {sorted(set(_SPLIT_NAMES))}"
            layout.bad.append(Quarantined(name=row["image"], reason=reason, source=image))
            continue
        tags = {k: v for k, v in row.items() if k not in {"image", "label", "patient", "split", "modality"} and v}
        name = _name(image)
        layout.items.append(
            Item(name, row.get("patient") or patient_of(image, name), (image,), label, split, row.get("modality"), tags)
        )
    layout.items = _unique(layout.items)
    if layout.items and all(item.images[0].lower().endswith(_SLIDES_ALONE) for item in layout.items):
        layout.task = "slides"
    used = {i for item in layout.items for i in (*item.images, item.label)}
    layout.left_out = {
        f: "image that the table does not name" for f in files if image_format(Path(f)) and f not in used
    }
    return layout


def _table_classes(rows: list[dict[str, str]], known: set[str]) -> dict[str, int]:
    """Return text -> class number where a table's labels are classes and not paths."""
    texts = sorted({row.get("label", "") for row in rows} - {""})
    if any(image_format(Path(t)) or t in known or "/" in t for t in texts):
        return {}
    if all(re.fullmatch(r"\d+", t) for t in texts):
        return {t: int(t) for t in texts}
    return {t: number for number, t in enumerate(texts)}


def _resolve(text: str, known: set[str], folders: Sequence[str]) -> str | None:
    """Return the file that a table means: its path, or its name inside one of the usual folders."""
    path = os.path.normpath(text.replace("\\", "/")) if text else ""
    candidates = (path, *(f"{folder}/{path}" for folder in folders))
    return next((candidate for candidate in candidates if candidate in known), None)


def _masks(files: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Return name of the case -> mask, of the files in the first of ``folders`` that is there."""
    top = {f.split("/", 1)[0] for f in files if "/" in f}
    folder = next((f for f in folders if f in top), None)
    return {
        _without_ending(_name(f[len(folder) + 1 :])): f
        for f in files
        if folder and f.startswith(f"{folder}/") and image_format(Path(f))
    }


def _why_not(text: str, line: int, column: str = "image") -> str:
    path = PurePosixPath(text)
    if not text:
        return f"line {line} has no {column}"
    if path.is_absolute() or os.path.normpath(text).startswith(".."):
        return f"line {line}: its {column} lies outside the folder. Expected a path inside it"
    return f"line {line}: its {column} file is missing"


def _from_manifest(root: Path, files: Sequence[str]) -> Layout:
    values = json.loads((root / MANIFEST_FILE).read_text(encoding="utf-8")) if _is_json(root / MANIFEST_FILE) else None
    if isinstance(values, dict) and "training" not in values and ("channel_names" in values or "file_ending" in values):
        return _nnunet(root, files, Manifest.model_validate({**_nnunet_header(values), "training": []}))
    manifest = read_manifest(root)
    layout = Layout("Decathlon", modality=manifest.modality, task=manifest.task, tables=[MANIFEST_FILE])
    layout.labels = {int(float(k)): v for k, v in manifest.labels.items()}
    # Where nothing but "training" is filled, nobody has dealt the patients yet.
    dealt = bool(manifest.validation) or any(not isinstance(e, str) and e.label for e in manifest.test)
    for split, entry in manifest.by_split():
        images = tuple(os.path.normpath(i) for i in entry.images)
        name = entry.name or _name(images[0])
        label = os.path.normpath(entry.label) if isinstance(entry.label, str) else entry.label
        outside = [p for p in (*images, label) if isinstance(p, str) and (p.startswith("..") or Path(p).is_absolute())]
        if outside:
            layout.bad.append(Quarantined(name=name, reason="it lies outside the folder. Expected a path inside it"))
            continue
        layout.items.append(
            Item(
                name,
                entry.patient or patient_of(images[0], name),
                images,
                label,
                split if dealt else entry.split,
                entry.modality,
                entry.tags,
            )
        )
    layout.items = _unique(layout.items)
    bare = [os.path.normpath(entry) for entry in manifest.test if isinstance(entry, str)]
    layout.left_out |= dict.fromkeys(bare, "unlabelled test image")
    return layout


def _nnunet_header(values: dict[str, object]) -> dict[str, object]:
    labels = values.get("labels")
    named = {str(v): k for k, v in labels.items() if isinstance(v, int)} if isinstance(labels, dict) else {}
    return {"labels": named, "modality": values.get("channel_names", {})}


def _nnunet(root: Path, files: Sequence[str], header: Manifest) -> Layout:
    layout = Layout("nnU-Net raw", modality=header.modality, task="segmentation", tables=[MANIFEST_FILE])
    layout.labels = {int(k): v for k, v in header.labels.items()}
    channels: dict[str, list[str]] = {}
    for path in files:
        found = re.fullmatch(r"imagesTr/(.+)_(\d{4})\.[A-Za-z0-9.]+", path)
        if found and image_format(Path(path)):
            channels.setdefault(found[1], []).append(path)
    labels = {stem(Path(f)): f for f in files if f.startswith("labelsTr/") and image_format(Path(f))}
    for name, images in sorted(channels.items()):
        expected = max(1, len(header.modality))
        if len(images) != expected:
            reason = f"has {len(images)} channels, expected {expected} (channel_names of dataset.json)"
            layout.bad.append(Quarantined(name=name, reason=reason, source=images[0]))
            continue
        layout.items.append(Item(name, patient_of(name, name), tuple(sorted(images)), labels.get(name)))
    layout.left_out |= {f: "unlabelled test image" for f in files if f.startswith("imagesTs/")}
    return layout


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _folders(files: Sequence[str]) -> tuple[str, str] | None:
    top = {f.split("/", 1)[0] for f in files if "/" in f}
    images = next((f for f in IMAGE_FOLDERS if f in top), None)
    labels = next((f for f in LABEL_FOLDERS if f in top), None)
    return (images, labels) if images and labels else None


def _pairs(files: Sequence[str], images: str, labels: str) -> Layout:
    layout = Layout("images with masks", task="segmentation")
    masks = _masks(files, [labels])
    for path in files:
        if path.startswith(f"{images}/") and image_format(Path(path)):
            name = _name(path[len(images) + 1 :])
            layout.items.append(Item(name, patient_of(path, name), (path,), masks.pop(name, None)))
    layout.left_out |= dict.fromkeys(masks.values(), "mask without an image")
    layout.items = _unique(layout.items)
    return layout


def _is_class_folders(files: Sequence[str], images: Sequence[str]) -> bool:
    tops = {f.split("/", 1)[0] for f in images if "/" in f}
    flat = any("/" not in f for f in images)
    rasters = all(image_format(Path(f)) == "raster" for f in images)
    return bool(images) and not flat and rasters and 2 <= len(tops) <= 1000 and len(images) >= 2 * len(tops)


def _class_folders(files: Sequence[str], images: Sequence[str]) -> Layout:
    layout = Layout("one folder a class", task="classification")
    tops = sorted({f.split("/", 1)[0] for f in images})
    split_names = {t: _SPLIT_NAMES[t.lower()] for t in tops if t.lower() in _SPLIT_NAMES}
    nested = len(split_names) == len(tops) and bool(tops)
    position = 1 if nested else 0
    usable = [f for f in images if f.count("/") > position]
    classes = sorted({f.split("/")[position] for f in usable})
    layout.labels = dict(enumerate(classes))
    numbers = {name: number for number, name in layout.labels.items()}
    for path in usable:
        parts = path.split("/")
        name = _name(path)
        split = split_names[parts[0]] if nested else None
        layout.items.append(Item(name, patient_of(path, name), (path,), numbers[parts[position]], split))
    layout.left_out |= dict.fromkeys(set(images) - set(usable), "image outside a class folder")
    return layout


def _loose(files: Sequence[str], images: Sequence[str]) -> Layout:
    layout = Layout("loose images")
    names = {_name(f): f for f in images}
    masks = {_without_ending(n): f for n, f in names.items() if _without_ending(n) != n and _without_ending(n) in names}
    for path in images:
        if path in masks.values():
            continue
        name = _name(path)
        layout.items.append(Item(name, patient_of(path, name), (path,), masks.get(name)))
    if masks:
        layout.task = "segmentation"
    layout.items = _unique(layout.items)
    return layout


def _name(path: str) -> str:
    return stem(Path(path.replace("/", "_"))) if path.count("/") != 1 else stem(Path(path))


def _without_ending(name: str) -> str:
    ending = next((e for e in _LABEL_ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _unique(items: list[Item]) -> list[Item]:
    """Return items whose names differ; a name given twice takes its folder along."""
    counts = Counter(item.name for item in items)
    seen: Counter[str] = Counter()
    unique = []
    for item in items:
        if counts[item.name] > 1:
            longer = stem(Path(item.images[0].replace("/", "_")))
            seen[longer] += 1
            name = longer if seen[longer] == 1 else f"{longer}-{seen[longer]}"
            patient = name if item.patient == item.name else item.patient
            unique.append(replace(item, name=name, patient=patient))
        else:
            unique.append(item)
    return unique
