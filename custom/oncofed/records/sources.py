"""The source that a cohort's file names."""

from __future__ import annotations

from oncofed.records.model import Doing, Source, nothing_said
from oncofed.records.spec import CohortSpec


def open_source(spec: CohortSpec, doing: Doing = nothing_said) -> Source:
    """Return a cohort's source; nothing is read yet.

    Args:
        spec: the cohort's settings.
        doing: called as work goes on.
    """
    if spec.omop:
        from oncofed.records.omop import OmopDatabase  # noqa: PLC0415 - sites with FHIR need no SQLAlchemy

        return OmopDatabase(spec.omop, doing)
    from oncofed.records.fhir import FhirFiles  # noqa: PLC0415 - nor others this

    assert spec.fhir, "a cohort has one source"
    return FhirFiles(spec.fhir, doing)
