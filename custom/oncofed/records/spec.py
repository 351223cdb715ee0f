"""Settings of a cohort: who belongs to it, what is known of them, and where their records are.

The file is the same for each kind of source, so that sites with an OMOP database and sites with FHIR select alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, Field, field_validator, model_validator
from typing_extensions import Self

from oncofed.data.units import Unit
from oncofed.settings import SettingError, StrictModel, read_yaml, validated

_CODE = re.compile(r"[A-Za-z0-9]+:[^\s:*]+\*?\Z")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
# Before the host, or among the driver's arguments.
_PASSWORD = re.compile(r"://[^/@:]*:[^@]+@|(password|passwd|pwd)\s*=", re.IGNORECASE)
_CODE_EXPECTED = "expected VOCABULARY:CODE, such as SNOMED:254637007, ICD10CM:C34.1, or ICD10CM:C34* for all below it"
DEATH = "death"
# What is known at the index: of the hundred years before it.
_UNTIL_INDEX = (-36_500, 0)


def _in_order(window: tuple[int, int]) -> tuple[int, int]:
    if window[0] > window[1]:
        raise ValueError(f"found {list(window)}, expected the earlier day first, such as [-30, 90]")
    return window


# Days from the index, both of them included.
Window = Annotated[tuple[int, int], AfterValidator(_in_order)]


def _named(names: dict[str, Any]) -> None:
    for name in names:
        if not _NAME.match(name):
            raise ValueError(f"{name!r}: expected lower case letters, digits and _, at most 40")


class ConceptSet(StrictModel):
    """Codes that mean one thing."""

    domain: Literal["condition", "procedure", "drug", "measurement", "observation"] = Field(
        description="kind of record that states it"
    )
    codes: tuple[str, ...] = Field(min_length=1, description="VOCABULARY:CODE, as OMOP names vocabularies")
    descendants: bool = Field(True, description="with all concepts below them, by OMOP's hierarchy")
    without: tuple[str, ...] = Field((), description="codes that are left out of it, with all below them")

    @field_validator("codes", "without")
    @classmethod
    def _are_codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if not _CODE.match(code):
                raise ValueError(f"found {code!r}, {_CODE_EXPECTED}")
        return codes


class Within(StrictModel):
    """An event in a window around the index."""

    concept: str = Field(description="name of a concept set")
    within: Window | None = Field(None, description="[first, last] day from the index; null: at any time")


class Index(StrictModel):
    """The event from which times are counted."""

    concept: str = Field(description="name of a concept set")
    which: Literal["first", "last"] = Field("first", description="of several in a person")


class Taken(Within):
    """A record's value: of several in the window, one is taken."""

    take: Literal["nearest", "first", "last"] = Field("nearest", description="of several; nearest to the index")


class SurvivalOutcome(StrictModel):
    """Time from the index to death or an event, or to the end of follow-up."""

    kind: Literal["survival"] = "survival"
    event: str = Field(DEATH, description="death, or the name of a concept set")
    or_death: bool = Field(False, description="death counts as the event, too: progression-free survival")
    unit: Literal["days", "weeks", "months", "years"] = Field("days", description="of the times")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return () if self.event == DEATH else (self.event,)


class FindingsOutcome(StrictModel):
    """Findings that hold or not, within a window.

    A finding without a record is negative where the person was observed over the whole window, else unknown.
    """

    kind: Literal["labels"] = "labels"
    findings: dict[str, str] = Field(min_length=1, description="finding -> name of a concept set")
    within: Window = Field(description="[first, last] day from the index")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return tuple(self.findings.values())


class NamedOutcome(Taken):
    """A class or a grade, by the codes of a record."""

    kind: Literal["class", "grade"]
    values: dict[str, str] = Field(
        min_length=2, description="code -> class; of a grade in order, the lowest first. Several codes may be one class"
    )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return (self.concept,)

    @property
    def names(self) -> tuple[str, ...]:
        """Classes or grades, each once, in the order given."""
        return tuple(dict.fromkeys(self.values.values()))


class ValueOutcome(Taken):
    """A measured number."""

    kind: Literal["value"] = "value"
    unit: Unit = Field(description="that the numbers become, by UCUM, such as ng/mL; what converts exactly does")
    range: tuple[float, float] | None = Field(None, description="lowest and highest plausible value")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return (self.concept,)


Outcome = Annotated[
    SurvivalOutcome | FindingsOutcome | NamedOutcome | ValueOutcome,
    Field(discriminator="kind"),
]


class AgeCovariate(StrictModel):
    """Age at the index, in whole years; above 89 it is 90."""

    kind: Literal["age"] = "age"

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return ()


class SexCovariate(StrictModel):
    """Sex: female, male or other."""

    kind: Literal["sex"] = "sex"

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept sets that it reads."""
        return ()


Covariate = Annotated[
    AgeCovariate | SexCovariate | NamedOutcome | ValueOutcome,
    Field(discriminator="kind"),
]


class Crosswalk(StrictModel):
    """A table that tells which person of the records is which patient of the images."""

    file: Path = Field(description="CSV, from the folder of this file")
    person: str = Field("person", description="column: the person, by the identifier that the source names")
    patient: str = Field("patient", description="column: the patient, as images name it")
    accession: str = Field("", description="column: accession number, to pull these images alone; empty: none")


class OmopSource(StrictModel):
    """A database with OMOP's common data model 5.4."""

    url: str = Field("", description="SQLAlchemy's address, if it holds no password: sqlite:///cdm.db")
    url_file: Path | None = Field(None, description="a file, readable by its owner alone, that holds the address")
    url_env: str = Field("", description="an environment variable that holds the address")
    cdm: str = Field("", description="schema of the clinical tables; empty: the database's own")
    vocabulary: str | None = Field(None, description="schema of the vocabulary; null: the same")
    person: Literal["person_id", "person_source_value"] = Field(
        "person_source_value", description="column of table person by which the crosswalk names persons"
    )

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        if sum(map(bool, (self.url, self.url_file, self.url_env))) != 1:
            raise SettingError("found it with another or without any, expected one of url, url_file and url_env", "url")
        if _PASSWORD.search(unquote(self.url)):
            raise SettingError(
                "url holds a password. Put the address into a file with mode 600 and name it in url_file", "url"
            )
        return self


