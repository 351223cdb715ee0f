"""All slides of a patient as one case."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from oncofed.data.case import Case
from oncofed.data.case_checks import Problem
from oncofed.data.covariates import Covariate, row_of
from oncofed.data.manifest import Entry
from oncofed.data.target_columns.cells import is_unknown
from oncofed.data.targets import Encoded

# Of a registered patient; see ``composition.hashed_key``. Twelve letters tell a million patients apart.
_PSEUDONYM = re.compile("[0-9a-f]{16}")
_LETTERS = 12
_TO_DO = "Correct the table, or learn of slides: task.bag: slide"


def whole_patients(
    cases: Sequence[Case], columns: Sequence[Covariate] = (), classes: Mapping[int, str] | None = None
) -> tuple[list[Case], list[Problem]]:
    """Return a case for each patient, and slides that contradict one another.

    What one slide of a patient states and another leaves open holds for both. A patient with one slide keeps that
    slide's case.

    Args:
        cases: slides, that can be read.
        columns: the job's covariates.
        classes: names of the job's classes, for messages.
    """
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.patient, []).append(case)
    joined, problems = [], []
    for own in found.values():
        faults = list(_differences(own, columns, classes or {}))
        if faults:
            reason = f"{len(own)} slides of its patient state different {' and '.join(faults)}. {_TO_DO}"
            problems += [Problem(case.name, reason) for case in own]
        else:
            joined.append(own[0] if len(own) == 1 else join(own))
    return joined, problems


def join(slides: Sequence[Case]) -> Case:
    """Return slides of one patient, which agree, as one case."""
    slides = sorted(slides, key=lambda slide: slide.name)
    first = slides[0]
    names = dict.fromkeys(name for slide in slides for name in slide.targets)
    return replace(
        first,
        name=_name(first, len(slides)),
        parts=tuple(slides),
        targets={name: _known([slide.targets[name] for slide in slides if name in slide.targets]) for name in names},
        entry=joined_entry([slide.entry for slide in slides if slide.entry]),
    )


def _name(first: Case, slides: int) -> str:
    """Return what several slides are called: by their patient, where registration gave a pseudonym."""
    if _PSEUDONYM.fullmatch(first.patient):
        return f"patient_{first.patient[:_LETTERS]}"
    return f"{first.name}_and_{slides - 1}_more"


def joined_entry(entries: Sequence[Entry]) -> Entry | None:
    """Return the facts of several slides: those of the first, with what any table's row says."""
    if not entries:
        return None
    tags: dict[str, str] = {}
    for entry in entries:
        for name, text in entry.tags.items():
            if name not in tags or is_unknown(tags[name]):
                tags[name] = text
    sums = [entry.checksum for entry in entries]
    known = hashlib.sha256(" ".join(filter(None, sums)).encode()).hexdigest() if all(sums) else None
    notes = list(dict.fromkeys(note for entry in entries for note in entry.notes))
    return entries[0].model_copy(update={"tags": tags, "checksum": known, "notes": notes})


def _differences(slides: Sequence[Case], columns: Sequence[Covariate], classes: Mapping[int, str]) -> Iterator[str]:
    """Yield what the slides of one patient state differently."""
    labels = {slide.label for slide in slides if isinstance(slide.label, int) and not slide.targets}
    if len(labels) > 1:
        yield f"classes ({', '.join(classes.get(label, str(label)) for label in sorted(labels))})"
    for name in dict.fromkeys(name for slide in slides for name in slide.targets):
        if _contradict([slide.targets[name] for slide in slides if name in slide.targets]):
            yield f"values of {name}"
    rows = [row_of(slide.entry, columns) for slide in slides]
    for column, *values in zip(columns, *rows, strict=True):
        if _contradict([(value,) for value in values]):
            yield f"values in the column {column.name}"


def _contradict(values: Sequence[Encoded]) -> bool:
    return any(len({n for n in members if not math.isnan(n)}) > 1 for members in zip(*values, strict=True))


def _known(values: Sequence[Encoded]) -> Encoded:
    """Return what is known of each member; NaN where nobody knows it."""
    return tuple(next((n for n in members if not math.isnan(n)), math.nan) for members in zip(*values, strict=True))
