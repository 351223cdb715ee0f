"""A folder of features, with the slides that they are of where these are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from oncofed.data.case_facts import reason_of
from oncofed.data.features.files import NoFeaturesError
from oncofed.data.features.survey import Agreed, FeatureOptions, Said, agree, survey
from oncofed.data.folder import Found
from oncofed.data.grouping import named
from oncofed.data.layouts import kinds
from oncofed.data.layouts.base import FolderLayout, Item, patient_of, unique
from oncofed.data.layouts.listed import listed
from oncofed.data.layouts.slides import SLIDES
from oncofed.data.layouts.tables import TABLES, Row, Table, columns_of
from oncofed.data.layouts.targets import read_renamed, read_with_targets
from oncofed.data.layouts.written import Files
from oncofed.data.manifest import Quarantined
from oncofed.data.slides import open_slide
from oncofed.data.target_columns import TableTargets
from oncofed.errors import DataError

_STORE = ".zarr"
_SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".pth", _STORE, ".zarr.zip")
# Columns that name the slide or the patient in tables of CLAM, STAMP and cohorts.
_CALLED = {
    "image": ("slide", "slide_id", "filename", "file"),
    "patient": ("patient_id", "case_id", "case"),
}
_OF_OTHERS = "features of another encoder, of a slide that has those that were asked for"
_UNPLACED = "features without coordinates, of a slide that has them with coordinates"
_NOT_LISTED = "features that the table does not name: add a row for them, or leave them out"
_REFUSED = "its features are set aside"
_SLIDE_ALONE = "slide without features: extract them, or register it by itself"


def as_stores(found: Found) -> None:
    """Take each Zarr store of a folder for one file."""
    found.files = list(dict.fromkeys(map(_store_or_self, found.files)))
    found.left_out = {path: why for path, why in found.left_out.items() if _store_or_self(path) == path}


def features_of_folder(
    root: Path,
    paths: Sequence[str],
    options: FeatureOptions,
    table: Path | None,
    targets: TableTargets | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FolderLayout, Agreed]:
    """Return the features of a folder as cases, and what their files have in common.

    Args:
        root: the folder.
        paths: all of its files; see ``as_stores``.
        options: what the user states of the features.
        table: of slides; None looks for one in the folder.
        targets: what the user says of the table's targets.
        progress: called with (files looked at, files in all).

    Raises:
        DataError: there are no features, a person has to say more of them, or the table cannot be used.
    """
    layout = FolderLayout(kinds.FEATURES, task="slides")
    slides = _by_name(path for path in paths if path.lower().endswith(SLIDES))
    candidates = [path for path in paths if path.lower().endswith(_SUFFIXES)]
    said: dict[str, Said] = {}
    for number, path in enumerate(candidates):
        if progress:
            progress(number, len(candidates))
        try:
            said[path] = _look(root, path, options, slides.get(_key(path), []))
        except NoFeaturesError as error:
            layout.left_out[path] = f"no features: {reason_of(error)}"
        except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
            layout.bad.append(Quarantined(name=_name(path), reason=reason_of(error), source=path))
    if not said:
        reasons = "; ".join(f"{bad.source}: {bad.reason}" for bad in layout.bad[:2])
        raise DataError(
            f"{root}: no file of features can be read{': ' + reasons if reasons else ''}. Expected "
            f"{', '.join(_SUFFIXES)} as TRIDENT, CLAM, STAMP, HEST or LazySlide write them"
        )
    try:
        agreed = agree(said, options)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    kept = _kept(said, agreed, layout)
    found = table or _table_in(root, paths)
    if found:
        layout = _with_table(root, found, kept, layout, targets)
        layout.tables = [path for path in paths if root / path == found]
    else:
        kept = _once(kept, said, layout)
        layout.items = [Item(_name(p), patient_of(p), (p,), modality="SM") for p in kept]
    layout.remarks += _each_its_own(layout.items)
    layout.items = unique([_with_slide(item, slides) for item in layout.items])
    used = {item.images[0] for item in layout.items}
    layout.left_out |= {path: _SLIDE_ALONE for own in slides.values() for path in own if path not in used}
    return layout, agreed


def _each_its_own(items: Sequence[Item]) -> list[str]:
    """Return a remark on slides whose patients nothing names."""
    alone = [item.name for item in items if not item.patient]
    if len(alone) < 2:
        return []
    remark = (
        f"slides whose patient nothing names, {len(alone):,} of {len(items):,}: {named(alone)}. Each counts as a "
        "patient of its own, so slides of one patient may lie in training and in test. Name a table with the columns "
        "image and patient with --slides, and register again"
    )
    return [remark]


def lists_slides(table: Path | None, targets: TableTargets | None = None) -> bool:
    """Return whether a table has a column that names slides.

    Raises:
        DataError: it cannot be read.
    """
    return table is not None and "image" in _called(read_renamed(table, targets)).columns


def _look(root: Path, path: str, options: FeatureOptions, slides: Sequence[str]) -> Said:
    found = survey(root / path, options)
    if found.level == "tile" and (found.mpp is None or found.tile is None) and len(slides) == 1:
        found = survey(root / path, options, resolution_of(root / slides[0]))
    return found


def resolution_of(slide: Path) -> float | None:
    """Return microns per pixel of a slide's finest level; None where it cannot be read."""
    try:
        opened = open_slide(slide)
    except DataError:
        return None
    try:
        return None if opened.unknown else opened.levels[0].mpp
    finally:
        opened.close()


