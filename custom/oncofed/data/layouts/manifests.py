"""Folders with a ``dataset.json``: Decathlon's and nnU-Net's.

Decathlon: Antonelli et al. 2022. nnU-Net: Isensee et al., Nature Methods 2021, and its documentation/dataset_format.md.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oncofed.data.images import image_format, stem
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, Item, name_of, patient_of, unique
from oncofed.data.layouts.kinds import DECATHLON, NNUNET
from oncofed.data.manifest import MANIFEST_FILE, Entry, Manifest, Quarantined, Split, manifest_of, manifest_values

_NOT_NAMED = f"that {MANIFEST_FILE} does not name"
_WITHOUT_CHANNEL = "without a channel in its name (_0000)"
_UNLABELLED = "unlabelled test image"


def from_manifest(root: Path, files: Sequence[str], names: Mapping[int, str]) -> FolderLayout:
    """Return the cases of a folder with a ``dataset.json``.

    Args:
        root: the folder.
        files: all of it.
        names: label value -> name, if the user states it.

    Raises:
        DataError: it is no manifest, or its labels overlap.
    """
    path = root / MANIFEST_FILE
    values = manifest_values(path)
    if isinstance(values, dict) and set(names) - {0}:
        values = {**values, "labels": {str(value): name for value, name in names.items()}}
    if (
        isinstance(values, dict)
        and "training" not in values
        and {"channel_names", "file_ending", "dataset"} & set(values)
    ):
        return _nnunet(files, manifest_of({**values, "training": []}, path), values)
    return _decathlon(files, manifest_of(values, path))


def _decathlon(files: Sequence[str], manifest: Manifest) -> FolderLayout:
    layout = FolderLayout(DECATHLON, modality=manifest.modality, task=manifest.task, tables=[MANIFEST_FILE])
    layout.labels = {int(float(k)): v for k, v in manifest.labels.items()}
    layout.targets = manifest.targets
    known = set(files)
    channels = _channel_files(files)
    bare = [os.path.normpath(entry) for entry in manifest.test if isinstance(entry, str)]
    labels = {stem(Path(f)): f for f in files if f.startswith("labelsTs/") and image_format(Path(f))}
    tests = {path: labels[stem(Path(path))] for path in bare if stem(Path(path)) in labels}
    # If only "training" is filled, the patients are not split yet.
    dealt = bool(manifest.validation or tests) or any(not isinstance(e, str) and e.label for e in manifest.test)
    entries: list[tuple[Split, Entry]] = [
        *manifest.by_split(),
        *(("test", Entry(image=image, label=label)) for image, label in tests.items()),
    ]
    for split, entry in entries:
        images = tuple(os.path.normpath(i) for i in entry.images)
        name = entry.name or name_of(images[0])
        label = os.path.normpath(entry.label) if isinstance(entry.label, str) else entry.label
        outside = [p for p in (*images, label) if isinstance(p, str) and (p.startswith("..") or Path(p).is_absolute())]
        if outside:
            layout.bad.append(Quarantined(name=name, reason="it lies outside the folder. Expected a path inside it"))
            continue
        if len(images) == 1 and images[0] not in known:  # nnU-Net 1 lists X for the files X_0000, X_0001
            folder = images[0].rpartition("/")[0]
            images = tuple(channels.get((folder, stem(Path(images[0]))), images))
        patient = entry.patient or patient_of(images[0])
        listed = split if dealt else entry.split
        layout.items.append(
            Item(
                name=name,
                patient=patient,
                images=images,
                label=label,
                split=listed,
                modality=entry.modality,
                tags=entry.tags,
                targets=entry.targets,
                looked_for=None if entry.looked_for is None else tuple(entry.looked_for),
            )
        )
    layout.items = unique(layout.items)
    layout.left_out = dict.fromkeys((path for path in bare if path not in tests), _UNLABELLED)
    for path in bare:
        of_path = channels.get((path.rpartition("/")[0], stem(Path(path))), [])
        layout.left_out |= dict.fromkeys((f for f in of_path if path not in tests and path not in known), _UNLABELLED)
    _leave_out_others(layout, files, _NOT_NAMED)
    return layout


def _nnunet(files: Sequence[str], header: Manifest, values: Mapping[str, Any]) -> FolderLayout:
    layout = FolderLayout(NNUNET, modality=header.modality, task="segmentation", tables=[MANIFEST_FILE])
    layout.labels = {int(k): v for k, v in header.labels.items()}
    listed = values.get("dataset")
    if isinstance(listed, dict):  # version 2 may name the files of each case
        for name, entry in listed.items():
            images = tuple(os.path.normpath(str(i)) for i in entry.get("images", ())) if isinstance(entry, dict) else ()
            label = os.path.normpath(str(entry["label"])) if images and entry.get("label") else None
            _add(layout, name, images, label, None)
    labels = {(f.split("/", 1)[0], stem(Path(f))): f for f in files if f.startswith("labels") and image_format(Path(f))}
    for (folder, name), channels in sorted(_channel_files(files).items()):
        split = _SPLITS.get(folder)
        if folder not in _SPLITS or (isinstance(listed, dict) and name in listed):
            continue
        label = labels.pop((folder.replace("images", "labels"), name), None)
        if label is None and split == "test":
            layout.left_out |= dict.fromkeys(channels, _UNLABELLED)
            continue
        _add(layout, name, tuple(channels), label, split)
    layout.items = unique(layout.items)
    used = {mask for item in layout.items for mask in item.masks}
    layout.left_out |= dict.fromkeys(sorted(set(labels.values()) - used), NO_IMAGE)
    _leave_out_others(layout, files, _WITHOUT_CHANNEL)
    return layout


_SPLITS: dict[str, Split | None] = {
    "imagesTr": None,
    "imagesTs": "test",
    "imagesVa": "validation",
    "imagesVal": "validation",
}


def _add(layout: FolderLayout, name: str, images: tuple[str, ...], label: str | None, split: Split | None) -> None:
    expected = max(1, len(layout.modality))
    colour = expected == 3 and len(images) == 1 and image_format(Path(images[0])) == "raster"
    numbers = [int(stem(Path(image))[-4:]) for image in images if re.search(r"_\d{4}$", stem(Path(image)))]
    if len(images) != expected and not colour:
        reason = f"has {len(images)} channels, expected {expected} (channel_names of dataset.json)"
        source = images[0] if images else None
        layout.bad.append(Quarantined(name=name, reason=reason, source=source))
        layout.left_out |= dict.fromkeys(
            (*images[1:], *((label,) if label else ())), "file of a case that lacks a channel"
        )
    elif len(numbers) == expected and sorted(numbers) != list(range(expected)):
        present = ", ".join(f"{number:04d}" for number in sorted(numbers))
        reason = f"has the channels {present}, expected 0000 to {expected - 1:04d}"
        layout.bad.append(Quarantined(name=name, reason=reason, source=images[0]))
        layout.left_out |= dict.fromkeys(
            (*images[1:], *((label,) if label else ())), "file of a case that lacks a channel"
        )
    else:
        layout.items.append(Item(name=name, patient=patient_of(name), images=images, label=label, split=split))


def _channel_files(files: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Return (folder, name) -> sorted files ``name_0000``, ``name_0001``."""
    channels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in files:
        folder, _, name = path.rpartition("/")
        found = re.fullmatch(r"(.+)_(\d{4})\.[A-Za-z0-9.]+", name)
        if found and image_format(Path(path)):
            channels[folder, found[1]].append(path)
    return {key: sorted(paths) for key, paths in channels.items()}


def _leave_out_others(layout: FolderLayout, files: Sequence[str], trait: str) -> None:
    """Leave out each unused image file, with what it lacks."""
    used = {path for item in layout.items for path in (*item.images, *item.masks)}
    used |= {case.source for case in layout.bad if case.source}
    for path in files:
        if image_format(Path(path)) and path not in used and path not in layout.left_out:
            kind = "mask" if path.startswith("labels") else "image"
            layout.left_out[path] = f"{kind} {trait}"
