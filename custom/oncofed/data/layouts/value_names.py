"""Names of label values, in or next to masks.

3D Slicer writes them into the header of its ``.seg.nrrd`` (``SegmentN_Name``, ``SegmentN_LabelValue``,
``SegmentN_Layer``; Slicer's documentation, Segmentations, file format), TotalSegmentator and Connectome Workbench into
an XML extension of NIfTI, ITK-SNAP, FreeSurfer and Slicer into text files, BIDS into ``_dseg.tsv``.
"""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.images import NIFTI, open_nifti, stem
from oncofed.data.label_names import named_values
from oncofed.data.layouts.tables import read_table
from oncofed.data.manifest import MANIFEST_FILE
from oncofed.errors import DataError

_NRRD = (".nrrd", ".nhdr")
_LONGEST = 1 << 20
_LINE = 1 << 16
_SEGMENT = re.compile(r"^Segment(\d+)_(Name|LabelValue|Layer):=(.*)$")
_XML_LABEL = re.compile(rb"<Label\b[^>]*?\bKey=\"(\d+)\"[^>]*>(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))</Label>", re.DOTALL)
_SNAP = re.compile(r'^\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*$')
_COLOURS = re.compile(r"^\s*(\d+)\s+(\S+)\s+\d+\s+\d+\s+\d+\s+\d+\s*$")
_TEXTS = (".txt", ".label", ".ctbl", ".lut")
_BEFORE_VOXELS = 352  # bytes of a NIfTI-1 header; extensions follow, up to vox_offset


@dataclass(frozen=True)
class ValueNames:
    """The meaning of a mask's values.

    Attributes:
        names: value -> name.
        overlapping: names of segments that share voxels with others, which a single number per voxel cannot express.
    """

    names: dict[int, str]
    overlapping: tuple[str, ...] = ()


def in_file(path: Path) -> ValueNames | None:
    """Return the names in a mask's header; None without any."""
    lower = path.name.lower()
    try:
        if lower.endswith(_NRRD):
            return _of_slicer(path)
        return _of_extension(path) if lower.endswith(NIFTI) else None
    except (OSError, EOFError, ValueError):  # reported when the case is read
        return None


def _of_slicer(path: Path) -> ValueNames | None:
    segments: dict[int, dict[str, str]] = {}
    read = 0
    with path.open("rb") as file:
        if not file.readline(16).startswith(b"NRRD"):
            return None
        while (line := file.readline(_LINE)).strip() and read < _LONGEST:
            read += len(line)
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if found := _SEGMENT.match(text):
                segments.setdefault(int(found[1]), {})[found[2]] = found[3].strip()
    values = {
        int(fields["LabelValue"]): fields["Name"]
        for _, fields in sorted(segments.items())
        if fields.get("Name") and fields.get("LabelValue", "").isdigit()
    }
    layers = {fields["Layer"] for fields in segments.values() if "Layer" in fields}
    above = tuple(
        fields.get("Name", "?")
        for _, fields in sorted(segments.items())
        if len(layers) > 1 and fields.get("Layer") != "0"
    )
    return ValueNames(values, above) if values or above else None


def _of_extension(path: Path) -> ValueNames | None:
    with open_nifti(path) as (file, _):
        head = file.read(_BEFORE_VOXELS)
        if len(head) < _BEFORE_VOXELS or head[348] == 0 or head[344:346] not in {b"n+", b"ni"}:
            return None
        order = "little" if int.from_bytes(head[:4], "little") == 348 else "big"
        size = int.from_bytes(file.read(4), order)  # type: ignore[arg-type]
        if not 8 < size <= _LONGEST:
            return None
        content = file.read(size - 4)
    names = {
        int(value): html.unescape((quoted or plain).decode("utf-8", "replace").strip())
        for value, quoted, plain in _XML_LABEL.findall(content)
    }
    names = {value: name for value, name in names.items() if name and name != "???"}
    return ValueNames(names) if names else None


@dataclass(frozen=True)
class _FolderNames:
    """The names that one folder's files agree on.

    Attributes:
        by_stem: file name without suffix -> path, and value -> name.
        all: the same for all files together.
    """

    by_stem: dict[str, tuple[str, dict[int, str]]]
    all: tuple[str, dict[int, str]] | None


class NamingFiles:
    """Files that name the values of masks.

    Each applies to the mask with its name, or to all masks in its folder.

    Attributes:
        used: paths of files that were read.
    """

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root = root
        self._files: dict[str, list[str]] = defaultdict(list)
        for path in sorted(files):
            lower = path.lower()
            if lower.endswith((*_TEXTS, f"/{MANIFEST_FILE}")) or (lower.endswith((".tsv", ".csv")) and "dseg" in lower):
                self._files[path.rpartition("/")[0]].append(path)
        self._folders: dict[str, _FolderNames] = {}
        self.used: set[str] = set()

    def find(self, mask: str) -> ValueNames | None:
        """Return the names next to a mask.

        A file with its name goes before others of a folder, an inner folder before an outer one.

        Raises:
            DataError: the regions overlap.
        """
        folder, _, name = mask.rpartition("/")
        bare = stem(Path(name))
        while self._files:
            if folder in self._files:
                inside = self._inside(folder)
                # Files that disagree are for different kinds of masks, and nothing tells which fits this mask.
                for agreed in (inside.by_stem.get(bare), inside.all):
                    if agreed:
                        self.used.add(agreed[0])
                        return ValueNames(agreed[1])
            if not folder:
                return None
            folder = folder.rpartition("/")[0]
        return None

    def _inside(self, folder: str) -> _FolderNames:
        if folder not in self._folders:
            named = [(path, names) for path in self._files[folder] if (names := self._read(path))]
            by_stem: dict[str, list[tuple[str, dict[int, str]]]] = defaultdict(list)
            for path, names in named:
                by_stem[stem(Path(path))].append((path, names))
            agreed = {bare: found for bare, those in by_stem.items() if (found := _agreed(those))}
            self._folders[folder] = _FolderNames(agreed, _agreed(named))
        return self._folders[folder]

    def _read(self, path: str) -> dict[int, str]:
        if path.endswith(MANIFEST_FILE):
            return _of_manifest(self._root / path)
        try:
            return _of_table(self._root / path) if path.endswith("sv") else _of_text(self._root / path)
        except (OSError, DataError):
            return {}


def _agreed(named: Sequence[tuple[str, dict[int, str]]]) -> tuple[str, dict[int, str]] | None:
    """Return the first of agreeing files; None if they differ."""
    return named[0] if named and all(names == named[0][1] for _, names in named) else None


def _of_manifest(path: Path) -> dict[int, str]:
    """Return the labels of a nested ``dataset.json``.

    Each task of the Decathlon has one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    labels = named_values(values.get("labels"), path) if isinstance(values, dict) else None
    return {int(float(value)): name for value, name in (labels or {}).items() if float(value)}


def _of_table(path: Path) -> dict[int, str]:
    table = read_table(path)
    rows = [row.cells for row in table.rows]
    return {int(row["index"]): row["name"] for row in rows if row.get("index", "").isdigit() and row.get("name")}


def _of_text(path: Path) -> dict[int, str]:
    if path.stat().st_size > _LONGEST:
        return {}
    names: dict[int, str] = {}
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _SNAP.match(line) or _COLOURS.match(line)
        if found is None:
            return {}  # some other text
        names[int(found[1])] = found[2]
    return {value: name for value, name in names.items() if value}