def _kept(said: Mapping[str, Said], agreed: Agreed, layout: FolderLayout) -> list[str]:
    """Return the files that agree; others are left out or set aside."""
    kept = [path for path in said if path not in agreed.set_aside]
    have = {_key(path) for path in kept}
    for path, reason in agreed.set_aside.items():
        if said[path].encoder not in {None, agreed.encoder} and _key(path) in have:
            layout.left_out[path] = _OF_OTHERS
        else:
            layout.bad.append(Quarantined(name=_name(path), reason=reason, source=path))
    for some in (kept, [path for path in agreed.set_aside if path not in layout.left_out]):
        placed = {_key(path) for path in some if said[path].is_placed}
        layout.left_out |= {p: _UNPLACED for p in some if not said[p].is_placed and _key(p) in placed}
    layout.bad = [bad for bad in layout.bad if bad.source not in layout.left_out]
    return [path for path in kept if path not in layout.left_out]


def _once(paths: Sequence[str], said: Mapping[str, Said], layout: FolderLayout) -> list[str]:
    """Return the files whose slide has no other; others are set aside."""
    kept = []
    for own in _by_name(paths).values():
        if len(own) == 1:
            kept += own
            continue
        sizes = " and ".join(f"{path} ({said[path].tiles:,} vectors)" for path in own[:3])
        reason = f"its slide has {len(own)} files of features: {sizes}. Keep one, or name each by its path in a table"
        layout.bad += [Quarantined(name=_name(path), reason=reason, source=path) for path in own]
    return sorted(kept)


def _with_slide(item: Item, slides: Mapping[str, Sequence[str]]) -> Item:
    features = item.images[0]
    own = slides.get(_key(features), [])
    notes = (f"its slide may be {' or '.join(own[:3])}: none is shown",) if len(own) > 1 else ()
    image = own[0] if len(own) == 1 else features
    return replace(item, images=(image,), features=features, modality="SM", notes=(*item.notes, *notes))


# --- the table


def _with_table(
    root: Path, path: Path, kept: Sequence[str], layout: FolderLayout, targets: TableTargets | None
) -> FolderLayout:
    """Return the layout with the cases that a table of slides lists."""
    table = _called(read_with_targets(path, targets))
    if "image" not in table.columns:
        expected = ", ".join(("image", *_CALLED["image"]))
        raise DataError(f"{path}: found the columns {', '.join(table.columns[:12])}; expected one of {expected}")
    bare = defaultdict(list)
    for features in kept:
        bare[_bare(features)].append(features)
    files = Files(root, list(bare))
    refused = {_key(bad.source) for bad in layout.bad if bad.source}
    rows = [_with_path(row, files, bare, set(kept), refused) for row in table.rows]
    of_table = listed(root, path, list(kept), targets, replace(table, rows=rows))
    named = {row.cells.get("image") for row in rows}
    of_table.kind, of_table.task = kinds.FEATURES, "slides"
    of_table.items = [_of_slide(item) for item in of_table.items]
    of_table.bad = [bad for bad in of_table.bad if bad.reason != _REFUSED] + layout.bad
    of_table.left_out |= layout.left_out | {features: _NOT_LISTED for features in kept if features not in named}
    return of_table


