"""Cohorts from a hospital's records: outcomes and covariates of patients, and whose images are wanted.

A source (OMOP's common data model, FHIR) is read as dated events, a cohort is selected from these alone, and what is
written holds times in place of dates.
"""

from __future__ import annotations

from oncofed.records.files import write_cohort
from oncofed.records.selection import Cohort, select_cohort
from oncofed.records.sources import open_source
from oncofed.records.spec import CohortSpec, read_cohort

__all__ = ["Cohort", "CohortSpec", "open_source", "read_cohort", "select_cohort", "write_cohort"]
