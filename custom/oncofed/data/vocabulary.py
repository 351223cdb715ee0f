"""What a site's data are about: classes, targets, names, codes and units, so that an alliance can agree on them.

A file of it may leave the site: it names no patient and no case, and has no figure that tells of fewer than five
patients. Sites' files are compared by codes first, by names second.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from oncofed.data.codes import is_same
from oncofed.data.decisions import name_of
from oncofed.data.label_names import name_key
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.targets import FollowUp, TargetValue
from oncofed.data.units import factor
from oncofed.errors import DataError
from oncofed.settings import StrictModel, first_problem
from oncofed.suppression import LEAST_PATIENTS, withheld_counts

# Masks' and boxes' classes, images' classes, targets, their names, a cohort's concepts, what these state.
Part = Literal["mask", "image class", "target", "name", "concept", "code", "unit"]
_MOST_TERMS = 20_000


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("found text that cannot be printed")
    return text


_Text = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]


class Term(StrictModel):
    """Something that a site's data have."""

    part: Part = Field(description="of the data")
    of: _Text = Field("", description="the target or concept that it belongs to")
    name: _Text = Field(description="as the site calls it")
    codes: tuple[_Text, ...] = Field((), max_length=1000, description="what it means, as SCHEME:CODE")
    kind: _Text = Field("", description="of a target; of a concept its domain")
    unit: _Text = Field("", description="of a value or of times")
    patients: int | None = Field(None, ge=LEAST_PATIENTS, description="who have it; null: withheld")


class Vocabulary(StrictModel):
    """A site's terms."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this format")
    name: _Text = Field(description="of the site or dataset")
    patients: int | None = Field(None, ge=LEAST_PATIENTS, description="in all; null: fewer than five")
    terms: tuple[Term, ...] = Field((), max_length=_MOST_TERMS)
    rare: int = Field(0, ge=0, description="names of classes, without a code, that fewer than five patients have")


def vocabulary_of(manifest: Manifest, name: str) -> Vocabulary:
    """Return a dataset's vocabulary.

    Args:
        manifest: of the dataset.
        name: of the site.
    """
    patients = {entry.patient or name_of(entry) for entry in manifest.entries}
    terms = [*_drawn(manifest), *_image_classes(manifest)]
    counts = {target: _patients(manifest.entries, target) for target in manifest.targets}
    told = shown_each({target: len(found) for target, found in counts.items()}, len(patients))
    rare = 0
    for target, declared in manifest.targets.items():
        codes = (declared.code,) if declared.code else ()
        terms.append(
            Term(
                part="target",
                name=target,
                codes=codes,
                kind=declared.kind,
                unit=declared.unit,
                patients=told[target],
            )
        )
        stated = _names_stated(counts[target], declared.names)
        show = shown_each if declared.kind == "labels" else shown_parts
        of_names = show({one: len(found) for one, found in stated.items()}, len(counts[target]))
        for one in declared.names:
            meant = next((code for own, code in declared.codes.items() if name_key(own) == name_key(one)), "")
            # Classes may be what somebody typed into a column; a scale and findings are what somebody declared.
            if declared.kind == "class" and of_names[one] is None and not meant:
                rare += 1
                continue
            term = Term(part="name", of=target, name=one, codes=(meant,) if meant else (), patients=of_names[one])
            terms.append(term)
    whole = len(patients) if len(patients) >= LEAST_PATIENTS else None
    return Vocabulary(name=name, patients=whole, terms=tuple(terms), rare=rare)


def read_vocabulary(file: Path) -> Vocabulary:
    """Read a site's file.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        return Vocabulary.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else "it is missing, or no JSON"
        raise DataError(f"{file}: cannot be read ({why}), expected a file of oncofed data vocabulary --out") from None


def shown_parts(counts: Mapping[str, int], whole: int) -> dict[str, int | None]:
    """Return counts that may add up to a whole; None where one tells of fewer than five, itself or beside others."""
    hidden = withheld_counts(counts, whole, LEAST_PATIENTS)
    return {name: None if name in hidden else count for name, count in counts.items()}


def shown_each(counts: Mapping[str, int], whole: int) -> dict[str, int | None]:
    """Return counts that say nothing of each other; None where fewer than five have it, or have it not."""
    hidden = {name for name, count in counts.items() if count < LEAST_PATIENTS or 0 < whole - count < LEAST_PATIENTS}
    return {name: None if name in hidden else count for name, count in counts.items()}


# --- sites side by side


