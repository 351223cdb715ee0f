"""``oncofed data onboard``."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    datasets_folder,
    ended_by_signals,
    escape,
    keep_caches_in,
    plain_console,
    progress_bars,
    progress_console,
    typed_workspace,
)
from oncofed.cli.resolve import kit_of

if TYPE_CHECKING:
    from oncofed.hospital.onboarding import Onboarded


def onboard(
    file: Annotated[Path, typer.Argument(help="The study's file, such as study.yaml.")],
    site: Annotated[
        Path | None,
        typer.Option(envvar="ONCOFED_SITE", help="The site's kit, for its audit log; by default this folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Go from a cohort to a checked dataset: select, pull, register, check against a job, write a page.

    Given again, for example each month, it reads what is new and says what changed.

    Exit status: 1 if the archive did not send all objects of the cohort; the dataset lacks them until the same command
    has them. 3: findings are open, or the job does not train here; the page says why. That the archive has no images of
    some of the cohort's patients is said, and no error: that is so each month.
    """
    keep_caches_in(workspace)
    from oncofed.hospital.onboarding import onboard as bring
    from oncofed.hospital.onboarding import read_study

    study = read_study(file)
    console, key = progress_console(json), workspace / "deidentify" / "key"
    notify = lambda text: console.print(escape(text))  # noqa: E731
    with ended_by_signals(), progress_bars(console) as advance:
        done = bring(study, datasets_folder(workspace), kit_of(site), key, advance, notify)
    if json:
        typer.echo(jsonlib.dumps(_values(done), indent=2))
    else:
        _show(done)
    if done.missing:
        raise typer.Exit(1)
    if not done.report.clean:
        raise typer.Exit(3)


def _values(done: Onboarded) -> dict[str, object]:
    return {
        "dataset": str(done.dataset),
        "page": str(done.page),
        "may_train": done.report.may_train,
        "why_not": done.report.why_not,
        "figures": done.figures,
        "notes": list(done.selected.notes) if done.selected else [],
        "pull": done.pull_notes,
        "missing": done.missing,
        "changes": [{"what": what, "then": then, "now": now} for what, then, now in done.differences],
        "cohort_changes": vars(done.changes) if done.changes else None,
    }


def _show(done: Onboarded) -> None:
    console = plain_console()
    for name, number in done.figures.items():
        console.print(f"{name}: {number:,}")
    for line in done.notes:
        console.print(f"[yellow]note[/] {escape(line)}")
    if done.missing:
        console.print(
            f"[red]{done.missing:,} objects did not arrive[/]: the dataset lacks them. The same command goes on there"
        )
    for name, then, now in done.differences:
        console.print(f"since the last time: {name} {then:,}, now {now:,}")
    if done.changes:
        new, gone, other = done.changes.new, done.changes.gone, done.changes.other
        console.print(
            f"since the last time, patients of the cohort: {new:,} new, {gone:,} gone, {other:,} other values"
        )
    console.print(f"{done.page}: what fits and what does not", markup=False, soft_wrap=True)
    check = ["oncofed", "data", "check", done.study.job, done.study.name, *typed_workspace()]
    if not done.report.may_train:
        console.print("The job does not train here:")
        for reason in done.report.why_not:
            console.print(f"  - {reason}", markup=False, soft_wrap=True)
    elif done.report.clean:
        console.print("The job may train here.")
    else:
        console.print(
            f"The job may train here, but findings are open. To answer them: {shlex.join(check)}", soft_wrap=True
        )
