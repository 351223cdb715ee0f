"""``oncofed data vocabulary``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    ended_by_signals,
    escape,
    plain_console,
    progress_console,
    show_table,
)
from oncofed.cli.resolve import kit_of
from oncofed.cli.terminal import echo_json

if TYPE_CHECKING:
    from oncofed.data.vocabulary import Shared, Term, Vocabulary

_FILES = {".json"}


def vocabulary(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Registered datasets, their folders, or files of --out, of any sites. Of several, who has what."
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="A cohort's file: its concepts in the OMOP database or FHIR files belong to the vocabulary."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the site, in the file; by default the dataset's or the cohort's.")] = "",
    out: Annotated[Path | None, typer.Option(help="File for the vocabulary, which may go to other sites.")] = None,
    site: Annotated[
        Path | None,
        typer.Option(envvar="ONCOFED_SITE", help="The site's kit, whose audit log records the queries of --records."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """List what a site's data are about, so that an alliance can agree: classes, targets, names, codes and units.

    Counts are of patients, at least five; others are withheld. Files of several sites are set side by side: what is the
    same by its code, by its name, at one site alone, and which units do not convert.
    """
    from oncofed.data.manifest import read_manifest
    from oncofed.data.vocabulary import read_vocabulary, side_by_side, vocabulary_of

    if not sources and records is None:
        raise typer.BadParameter("expected a dataset, a file of --out, or --records cohort.yaml.")
    if len(sources or ()) > 1 and (out or records or name):
        raise typer.BadParameter("--out, --records and --name are of one site; expected one dataset with them.")
    found: list[Vocabulary] = []
    for source in sources or ():
        if Path(source).suffix.lower() in _FILES:
            found.append(read_vocabulary(Path(source)))
        else:
            folder = dataset_named(source, workspace)
            manifest = read_manifest(folder)
            found.append(vocabulary_of(manifest, name or manifest.name or folder.name))
    if records:
        found = [_with_records(found[0] if found else None, records, name, site, json)]
    if len(found) > 1:
        rows = side_by_side(found)
        if json:
            echo_json(jsonlib.dumps(_shared_values(rows, found), indent=2))
        else:
            _show_shared(rows, found)
        return
    text = found[0].model_dump_json(indent=2, by_alias=True)
    if out:
        from oncofed.atomic import write_whole

        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text + "\n")
    if json:
        echo_json(text)
        return
    _show(found[0])
    if out:
        compare = shlex.join(["oncofed", "data", "vocabulary", str(out), "OTHER.json"])
        plain_console().print(f"{out}: read it before it leaves. Beside another site's: {compare}", markup=False)


def _with_records(found: Vocabulary | None, records: Path, name: str, site: Path | None, json: bool) -> Vocabulary:
    """Return a vocabulary with a cohort's concepts."""
    from oncofed.data.vocabulary import Vocabulary as Terms
    from oncofed.hospital.selecting import LISTED, read_records
    from oncofed.records import read_cohort
    from oncofed.records.vocabulary import concept_terms

    spec = read_cohort(records)
    console = progress_console(json)
    with ended_by_signals(), console.status("reading …") as status:
        read = read_records(spec, kit_of(site), lambda what, *_: status.update(f"reading {what} …"), LISTED)
    terms = tuple(concept_terms(spec, read))
    if found is None:
        return Terms(name=name or spec.name, terms=terms)
    return found.model_copy(update={"terms": (*found.terms, *terms)})


def _show(found: Vocabulary) -> None:
    table = Table(title=escape(found.name), title_justify="left")
    for heading in ("", "name", "code", "kind", "unit"):
        table.add_column(heading, overflow="fold")
    table.add_column("patients", justify="right")
    for term in found.terms:
        of = f"{term.part} of {term.of}" if term.of else term.part
        cells = (of, term.name, ", ".join(term.codes), term.kind, term.unit)
        table.add_row(*map(escape, cells), _told(term))
    show_table(table)
    console = plain_console()
    if found.patients:
        console.print(f"{found.patients:,} patients")
    if found.rare:
        console.print(f"{found.rare:,} names of classes are not listed: fewer than five patients have them")
    if not any(term.codes for term in found.terms):
        console.print("Nothing has a code: sites' names alone would say what is the same.")


def _show_shared(rows: list[Shared], sites: list[Vocabulary]) -> None:
    table = Table()
    for heading in ("", "name", "code", *(site.name for site in sites), "the same by", "note"):
        table.add_column(escape(heading), overflow="fold")
    for row in rows:
        of = f"{row.part} of {row.of}" if row.of else row.part
        cells = [_cell(row.names.get(number)) for number in range(len(sites))]
        table.add_row(*map(escape, (of, row.name, ", ".join(row.codes), *cells, row.by, "; ".join(row.notes))))
    show_table(table)
    alone, noted = sum(row.by == "one site" for row in rows), sum(bool(row.notes) for row in rows)
    plain_console().print(f"{len(rows):,} terms; {alone:,} at one site alone, {noted:,} with a note")


def _cell(term: Term | None) -> str:
    if term is None:
        return "–"
    return " ".join(part for part in (term.name, term.unit and f"[{term.unit}]", f"({_told(term)})") if part)


def _told(term: Term) -> str:
    return "withheld" if term.patients is None else f"{term.patients:,}"


def _shared_values(rows: list[Shared], sites: list[Vocabulary]) -> dict[str, object]:
    return {
        "sites": [site.name for site in sites],
        "terms": [
            {
                "part": row.part,
                "of": row.of,
                "name": row.name,
                "codes": list(row.codes),
                "by": row.by,
                "notes": row.notes,
                "at": [
                    row.names[number].model_dump(include={"name", "unit", "kind", "patients"})
                    if number in row.names
                    else None
                    for number in range(len(sites))
                ],
            }
            for row in rows
        ],
    }
