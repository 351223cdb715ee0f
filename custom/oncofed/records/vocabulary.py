"""What a hospital's records have of a cohort's concepts: persons, codes of values, units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from oncofed.data.codes import is_same
from oncofed.data.units import is_unit
from oncofed.data.vocabulary import Term, shown_each, shown_parts
from oncofed.records.model import Records
from oncofed.records.spec import CohortSpec


def concept_terms(spec: CohortSpec, records: Records) -> Iterator[Term]:
    """Yield a cohort's concepts, with the codes and units that their values have in the records.

    Counts are of persons with the index event.

    Args:
        spec: the cohort's settings.
        records: what its source holds.
    """
    concepts = spec.used_concepts
    everyone = set(records.events[spec.index.concept])
    persons = {name: everyone & set(records.events[name]) for name in concepts}
    told = shown_each({name: len(found) for name, found in persons.items()}, len(everyone))
    for name, concept in concepts.items():
        codes = tuple(code for code in concept.codes if not code.endswith("*"))
        yield Term(part="concept", name=name, codes=codes, kind=concept.domain, patients=told[name])
        values: dict[str, set[str]] = defaultdict(set)
        units: dict[str, set[str]] = defaultdict(set)
        for person in persons[name]:
            for event in records.events[name][person]:
                for code in event.codes:
                    if not any(is_same(code, own) for own in codes):
                        values[code].add(person)
                if event.number is not None:
                    units[event.unit if is_unit(event.unit) else ""].add(person)
        # What somebody typed in place of a unit is not repeated, nor is a code that hardly anybody has.
        for code, count in shown_parts(
            {code: len(found) for code, found in values.items()}, len(persons[name])
        ).items():
            if count is not None:
                yield Term(part="code", of=name, name=code, codes=(code,), patients=count)
        for unit, count in shown_parts({unit: len(found) for unit, found in units.items()}, len(persons[name])).items():
            if unit:
                yield Term(part="unit", of=name, name=unit, patients=count)
