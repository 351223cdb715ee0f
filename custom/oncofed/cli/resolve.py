"""``oncofed data resolve``: decisions about findings in a dataset."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    keep_caches_in,
    plain_console,
    typed_workspace,
)
from oncofed.data.answers import ANSWERS
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.data.resolve import JobFindings, Outcome


def _option(finding: str) -> Any:
    answer = next(answer for answer in ANSWERS if answer.finding == finding)

    def known(value: str | None) -> str | None:
        if value is not None and value not in answer.actions:
            raise typer.BadParameter(f"found {value!r}, expected {', '.join(answer.actions)}")
        return value

    meaning = "; ".join(f"{action}: {what}" for action, what in answer.actions.items())
    kinds = " or ".join(answer.kinds)
    return typer.Option(
        f"--{finding}", metavar="|".join(answer.actions), callback=known, help=f"{kinds}. {meaning}.".capitalize()
    )


def resolve(
    dataset: Annotated[str, typer.Argument(help="A registered dataset's name, or its folder with dataset.json.")],
    copies: Annotated[str | None, _option("copies")] = None,
    conflicting: Annotated[str | None, _option("conflicting")] = None,
    patients: Annotated[str | None, _option("patients")] = None,
    modality: Annotated[str | None, _option("modality")] = None,
    spacing: Annotated[str | None, _option("spacing")] = None,
    intensity: Annotated[str | None, _option("intensity")] = None,
    constant: Annotated[str | None, _option("constant")] = None,
    empty_label: Annotated[str | None, _option("empty-label")] = None,
    set_aside: Annotated[str | None, _option("set-aside")] = None,
    burned_in: Annotated[str | None, _option("burned-in")] = None,
    path_names: Annotated[str | None, _option("path-names")] = None,
    header_text: Annotated[str | None, _option("header-text")] = None,
    faces: Annotated[str | None, _option("faces")] = None,
    loose_slices: Annotated[str | None, _option("loose-slices")] = None,
    job: Annotated[str | None, typer.Option(help="A job, for findings that depend on its expectations.")] = None,
    why: Annotated[str, typer.Option(help="Reason, for later readers; name no patient.")] = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back the given decisions; without any, the latest ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the effect, and change nothing.")] = False,
    site: Annotated[
        Path | None,
        typer.Option(envvar="ONCOFED_SITE", help="The site's kit, for its audit log; by default this folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Decide about all findings of a kind, so that training can go on; without a decision, list open findings.

    The decision is recorded in dataset.json with person, time and reason, and in the site's audit log. The cases stay
    listed, and registering again keeps the decision; later findings and changed cases are reported again.
    """
    keep_caches_in(workspace)
    from oncofed.data.resolve import resolve as decide
    from oncofed.data.resolve import take_back

    given = locals()
    choices = {a.finding: given[a.finding.replace("-", "_")] for a in ANSWERS if given[a.finding.replace("-", "_")]}
    folder = dataset_named(dataset, workspace)
    if undo:
        outcome = take_back(folder, choices, why, kit_of(site), dry_run)
    elif choices:
        asked, more = _asked(job, folder), typed_workspace()
        outcome = decide(folder, choices, why, asked, kit_of(site), dry_run, lambda a: a.command(dataset, job, more))
    else:
        _list(folder, dataset, job, json)
        return
    _show(outcome, dry_run, undo, json)


def kit_of(site: Path | None) -> Path | None:
    """Return the kit for the audit log.

    It is the named one, else this folder if it is a kit.
    """
    folder = site or Path()
    if (folder / "startup").is_dir():
        return folder
    if site is not None:
        raise SpecError(f"--site {site}: found no startup kit there. Name the folder that `oncofed site open` made.")
    return None


def _asked(job: str | None, folder: Path) -> JobFindings:
    from oncofed.data.resolve import JobFindings

    if job is None:
        return JobFindings()
    from oncofed.data.contract import check_dataset
    from oncofed.job.spec import read_job

    spec = read_job(job, with_code=True)
    report = check_dataset(
        folder, spec.data, spec.plan().supervision(), spec.seed, spec.task.wanted_features(spec.data)
    )
    return JobFindings(spec.data, report.set_aside)


def _list(folder: Path, dataset: str, job: str | None, json: bool) -> None:
    from collections import Counter

    from oncofed.data.answers import answer_to
    from oncofed.data.decisions import decided, in_words
    from oncofed.data.manifest import read_manifest
    from oncofed.data.resolve import open_findings

    manifest = read_manifest(folder)
    counts = Counter(finding.kind for finding in open_findings(decided(manifest), _asked(job, folder)))
    answers = {kind: answer for kind in counts if (answer := answer_to(kind))}
    commands = {kind: answer.command(dataset, job, typed_workspace()) for kind, answer in answers.items()}
    words = in_words(manifest)
    if json:
        values = {"open": dict(counts), "commands": commands, "decisions": words}
        typer.echo(jsonlib.dumps(values, indent=2))
        return
    console = plain_console()
    for kind, count in counts.items():
        _, *others = answers[kind].actions
        more = f"   (or {', '.join(others)})" if others else ""
        console.print(f"open: {kind}, {count:,}: {commands[kind]}{more}", markup=False)
    for word in words:
        console.print(f"decided {word}", markup=False)
    if not counts:
        console.print("nothing is open", markup=False)


def _show(outcome: Outcome, dry_run: bool, undo: bool, json: bool) -> None:
    if json:
        values = {
            "dry_run": dry_run,
            "undo": undo,
            "decisions": [decision.model_dump(mode="json") for decision in outcome.decisions],
            "words": outcome.words,
            "told": outcome.messages,
            "audit_log": str(outcome.recorded) if outcome.recorded else None,
        }
        typer.echo(jsonlib.dumps(values, indent=2))
        return
    console = plain_console()
    done = "taken back" if undo else "decided"
    for words in outcome.words:
        console.print(f"{'would be ' if dry_run else ''}{done} {words}", markup=False)
    for line in outcome.messages:
        console.print(line, markup=False)
    if dry_run:
        console.print("Nothing was changed (--dry-run).", markup=False)
    elif outcome.recorded:
        console.print(f"Kept in dataset.json and in the audit log: {outcome.recorded}", markup=False)
    else:
        console.print(
            "Kept in dataset.json. No audit log has it: this folder is no site's kit. Name the kit with --site FOLDER.",
            markup=False,
        )