class FhirSource(StrictModel):
    """Files with FHIR R4 resources: bundles (.json) and bulk exports (.ndjson)."""

    folder: Path = Field(description="of the files, from the folder of this file; with all folders in it")
    person: str = Field(
        "", description="system of Patient.identifier by which the crosswalk names persons; empty: Patient.id"
    )
    hierarchy: Path | None = Field(
        None,
        description="CSV with columns ancestor and descendant, as VOCABULARY:CODE; FHIR itself has no hierarchy",
    )


class CohortSpec(StrictModel):
    """A cohort."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    name: str = Field(description="lower case letters, digits and _")
    omop: OmopSource | None = None
    fhir: FhirSource | None = None
    crosswalk: Crosswalk
    concepts: dict[str, ConceptSet] = Field(description="name -> codes that mean it")
    index: Index
    include: tuple[Within, ...] = Field((), description="events that a person has, each")
    exclude: tuple[Within, ...] = Field((), description="events that a person does not have, none of them")
    age: tuple[int, int] | None = Field(None, description="lowest and highest age at the index, in years")
    follow_up: Literal["observation_period", "last_visit"] = Field(
        "observation_period",
        description="what ends follow-up: OMOP's observation period around the index, or the last visit (FHIR has no "
        "other)",
    )
    targets: dict[str, Outcome] = Field(min_length=1, description="name -> outcome")
    covariates: dict[str, Covariate] = Field(
        default_factory=dict, description="name -> what is known at the index, by records up to its day"
    )

    @field_validator("concepts", "targets", "covariates")
    @classmethod
    def _have_names(cls, names: dict[str, Any]) -> dict[str, Any]:
        _named(names)
        return names

    @field_validator("covariates")
    @classmethod
    def _are_known_at_the_index(cls, covariates: dict[str, Covariate]) -> dict[str, Covariate]:
        known: dict[str, Covariate] = {}
        for name, covariate in covariates.items():
            if not isinstance(covariate, Taken):
                known[name] = covariate
                continue
            within = covariate.within or _UNTIL_INDEX
            if within[1] > 0:
                raise SettingError(
                    f"found within: {list(within)}, expected no day after the index: what comes later is no "
                    f"covariate. Write [{min(within[0], 0)}, 0], or make it a target",
                    f"{name}.within",
                    name,
                )
            known[name] = covariate.model_copy(update={"within": within})
        return known

    @field_validator("name")
    @classmethod
    def _has_a_name(cls, name: str) -> str:
        _named({name: None})
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.omop) == bool(self.fhir):
            raise SettingError(
                f"found {'both' if self.omop else 'none'}, expected one source: omop or fhir", "fhir", "omop"
            )
        if self.fhir and self.follow_up == "observation_period":
            raise SettingError("FHIR has no observation periods. Write follow_up: last_visit", "follow_up", "fhir")
        if DEATH in self.concepts:
            raise SettingError("the name is taken: deaths come from the person's own record", f"concepts.{DEATH}")
        for where, name in self._used():
            if name not in self.concepts:
                known = ", ".join(self.concepts) or "none"
                raise SettingError(f"found {name!r}, expected a name under concepts: {known}", where)
        if twice := set(self.targets) & set(self.covariates):
            raise SettingError(
                "is a target and a covariate; one of them needs another name", f"covariates.{min(twice)}"
            )
        return self

    def _used(self) -> list[tuple[str, str]]:
        used = [("index.concept", self.index.concept)]
        for section in ("include", "exclude"):
            used += [(f"{section}.{n}.concept", one.concept) for n, one in enumerate(getattr(self, section))]
        for section in ("targets", "covariates"):
            for name, column in getattr(self, section).items():
                used += [(f"{section}.{name}", concept) for concept in column.concepts]
        return used

    @property
    def used_concepts(self) -> dict[str, ConceptSet]:
        """The concept sets that something reads; that of the index first."""
        names = dict.fromkeys(name for _, name in self._used())
        return {name: self.concepts[name] for name in names}


def read_cohort(file: Path) -> CohortSpec:
    """Read a cohort's file; paths in it are from its folder.

    Raises:
        SpecError: one line for each mistake.
    """
    values, lines = read_yaml(file, "index: {concept: lung_cancer}")
    kinds = {"survival", "labels", "class", "grade", "value", "age", "sex"}
    spec = validated(
        CohortSpec,
        values,
        str(file),
        lines,
        "the file",
        lambda kind, loc: (kind, tuple(part for n, part in enumerate(loc) if not (n == 2 and part in kinds))),
    )
    return _from_folder(spec, file.resolve().parent)


def _from_folder(spec: CohortSpec, folder: Path) -> CohortSpec:
    update: dict[str, Any] = {
        "crosswalk": spec.crosswalk.model_copy(update={"file": folder / spec.crosswalk.file}),
    }
    if spec.omop and spec.omop.url_file:
        update["omop"] = spec.omop.model_copy(update={"url_file": folder / spec.omop.url_file})
    if spec.fhir:
        hierarchy = folder / spec.fhir.hierarchy if spec.fhir.hierarchy else None
        update["fhir"] = spec.fhir.model_copy(update={"folder": folder / spec.fhir.folder, "hierarchy": hierarchy})
    return spec.model_copy(update=update)
