"""``oncofed data``: register and check datasets of a site."""

from __future__ import annotations

import json as jsonlib
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from oncofed.cli import encoders, overlap
from oncofed.cli.boxes import boxes
from oncofed.cli.cohort import cohort
from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    show_table,
    typed_workspace,
)
from oncofed.cli.features import features
from oncofed.cli.findings import commands, show_findings
from oncofed.cli.hospital import pull, push
from oncofed.cli.looking import look_values, show_look, show_profile
from oncofed.cli.onboard import onboard
from oncofed.cli.registering import register
from oncofed.cli.resolve import resolve
from oncofed.cli.terminal import echo_json
from oncofed.cli.vocabulary import vocabulary
from oncofed.errors import DataError, TrainingError

if TYPE_CHECKING:
    from oncofed.data.contract import Report
    from oncofed.job.spec import JobSpec

app = typer.Typer(
    help="A site's data: pull images from a PACS, register folders of DICOM, NIfTI, slides or images; check, profile, "
    "split, de-identify them.",
    no_args_is_help=True,
)
app.command()(resolve)
app.command()(boxes)
app.command()(cohort)
app.command()(features)
app.command()(onboard)
app.command()(register)
app.command()(pull)
app.command()(push)
app.command()(vocabulary)
app.add_typer(overlap.app, name="overlap")
app.add_typer(encoders.app, name="encoders")

Dataset = Annotated[str, typer.Argument(help="A registered dataset's name, or its folder with dataset.json.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Reader processes; by default one a core.")]

_MOST_SHOWN = 20


