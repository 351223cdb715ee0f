"""Selecting a cohort of 100,000 OMOP persons from a real PostgreSQL on this machine.

Read, selected and written, as `oncofed data cohort` does it. The limit is the same queries alone, their rows thrown
away: what database and driver take.
"""

from __future__ import annotations

import gc
import shutil
from functools import partial
from pathlib import Path

import sqlalchemy as sa

import made_records as made
from harness.bench import Bench
from harness.results import Limit, Target
from oncofed.errors import SpecError
from postgres import postgres, why_no_postgres

_PERSONS, _PERSONS_QUICK = 100_000, 200
_TARGET_SECONDS = 10.0
_NAME = "selecting a cohort from OMOP on PostgreSQL"


def run(bench: Bench) -> None:
    """Measure selecting, and its queries alone."""
    if why := why_no_postgres():
        bench.skip(_NAME, "s", why)
        return
    persons = _PERSONS_QUICK if bench.quick else _PERSONS
    with postgres() as (url, _):
        bench.doing("filling PostgreSQL")
        patients = made.make_patients(persons)
        made.fill_omop(url, patients, "cdm54")
        made.write_crosswalk(patients, bench.folder / "crosswalk.csv")
        address = bench.folder / "address"
        address.write_text(url, encoding="utf-8")
        address.chmod(0o600)
        file = bench.folder / "lung.yaml"
        file.write_text(made.COHORT.format(source="omop: {url_file: address, cdm: cdm54}"), encoding="utf-8")
        events = sum(len(patient.events) for patient in patients)
        # What the patients were made of is not searched for garbage while they are selected.
        del patients
        gc.collect()
        bench.doing("selecting")
        queries: list[str] = []
        select = partial(_select, file, bench.folder / "out", queries)
        select()
        samples = [bench.seconds(select) for _ in range(bench.times())]
        alone = bench.best(lambda: _ask(url, queries), 1 if bench.quick else 3)
        bench.measured(
            _NAME,
            samples,
            "s",
            settings={"persons": persons, "events": events},
            limit=Limit(name="its queries alone", value=alone),
            target=Target(of="value", value=_TARGET_SECONDS),
        )


def _select(file: Path, out: Path, queries: list[str]) -> None:
    from oncofed.hospital.selecting import read_records
    from oncofed.records import read_cohort, select_cohort, write_cohort
    from oncofed.records.crosswalk import read_crosswalk

    shutil.rmtree(out, ignore_errors=True)
    spec = read_cohort(file)
    links = read_crosswalk(spec.crosswalk)
    records = read_records(spec, None, lambda what, done, total: None)
    cohort = select_cohort(records, spec, links)
    write_cohort(cohort, spec, records, out)
    if not cohort.rows:
        raise SpecError("nobody was selected")
    queries[:] = [text for text, _ in records.queries]


def _ask(url: str, queries: list[str]) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for query in queries:
            # Percent signs are the driver's.
            for _ in connection.exec_driver_sql(query):
                pass
    engine.dispose()