def _with_path(row: Row, files: Files, bare: Mapping[str, Sequence[str]], known: set[str], refused: set[str]) -> Row:
    """Return a row that names its features by their path in the folder.

    Args:
        row: of the table.
        files: names without suffixes in the folder.
        bare: name without suffix -> files.
        known: paths of files.
        refused: keys of slides whose files are set aside, with reasons of their own.
    """
    text = row.cells.get("image", "")
    if row.fault or not text or text in known:
        return row
    name, reason = files.look(_bare(text))
    if name is None:
        name, other = files.look(_bare(_last(text)))
        reason = reason if reason.startswith("lies outside") and name is None and "missing" not in other else other
    if name is None and _key(text) in refused:
        return replace(row, fault=_REFUSED)
    if name is None:
        found = "has no features in the folder" if "is missing" in reason else reason.replace("file ", "", 1)
        return replace(row, fault=f"line {row.line}: its slide {found}. Extract them, or correct the table")
    own = bare[name]
    if len(own) > 1:
        return replace(row, fault=f"line {row.line}: its slide has features in {' and '.join(own[:3])}. Name one")
    return replace(row, cells=row.cells | {"image": own[0]})


def _of_slide(item: Item) -> Item:
    """Return a row's case by its slide's name."""
    patient = "" if item.patient == item.name else item.patient  # without one, ``unique`` gives it its name
    return replace(item, name=_name(item.images[0]), patient=patient)


def _called(table: Table) -> Table:
    """Return a table with its columns of slides and patients called image and patient."""
    names = {}
    for meaning, others in _CALLED.items():
        if meaning not in table.columns and (own := next((name for name in others if name in table.columns), None)):
            names[own] = meaning
    if not names:
        return table
    cells = [{names.get(column, column): text for column, text in row.cells.items()} for row in table.rows]
    rows = [replace(row, cells=own) for row, own in zip(table.rows, cells, strict=True)]
    return replace(table, columns=[names.get(column, column) for column in table.columns], rows=rows)


def _table_in(root: Path, paths: Sequence[str]) -> Path | None:
    """Return the folder's own table of slides.

    Raises:
        DataError: there are several.
    """
    wanted = {"image", *_CALLED["image"]}
    found = [path for path in paths if "/" not in path and path.lower().endswith(TABLES)]
    found = [path for path in found if wanted & set(columns_of(root / path) or ())]
    if len(found) > 1:
        raise DataError(f"{root}: found {len(found)} tables of slides ({', '.join(found)}). Say which: --labels FILE")
    return root / found[0] if found else None


# --- names


def _store_or_self(path: str) -> str:
    """Return the Zarr store that a file is of, else the file."""
    parts = PurePosixPath(path).parts
    for number, part in enumerate(parts[:-1], start=1):
        if part.lower().endswith(_STORE):
            return "/".join(parts[:number])
    return path


def _by_name(paths: Iterator[str] | Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[_key(path)].append(path)
    return found


def _name(path: str) -> str:
    """Return a slide's name by any of its files: folders are of tools and encoders."""
    return _bare(path).rsplit("/", 1)[-1]


def _key(path: str) -> str:
    """Return a slide's name by any of its files, in lower case."""
    return _name(path).casefold()


def _bare(path: str) -> str:
    """Return a path without suffixes of features and slides."""
    lower = path.lower()
    for suffix in sorted((*_SUFFIXES, *SLIDES, ".ome"), key=len, reverse=True):
        if lower.endswith(suffix) and len(PurePosixPath(path).name) > len(suffix):
            return _bare(path[: -len(suffix)])
    return path


def _last(text: str) -> str:
    return PureWindowsPath(text).name
