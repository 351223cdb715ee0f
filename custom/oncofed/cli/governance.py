"""``oncofed site policy`` and ``oncofed site audit``."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from oncofed.cli.common import escape, plain_console, show_table, show_text
from oncofed.cli.terminal import echo_json, is_terminal
from oncofed.errors import DataError, PolicyError, SpecError

if TYPE_CHECKING:
    from oncofed.privacy.policy import Policy

policy_app = typer.Typer(
    help="What may run at this site: jobs, people, datasets, networks, strategies, hours; and what may leave it.",
    no_args_is_help=True,
)
audit_app = typer.Typer(
    help="The record of what ran, what left and who allowed it, chained so that every change is found.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--folder", envvar="ONCOFED_SITE", help="The kit's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Anchors = Annotated[
    Path | None,
    typer.Option("--anchors", help="File of the server's `oncofed site audit anchors`: finds a cut-off tail."),
]


@policy_app.command()
def show(folder: Folder = Path(), json: Json = False) -> None:
    """Show the policy in force, each setting with its description."""
    from oncofed.site.policies import current_policy, policy_text, policy_version

    policy = current_policy(folder)
    if json:
        echo_json(policy.model_dump_json(indent=2, by_alias=True))
        return
    console = plain_console()
    show_text(policy_text(policy), "yaml", console)
    console.print(f"version {policy_version(folder)}, digest {policy.digest}")


@policy_app.command()
def edit(
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for the audit log: a sentence that an auditor understands.")
    ],
    folder: Folder = Path(),
    file: Annotated[
        Path | None, typer.Option("--file", help="The new policy as YAML; else your editor opens ($EDITOR).")
    ] = None,
) -> None:
    """Change the policy for future jobs. The change is recorded before it takes effect."""
    from oncofed.site.policies import change_policy, policy_difference

    policy, version = _edit_in_editor(folder, reason) if file is None else change_policy(folder, file, reason)
    console = plain_console()
    console.print(policy_difference(folder), markup=False)
    console.print(f"version {version} is in force, digest {policy.digest}")


@policy_app.command()
def diff(
    one: Annotated[int | None, typer.Argument(help="Version; by default the last but one.")] = None,
    other: Annotated[int | None, typer.Argument(help="Version; by default the last.")] = None,
    folder: Folder = Path(),
) -> None:
    """Show what changed between two versions of the policy."""
    from oncofed.site.policies import policy_difference

    text = policy_difference(folder, one, other)
    typer.echo(text or "the policy was never changed" if one is None else text or "no difference")


@policy_app.command("test")
def try_job(
    job: Annotated[str, typer.Argument(help="A job's name or its job.yaml.")],
    folder: Folder = Path(),
    person: Annotated[str | None, typer.Option("--person", help="Who would submit it.")] = None,
) -> None:
    """Check whether a job may run here: exit status 0, or 3 with the rule that it breaks.

    Of a job with differential privacy also whether the site's patients are enough, and could pay for it.
    """
    from oncofed.job.spec import read_job
    from oncofed.privacy.policy import ProposedJob
    from oncofed.site.budget import refusal_of_job
    from oncofed.site.policies import current_policy

    policy = current_policy(folder)
    spec = read_job(job)
    facts = ProposedJob(
        spec.name,
        person,
        spec.data.dataset,
        spec.model.network,
        spec.strategy.name,
        smallest_sum=spec.federation().smallest_sum,
        noise_multiplier=spec.noise_multiplier,
        noise=spec.noise,
        scores=spec.scores,
    )
    refusal = policy.refusal(facts)
    unknown = ""
    if spec.privacy.differential_privacy and not refusal:
        try:
            refusal = refusal_of_job(folder, spec.plan())
        except DataError as error:
            unknown = f", as far as its patients are enough and can pay for it, which is not known: {error}"
    if refusal:
        raise PolicyError(f"{spec.name}: {refusal}")
    whom = f" by {person}" if person else ""
    plain_console().print(f"{spec.name}{whom} may run here{unknown}", markup=False, soft_wrap=True)


@audit_app.command("show")
def show_audit(
    folder: Folder = Path(),
    job: Annotated[str | None, typer.Option("--job", help="Only of this job: the beginning of its id.")] = None,
    what: Annotated[
        str | None, typer.Option("--what", help="Entries of a kind, such as left, refused, policy.")
    ] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="Number of entries.")] = 50,
    json: Json = False,
) -> None:
    """Show the last entries."""
    from oncofed.site.auditing import entries, facts_text

    found = entries(folder, job, what)[-last:]
    if json:
        typer.echo(jsonlib.dumps(found, indent=2))
        return
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("#", "time", "who", "what", "facts"):
        table.add_column(heading, overflow="fold")
    full = not is_terminal(sys.stdout)
    for entry in found:
        facts = facts_text(entry, full)
        cells = (str(entry["n"]), str(entry["time"])[:19], str(entry["who"]), str(entry["what"]), facts)
        table.add_row(*map(escape, cells))
    if found:
        show_table(table)
    else:
        typer.echo("no entries")


@audit_app.command()
def verify(folder: Folder = Path(), anchors: Anchors = None, json: Json = False) -> None:
    """Check that no line was changed, moved, removed or, with --anchors, cut off: exit status 0, or 3."""
    from oncofed.site import auditing

    problems, last = auditing.verify(folder, anchors)
    if json:
        found = [{"line": problem.line, "what": problem.what} for problem in problems]
        typer.echo(jsonlib.dumps({"whole": not problems, "last": str(last) if last else None, "problems": found}))
    else:
        for problem in problems:
            typer.echo(f"line {problem.line}: {problem.what}" if problem.line else problem.what, err=True)
        if not problems:
            cut = "" if anchors else "; whether its end was cut off is told only with --anchors"
            typer.echo(f"whole: {last.number if last else 0} entries{cut}")
    if problems:
        raise typer.Exit(3)


@audit_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write: .csv, or .html for a page.")],
    folder: Folder = Path(),
    anchors: Anchors = None,
) -> None:
    """Write the log as CSV, or as a page of what ran, what left and who allowed it."""
    from oncofed.site.auditing import export_csv, export_page

    if out.suffix not in (".csv", ".html"):
        raise SpecError(f"{out}: expected a name that ends in .csv or .html")
    count = export_csv(folder, out) if out.suffix == ".csv" else export_page(folder, out, anchors)
    plain_console().print(f"{out}: {count} entries", markup=False)


@audit_app.command("anchors")
def show_anchors(
    folder: Folder = Path(),
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else they are printed.")] = None,
) -> None:
    """At the server: the last known line of each site's log, for verify --anchors at the site."""
    from oncofed.site.auditing import exported_anchors

    text = jsonlib.dumps(exported_anchors(folder), indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


def _edit_in_editor(folder: Path, reason: str) -> tuple[Policy, int]:
    from oncofed.site.policies import change_policy, current_policy, policy_text

    if not sys.stdin.isatty():
        raise SpecError("without a terminal give the new policy as --file FILE")
    with tempfile.TemporaryDirectory(prefix="oncofed-policy-") as temporary:
        draft = Path(temporary) / "policy.yaml"
        draft.write_text(policy_text(current_policy(folder)), encoding="utf-8")
        subprocess.run([*shlex.split(os.environ.get("EDITOR", "vi")), str(draft)], check=True)
        return change_policy(folder, draft, reason)
