"""``oncofed data pull`` and ``oncofed data push``: images from a hospital's archive, predictions back."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    typed_workspace,
)
from oncofed.cli.resolve import kit_of
from oncofed.loopback import is_loopback

if TYPE_CHECKING:
    from oncofed.hospital.pull import PullOutcome
    from oncofed.hospital.push import PushOutcome
    from oncofed.hospital.settings import PacsSettings

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")]


def pull(
    cohort: Annotated[
        Path,
        typer.Argument(help="CSV with a column patient_id, accession_number or study_uid; or a query in YAML."),
    ],
    pacs: Annotated[Path, typer.Option("--from", help="pacs.yaml: how the archive is reached.")],
    out: Annotated[Path, typer.Option(help="Folder of the pull; new, or that of an earlier pull, which goes on.")],
    site: Annotated[
        Path | None,
        typer.Option(
            envvar="ONCOFED_SITE",
            help="The site's kit: its policy may ask for more, its log tells it; by default this folder.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Secret key of pseudonyms, where images are de-identified; by default deidentify/key in the workspace."
        ),
    ] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Pull a cohort's images from a PACS by DICOMweb or DICOM's own protocol; resumes, and later fetches what is new.

    Images lie in OUT/images, which oncofed data register reads. OUT/pulled.csv has each object's UID and SHA-256; it
    names patients' studies, stays here, and is readable by its owner alone. Nothing that vanished from the archive is
    deleted here. Names of patients appear nowhere else.

    Exit status: 1 if something did not arrive; the same command goes on. 3 if rows of the table were not found, or an
    accession number is of several patients.
    """
    keep_caches_in(workspace)
    from oncofed.hospital.cohort import read_cohort
    from oncofed.hospital.pull import PullOptions, deidentify_options, record
    from oncofed.hospital.pull import pull as fetch
    from oncofed.hospital.settings import read_pacs

    settings, kit = read_pacs(pacs), kit_of(site)
    options = PullOptions(
        read_cohort(cohort), settings, out, key or workspace / "deidentify" / "key", deidentify_options(settings, kit)
    )
    console = progress_console(json)
    notify = lambda text: console.print(escape(text))  # noqa: E731
    _warn_of_plain(settings)
    if kit is not None:
        record(kit, options)
    with ended_by_signals(), progress_bars(console, shows_rate=True) as advance:
        outcome = fetch(options, advance, notify)
    values = _pull_values(outcome)
    if json:
        typer.echo(jsonlib.dumps({"folder": str(out / "images"), **values}, indent=2))
    else:
        _show_pull(outcome, out)
    if outcome.missing:
        raise typer.Exit(1)
    if outcome.plan.not_found or outcome.plan.of_several:
        raise typer.Exit(3)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of oncofed predict.")],
    pacs: Annotated[Path, typer.Option("--to", help="pacs.yaml: how the archive is reached.")],
    site: Annotated[
        Path, typer.Option(envvar="ONCOFED_SITE", help="The site's kit: its policy has to let it, its log tells it.")
    ],
    json: Json = False,
) -> None:
    """Send predictions (DICOM SEG and others that oncofed predict wrote) to a PACS, by STOW-RS or C-STORE.

    The site's policy has to say pacs: {push: true}. Images, and what other software made, are never sent; what the
    archive stored is not sent again.

    Exit status: 1 if the archive did not take all; the same command sends the rest. 3 if the policy forbids it.
    """
    from oncofed.hospital.push import push as send
    from oncofed.hospital.settings import read_pacs

    settings = read_pacs(pacs)
    _warn_of_plain(settings)
    with ended_by_signals(), progress_bars(progress_console(json)) as advance:
        outcome = send(folder, settings, site, advance)
    if json:
        typer.echo(jsonlib.dumps(vars(outcome), indent=2))
    else:
        _show_push(outcome)
    if outcome.refused:
        raise typer.Exit(1)


def _warn_of_plain(settings: PacsSettings) -> None:
    if not settings.is_encrypted and not is_loopback(settings.host):
        plain_console(stderr=True).print(
            f"[yellow]note[/] images and names of patients travel to and from {escape(settings.host)} unencrypted: "
            "https in dicomweb.url, or dimse.tls, encrypts them"
        )


def _pull_values(outcome: PullOutcome) -> dict[str, object]:
    plan, arrived = outcome.plan, outcome.arrived
    return {
        "patients": outcome.patients,
        "studies": len(plan.studies),
        "series": len(plan.series),
        "objects": arrived.objects,
        "bytes": arrived.bytes,
        "there": outcome.there,
        "left_out": arrived.left_out,
        "missing": outcome.missing,
        "vanished": outcome.vanished,
        "not_in_cohort": outcome.elsewhere,
        "moved_studies": outcome.moved,
        "lost_files": outcome.lost,
        "not_asked_for": arrived.unasked + plan.unasked,
        "rows_not_found": plan.not_found,
        "rows_of_several_patients": plan.of_several,
        "one_person": [list(group) for group in outcome.groups],
    }


def _show_pull(outcome: PullOutcome, out: Path) -> None:
    from oncofed.data.grouping import counted
    from oncofed.hospital.notes import notes

    console, plan, arrived = plain_console(), outcome.plan, outcome.arrived
    studies = f"{len(plan.studies):,} {'study' if len(plan.studies) == 1 else 'studies'}"
    console.print(f"{counted(outcome.patients, 'patient')}, {studies}, {len(plan.series):,} series")
    console.print(
        f"{counted(arrived.objects, 'object')} fetched ({arrived.bytes / 1e6:,.1f} MB), {outcome.there:,} were here"
    )
    for line in notes(outcome):
        console.print(f"[yellow]note[/] {escape(line)}")
    register = ["oncofed", "data", "register", str(out / "images"), "--dataset", "NAME", *typed_workspace()]
    console.print(f"Which object is which file: {escape(str(out / 'pulled.csv'))}. It stays here.")
    if outcome.there or arrived.objects:
        console.print(f"Next: {shlex.join(register)}")


def _show_push(outcome: PushOutcome) -> None:
    console = plain_console()
    console.print(f"{outcome.sent} objects sent, {outcome.before} were sent before")
    for why, count in outcome.left_out.items():
        console.print(f"left out: {count} {escape(why)}")
    for why, count in outcome.refused.items():
        console.print(f"[yellow]not stored[/] {count}: {escape(why)}")