@app.command()
def get(
    name: Annotated[str | None, typer.Argument(help="Of the dataset; leave it out to list them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for it; by default public in the workspace.")] = None,
    checksums: Annotated[
        Path | None, typer.Option(help="MD5 of the files, as md5sum writes them, in place of the publisher's.")
    ] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Download a public dataset for one of the jobs: resumes, and verifies checksums."""
    from oncofed.data.public import PUBLIC
    from oncofed.data.public import get as fetch

    if name is None:
        if json:
            typer.echo(jsonlib.dumps({key: vars(public) for key, public in PUBLIC.items()}, indent=2))
            return
        table = Table()
        for heading in ("name", "what it is", "MB", "licence", "job"):
            table.add_column(heading, overflow="fold")
        for key, public in PUBLIC.items():
            size = "asked when fetched" if public.megabytes is None else f"{public.megabytes:,}"
            table.add_row(key, public.title, size, public.licence, public.job)
        show_table(table)
        return
    console = progress_console(json)
    with ended_by_signals(), progress_bars(console) as advance:
        folder = fetch(name, out or workspace / "public", advance, checksums, partial(console.print, soft_wrap=True))
    public = PUBLIC[name]
    if json:
        typer.echo(jsonlib.dumps({"name": name, "folder": str(folder), "job": public.job, "dataset": public.dataset}))
        return
    console.print(f"{folder}: {public.title} ({public.licence})")
    of_data, typed = ["oncofed", "data"], typed_workspace()
    for arguments in public.commands(folder):
        console.print(f"Next: {shlex.join([*of_data, *arguments, *typed])}")
    console.print(f"Then: {shlex.join([*of_data, 'check', public.job, public.dataset, *typed])}")


@app.command()
def check(
    job: Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")],
    dataset: Dataset,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Check whether a job may train on a dataset: what fits, what is converted, what does not fit and why.

    Lists cases set aside, copies of images, patients in two splits and outliers, and warns of data that may identify a
    patient. Exit status 3: a person has to repair something, or cases were set aside; the last line says whether the
    job would train all the same.
    """
    keep_caches_in(workspace)
    from oncofed.data.contract import check_dataset
    from oncofed.job.spec import read_job
    from oncofed.privacy.settings import too_few_patients

    spec = read_job(job, with_code=True)
    folder = dataset_named(dataset, workspace)
    report = check_dataset(
        folder, spec.data, spec.plan().supervision(), spec.seed, spec.task.wanted_features(spec.data)
    )
    patients = report.training_patients
    few = too_few_patients(spec.privacy.differential_privacy, patients) if patients is not None else ""
    if few:
        report.why_not.append(f"found {patients} training patients; {few}")
        report.may_train = False
    cache = _cache_note(folder, spec, report) if report.may_train else ""
    if json:
        typer.echo(jsonlib.dumps({**_report_values(report, job, dataset), "cache": cache}, indent=2))
    else:
        _show_report(report, spec.name, job, dataset)
        if cache:
            typer.echo(f"Training needs room for {cache}.")
    if not report.clean:
        raise typer.Exit(3)


@app.command()
def profile(
    dataset: Dataset,
    out: Annotated[
        Path | None, typer.Option(help="Folder for profile.json and profile.html; by default the dataset's.")
    ] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Summarise a dataset: sizes, spacings, intensities, classes, stains, scanners, pictures.

    Writes profile.json and profile.html, which stay at the site. The job federated_profile combines statistics of
    several sites.
    """
    keep_caches_in(workspace)
    from oncofed.atomic import write_whole
    from oncofed.data.profile import make_profile
    from oncofed.report.profile import write_profile_page

    folder = dataset_named(dataset, workspace)
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    found, manifest = make_profile(folder)
    text = found.model_dump_json(indent=2, by_alias=True)
    write_whole(target / "profile.json", text + "\n")
    page = write_profile_page(found, manifest, folder, target / "profile.html")
    if json:
        echo_json(text)
        return
    show_profile(found, page)


@app.command()
def look(
    dataset: Dataset,
    cases: Annotated[int, typer.Option(min=1, max=1000, help="Cases to show.")] = 24,
    examine: Annotated[
        int, typer.Option(min=1, help="Cases whose label is compared with the image; fewer if they are large.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for look.html; by default the dataset's.")] = None,
    workers: Workers = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Show cases with the contours of their labels, most suspicious first, such as mirrored or shifted masks.

    Writes look.html, one page with pictures, orientation letters and scale bars, which stays at the site. A mask is
    suspicious if it fits its image better when mirrored or shifted, if it lies elsewhere than those of other cases,
    outside the body or on its other side, or if it is very small or of an unusual size.
    """
    keep_caches_in(workspace)
    from oncofed.data.look import look as look_at
    from oncofed.report.look import PAGE_FILE, write_look_page

    folder = dataset_named(dataset, workspace)
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    with ended_by_signals(), progress_bars(progress_console(json)) as advance:
        found = look_at(folder, cases, examine, seed, workers, advance)
        page = write_look_page(found, folder, target / PAGE_FILE, workers, advance)
    if json:
        typer.echo(jsonlib.dumps(look_values(found, page), indent=2))
        return
    show_look(found, folder, page)


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of images; it is only read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the copies.")],
    key: Annotated[
        Path | None,
        typer.Option(help="File with the pseudonyms' secret key; by default deidentify/key in the workspace. Keep it."),
    ] = None,
    keep_dates: Annotated[
        bool,
        typer.Option(
            "--keep-dates",
            help="Shift dates, all of a patient by the same days.",
        ),
    ] = False,
    keep_device: Annotated[bool, typer.Option("--keep-device", help="Keep names and numbers of devices.")] = False,
    keep_burned_in: Annotated[
        bool, typer.Option("--keep-burned-in", help="Also copy images with text burned into their pixels.")
    ] = False,
    workers: Workers = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """De-identify copies of images: DICOM by PS3.15 annex E, slides without label, NIfTI without text.

    It is for images that leave the site. Registering needs no such copy: a dataset holds no names, and nothing but
    weights leaves the site. Faces and burned-in text stay in the pixels.

    Exit status: 1 if a file could not be copied.
    """
    from oncofed.data.deidentify import CROSSWALK_FILE, Options
    from oncofed.data.deidentify import deidentify as copy

    key_file = key or workspace / "deidentify" / "key"
    options = Options(keep_dates, keep_device, keep_burned_in)
    with ended_by_signals(), progress_bars(progress_console(json)) as advance:
        outcome = copy(source, target, key_file, options, workers, advance)
    if json:
        values = {"written": outcome.written, "refused": outcome.refused, "left_out": outcome.left_out}
        typer.echo(jsonlib.dumps(values, indent=2))
    else:
        console = plain_console()
        written = ", ".join(f"{n} {kind}" for kind, n in outcome.written.items()) or "nothing"
        console.print(f"written to {target}: {written}", soft_wrap=True)
        for path, reason in list(outcome.refused.items())[:_MOST_SHOWN]:
            console.print(f"[yellow]not copied[/] {escape(path)}: {escape(reason)}", soft_wrap=True)
        if len(outcome.refused) > _MOST_SHOWN:
            console.print(f"… and {len(outcome.refused) - _MOST_SHOWN} more; --json lists them all")
        if outcome.left_out:
            left = ", ".join(f"{n} {kind}" for kind, n in outcome.left_out.items())
            console.print(f"left out: {left}", soft_wrap=True)
        console.print(f"Which file became which: {key_file.parent / CROSSWALK_FILE}. It stays here.", soft_wrap=True)
    if outcome.refused:
        raise typer.Exit(1)


@app.command()
def split(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Folder for one folder a site.")],
    by: Annotated[
        str | None,
        typer.Option(help="Columns of the table, targets of classes or grades, or size, vendor, modality: stain,size"),
    ] = None,
    parts: Annotated[int | None, typer.Option(min=2, max=1000, help="Number of sites, each of whole patients.")] = None,
    skew: Annotated[
        str | None,
        typer.Option(
            help="How the parts differ: none, size:RATIO of the site before (0.5), dirichlet:ALPHA of groups."
        ),
    ] = None,
    least: Annotated[
        int | None, typer.Option(min=1, help="Fewest patients of a site: 1 by attributes, 3 in parts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws of --parts; 1 by default.")] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Split a registered dataset into sites, to try a federation on one machine.

    By attributes: --by stain,size makes a site of each combination; those of fewer than --least patients form one
    site, others. In parts: --parts 4 --skew dirichlet:0.3 makes four sites with different shares of each group of
    patients. Groups are those of --by, else the classes, else quarters by the labelled volume.
    """
    from oncofed.data.manifest import read_manifest
    from oncofed.data.partition import deal_by_tags, deal_in_parts
    from oncofed.data.skew import parse_skew

    tags = [tag.strip() for tag in by.split(",")] if by is not None else []
    if parts is None and (by is None or skew is not None or seed is not None):
        raise typer.BadParameter("expected --by, --parts, or both; --skew and --seed belong to --parts.")
    how = parse_skew(skew or "none")
    if parts is not None and tags and how.kind != "dirichlet":
        raise typer.BadParameter(
            "--by with --parts names groups for --skew dirichlet:ALPHA; expected that, or no --by."
        )
    folder = dataset_named(dataset, workspace)
    if parts is None:
        sites = deal_by_tags(folder, out, tags, 1 if least is None else least)
    else:
        sites = deal_in_parts(folder, out, parts, how, tags, 3 if least is None else least, 1 if seed is None else seed)
    counts = {site: len(read_manifest(path).entries) for site, path in sites.items()}
    if json:
        typer.echo(jsonlib.dumps({s: {"folder": str(p), "cases": counts[s]} for s, p in sites.items()}, indent=2))
        return
    table = Table()
    table.add_column("site")
    table.add_column("cases", justify="right")
    for site, count in counts.items():
        table.add_row(site, str(count))
    console = plain_console()
    show_table(table, console)
    arguments = [part for site, path in sites.items() for part in ("--site", f"{site}={path}")]
    run = shlex.join(["oncofed", "job", "run", "JOB", *arguments, *typed_workspace()])
    console.print(f"Train on them: {run}", soft_wrap=True, highlight=False)


def _cache_note(folder: Path, spec: JobSpec, report: Report) -> str:
    """Return size and place of the prepared training cases; of cases of another encoder, report that instead."""
    import torch

    from oncofed.data.cases import by_patient, read_cases
    from oncofed.data.prepared import plan_cache

    wanted, input_ = spec.plan().supervision(), spec.plan().build_task().input(spec.training.augmentation)
    cases = read_cases(folder, spec.data.split, spec.seed, wanted, spec.data.splits)
    cases = cases.without({problem.case for problem in report.set_aside})
    if wanted.whole_patients:
        cases, _ = by_patient(cases, spec.data, wanted)
    try:
        input_.origin(tuple(cases))
    except (DataError, TrainingError) as error:
        report.why_not.append(str(error))
        report.may_train = False
        return ""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return plan_cache(cases.train, input_, device).note


def _report_values(report: Report, job: str, dataset: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {"clean": report.clean, **asdict(report), "commands": commands(report, job, dataset)}


def _show_report(report: Report, name: str, job: str, dataset: str) -> None:
    console = plain_console()
    table = Table(title=f"{name} on {dataset}", title_justify="left")
    for heading in ("", "found", "expected", "verdict", "how, or why not"):
        table.add_column(heading, overflow="fold")
    colours = {"fits": "green", "converted": "cyan", "does not fit": "red"}
    for row in report.rows:
        verdict = {"converted": "can be converted"}.get(row.verdict, row.verdict)
        colour = colours[row.verdict]
        table.add_row(row.aspect, escape(row.found), escape(row.expected), f"[{colour}]{verdict}[/]", escape(row.how))
    show_table(table, console)
    show_findings(report, job, dataset)
    cases = ", ".join(f"{n} {split}" for split, n in report.cases.items())
    if report.may_train:
        aside = f", without the {len(report.set_aside)} set aside" if report.set_aside else ""
        # What concerns the dataset as a whole, such as a covariate that is the outcome, sets no case aside.
        open_ = "finding" if len(report.findings) == 1 else f"{len(report.findings):,} findings"
        but = f" But first answer the {open_} above." if report.findings else ""
        colour = "yellow" if but else "green"
        console.print(f"[{colour}]The job may train here[/]: {cases}{aside}.{but}", soft_wrap=True)
    else:
        console.print("[red]The job does not train here[/]:", soft_wrap=True)
        for reason in report.why_not:
            console.print(f"  - {escape(reason)}", soft_wrap=True)
