"""``oncofed data cohort``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli.common import ended_by_signals, plain_console, progress_console, show_table
from oncofed.cli.resolve import kit_of

if TYPE_CHECKING:
    from oncofed.records import Cohort
    from oncofed.records.files import Changes


def cohort(
    file: Annotated[Path, typer.Argument(help="The cohort's file, such as cohort.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables; by default cohorts/NAME in this folder.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(envvar="ONCOFED_SITE", help="The site's kit, whose audit log records the queries' digests."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
) -> None:
    """Select patients, outcomes and covariates from an OMOP database or FHIR files.

    Writes outcomes.csv with targets.yaml, from which `oncofed data register` takes targets and covariates, and
    patients.csv, whose images `oncofed data pull` fetches. Times are written, no dates. The database is only read; the
    next time, what changed is said.
    """
    from oncofed.audit import AuditLog
    from oncofed.records import open_source, read_cohort, select_cohort, write_cohort
    from oncofed.records.crosswalk import read_crosswalk

    spec = read_cohort(file)
    folder = out or Path("cohorts") / spec.name
    links = read_crosswalk(spec.crosswalk)
    console = progress_console(json)
    with ended_by_signals(), console.status("reading …") as status:
        records = open_source(spec, lambda what: status.update(f"reading {what} …")).read(spec)
        found = select_cohort(records, spec, links)
        if kit := kit_of(site):
            digests = [digest for _, digest in records.queries]
            AuditLog(kit).write("cohort selected", cohort=spec.name, queries=digests)
        changes = write_cohort(found, spec, records, folder)
    if json:
        values = {
            "name": spec.name,
            "folder": str(folder),
            "patients": len({row.link.patient for row in found.rows}),
            "persons": found.flow,
            "not_used": dict(found.faults),
            "notes": records.notes,
            "changes": vars(changes) if changes else None,
        }
        typer.echo(jsonlib.dumps(values, indent=2))
        return
    _show(found, folder, changes)
    plain = plain_console()
    for note in records.notes:
        plain.print(f"Note: {note}.")
    for count, what in (
        (links.ambiguous, "patients of the crosswalk belong to several persons, and were left out"),
        (links.several, "persons have images under several patients: let the PACS merge them, else they count apart"),
    ):
        if count:
            plain.print(f"Note: {count:,} {what}.")
    register = ["oncofed", "data", "register", "IMAGES", "--dataset", spec.name]
    register += ["--labels", str(folder / "outcomes.csv"), "--targets", str(folder / "targets.yaml")]
    plain.print(f"Next, with the images of {folder / 'patients.csv'} in a folder: {shlex.join(register)}")


def _show(found: Cohort, folder: Path, changes: Changes | None) -> None:
    from oncofed.data.grouping import counted

    table = Table("step", "persons")
    table.columns[1].justify = "right"
    for step, persons in found.flow.items():
        table.add_row(step, f"{persons:,}")
    show_table(table)
    if found.faults:
        table = Table("not used", "times")
        table.columns[1].justify = "right"
        for what, times in sorted(found.faults.items()):
            table.add_row(what, f"{times:,}")
        show_table(table)
    plain = plain_console()
    plain.print(f"{folder}: outcomes of {counted(len({row.link.patient for row in found.rows}), 'patient')}")
    if changes:
        said = f"{changes.new:,} new, {changes.gone:,} gone, {changes.other:,} with other values"
        plain.print(f"Since the last time: {said}.")
