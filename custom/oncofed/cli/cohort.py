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
    from oncofed.hospital.selecting import Selected


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
    from oncofed.hospital.selecting import select
    from oncofed.records import read_cohort

    spec = read_cohort(file)
    folder = out or Path("cohorts") / spec.name
    console = progress_console(json)
    with ended_by_signals(), console.status("reading …") as status:
        found = select(spec, folder, kit_of(site), lambda what, *_: status.update(f"reading {what} …"))
    if json:
        values = {
            "name": spec.name,
            "folder": str(folder),
            "patients": found.patients,
            "persons": found.cohort.flow,
            "not_used": dict(found.cohort.faults),
            "notes": list(found.notes),
            "changes": vars(found.changes) if found.changes else None,
        }
        typer.echo(jsonlib.dumps(values, indent=2))
        return
    _show(found, folder)
    plain = plain_console()
    register = ["oncofed", "data", "register", "IMAGES", "--dataset", spec.name]
    register += ["--labels", str(folder / "outcomes.csv"), "--targets", str(folder / "targets.yaml")]
    plain.print(f"Next, with the images of {folder / 'patients.csv'} in a folder: {shlex.join(register)}")


def _show(found: Selected, folder: Path) -> None:
    from oncofed.data.grouping import counted

    cohort, changes = found.cohort, found.changes
    table = Table("step", "persons")
    table.columns[1].justify = "right"
    for step, persons in cohort.flow.items():
        table.add_row(step, f"{persons:,}")
    show_table(table)
    if cohort.faults:
        table = Table("not used", "times")
        table.columns[1].justify = "right"
        for what, times in sorted(cohort.faults.items()):
            table.add_row(what, f"{times:,}")
        show_table(table)
    plain = plain_console()
    plain.print(f"{folder}: outcomes of {counted(found.patients, 'patient')}")
    if changes:
        said = f"{changes.new:,} new, {changes.gone:,} gone, {changes.other:,} with other values"
        plain.print(f"Since the last time: {said}.")
    for note in found.notes:
        plain.print(f"Note: {note}.", markup=False)