@dataclass
class Shared:
    """A term of several sites.

    Attributes:
        part: of the data.
        of: name of the shared target or concept that it belongs to; empty: none.
        names: number of the site -> its term.
        by: "code", "name" or "one site".
        notes: what does not fit.
    """

    part: Part
    of: str
    names: dict[int, Term] = field(default_factory=dict)
    by: str = "one site"
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the first site calls it."""
        return next(iter(self.names.values())).name

    @property
    def codes(self) -> tuple[str, ...]:
        """Its codes, each once, in the words of the first site that has it."""
        found: list[str] = []
        for term in self.names.values():
            found += [code for code in term.codes if not any(is_same(code, one) for one in found)]
        return tuple(found)


def side_by_side(sites: Sequence[Vocabulary]) -> list[Shared]:
    """Return the terms of several sites, of which those that mean the same are one.

    Codes go before names. Names belong together within one target, whatever each site calls it.
    """
    rows: list[Shared] = []
    parents: dict[tuple[int, str], Shared] = {}
    for parts in (("mask", "image class", "target", "concept"), ("name", "code", "unit")):
        for part in parts:
            terms = [(number, term) for number, site in enumerate(sites) for term in site.terms if term.part == part]
            of_part = _matched(part, terms, parents)
            rows += of_part
            if part in {"target", "concept"}:
                parents |= {(number, term.name): row for row in of_part for number, term in row.names.items()}
    for row in rows:
        row.notes += _notes(row, rows)
    order = {id(row): number for number, row in enumerate(rows)}
    first = {(row.part, row.name): number for number, row in enumerate(rows)}
    return sorted(rows, key=lambda row: (_place(row, first), order[id(row)]))


def _place(row: Shared, first: Mapping[tuple[Part, str], int]) -> int:
    """Return where a row stands: names behind their target, codes and units behind their concept."""
    parent: Part = "target" if row.part == "name" else "concept"
    return first.get((parent, row.of) if row.of else (row.part, row.name), 0)


def _matched(part: Part, terms: Sequence[tuple[int, Term]], parents: Mapping[tuple[int, str], Shared]) -> list[Shared]:
    rows: list[Shared] = []
    left = []
    for number, term in terms:
        of = parents[number, term.of].name if (number, term.of) in parents else term.of
        row = next((one for one in rows if _fits(one, number, of) and _shares_code(one, term)), None)
        if row is None and not term.codes:
            left.append((number, term, of))
            continue
        if row is None:
            rows.append(row := Shared(part, of))
        elif row.names:
            row.by = "code"
        row.names[number] = term
    # Two names with different codes stay apart; one without a code joins by name.
    for number, term, of in left:
        row = next((one for one in rows if _fits(one, number, of) and _has_name(one, term)), None)
        if row is None:
            rows.append(row := Shared(part, of))
        elif row.names:
            row.by = "name" if row.by == "one site" else row.by
        row.names[number] = term
    return rows


def _fits(row: Shared, number: int, of: str) -> bool:
    return number not in row.names and row.of == of


def _shares_code(row: Shared, term: Term) -> bool:
    return any(is_same(code, own) for one in row.names.values() for code in one.codes for own in term.codes)


def _has_name(row: Shared, term: Term) -> bool:
    if row.part == "unit":
        return any(factor(one.name, term.name) == 1 for one in row.names.values())
    return any(name_key(one.name) == name_key(term.name) for one in row.names.values())


def _notes(row: Shared, rows: Iterable[Shared]) -> Iterator[str]:
    """Yield what does not fit among sites."""
    kinds = {term.kind for term in row.names.values()}
    if len(kinds) > 1 and kinds != {"class", "grade"}:
        yield f"it is of kind {' and '.join(sorted(kinds))}"
    units = list(dict.fromkeys(term.unit for term in row.names.values()))
    if len(units) > 1:
        told = " and ".join(unit or "none" for unit in units)
        fit = all(factor(unit, units[0]) is not None for unit in units)
        yield f"units {told}: " + ("a job's unit converts them" if fit else "no factor between them: agree on one")
    for other in rows:
        if other is not row and (other.part, other.of) == (row.part, row.of):
            both = {name_key(term.name) for term in row.names.values()} & {
                name_key(term.name) for term in other.names.values()
            }
            if both and row.codes and other.codes:
                yield f"another {row.part} of that name has the code {', '.join(other.codes)}"


# --- what a dataset has


def _drawn(manifest: Manifest) -> Iterator[Term]:
    """Yield the classes of masks and boxes; the background is none."""
    of_label: dict[int, set[str]] = defaultdict(set)
    everyone = set()
    for entry in manifest.entries:
        values = {int(float(value)) for value, voxels in (entry.label_values or {}).items() if voxels}
        values |= {box.label for box in entry.boxes or ()}
        if isinstance(entry.label, str) or entry.boxes is not None:
            patient = entry.patient or name_of(entry)
            everyone.add(patient)
            for value in values:
                of_label[value].add(patient)
    if everyone:
        yield from _labels("mask", manifest, of_label, len(everyone))


def _image_classes(manifest: Manifest) -> Iterator[Term]:
    of_label: dict[int, set[str]] = defaultdict(set)
    for entry in manifest.entries:
        if isinstance(entry.label, int):
            of_label[entry.label].add(entry.patient or name_of(entry))
    if of_label:
        yield from _labels("image class", manifest, of_label, len(set[str]().union(*of_label.values())))


def _labels(part: Part, manifest: Manifest, of_label: Mapping[int, set[str]], whole: int) -> Iterator[Term]:
    names = {value: name for value, name in manifest.labels.items() if part != "mask" or float(value) != 0}
    show = shown_each if part == "mask" else shown_parts
    told = show({name: len(of_label.get(int(float(value)), ())) for value, name in names.items()}, whole)
    for value, name in names.items():
        code = manifest.codes.get(value, "")
        yield Term(part=part, name=name, codes=(code,) if code else (), patients=told[name])


def _patients(entries: Iterable[Entry], target: str) -> dict[str, list[TargetValue]]:
    """Return patient -> what is stated of a target."""
    found: dict[str, list[TargetValue]] = defaultdict(list)
    for entry in entries:
        if target in entry.targets:
            found[entry.patient or name_of(entry)].append(entry.targets[target])
    return found


def _names_stated(stated: Mapping[str, Sequence[TargetValue]], names: Sequence[str]) -> dict[str, set[str]]:
    """Return name -> patients of whom it holds."""
    by_key = {name_key(name): name for name in names}
    found: dict[str, set[str]] = {name: set() for name in names}
    for patient, values in stated.items():
        for value in values:
            if isinstance(value, FollowUp):
                continue
            held = [one for one, holds in value.items() if holds] if isinstance(value, dict) else [str(value)]
            for one in held:
                if name_key(one) in by_key:
                    found[by_key[name_key(one)]].add(patient)
    return found
