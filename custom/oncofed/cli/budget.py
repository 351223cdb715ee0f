"""``oncofed site budget``."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from oncofed.cli.common import plain_console, show_table
from oncofed.cli.governance import Folder, Json
from oncofed.errors import PolicyError, SpecError

budget_app = typer.Typer(
    help="What differential privacy has cost this site's patients, over all jobs.", no_args_is_help=True
)


@budget_app.command()
def show(folder: Folder = Path(), json: Json = False) -> None:
    """Show how much patients have spent, and what is left of the policy's limit."""
    from oncofed.site.budget import read_budget

    budget = read_budget(folder)
    limit, delta = budget.limits.a_patient, budget.limits.delta
    if json:
        groups = [
            {"patients": one.patients, "jobs": list(one.jobs), "epsilon": one.epsilon, "account": one.account}
            for one in budget.groups
        ]
        typer.echo(jsonlib.dumps({"delta": delta, "largest_epsilon_a_patient": limit, "groups": groups}))
        return
    if not budget.groups:
        typer.echo("no job with differential privacy was charged here")
        return
    table = Table("patients", "jobs", "epsilon", "left", box=SIMPLE)
    for group in budget.groups:
        left = f"{max(limit - group.epsilon, 0):.4g}" if limit is not None else "no limit"
        table.add_row(f"{group.patients}", f"{len(group.jobs)}", f"{group.epsilon:.4g}", left)
    show_table(table)
    typer.echo(f"Epsilons at delta {delta:g}, of all jobs together. What is left is not what a job may cost: see test.")


@budget_app.command("test")
def try_job(
    job: Annotated[str, typer.Argument(help="A job's name or its job.yaml.")],
    folder: Folder = Path(),
) -> None:
    """Check whether patients could pay for a job: exit status 0, or 3 with how many could not."""
    from oncofed.job.spec import read_job
    from oncofed.site.budget import refusal_of_job

    spec = read_job(job)
    reason = refusal_of_job(folder, spec.plan())
    if reason:
        raise PolicyError(f"{spec.name}: {reason}")
    plain_console().print(f"{spec.name}: all its patients here can pay for it", markup=False)


@budget_app.command()
def confirm(
    folder: Folder = Path(),
    anchors: Annotated[
        Path | None,
        typer.Option("--anchors", help="File of the server's admin (oncofed site audit anchors): nothing is missing."),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Without the server's file: why it is right all the same; it is recorded.")
    ] = "",
) -> None:
    """After a backup was put back: compare the audit log with the server's last line of it, and take charges again."""
    from oncofed.privacy.ledger import Ledger
    from oncofed.site.auditing import require_later, verify

    ledger = Ledger(folder)
    found = ledger.restored()
    if not found:
        raise SpecError(f"{folder}: its ledger was not put back from a backup, or that is confirmed already")
    if not anchors and not reason.strip():
        raise SpecError("expected --anchors FILE, from the server's admin, or --reason TEXT")
    if anchors:
        require_later(anchors, found)
        problems, _ = verify(folder, anchors)
        if problems:
            raise PolicyError(
                f"the server knows of lines after the backup of {found.made}: {problems[0].what}. What patients spent "
                "in them is not known. Put a later backup back, or say with --reason why it is right all the same"
            )
    ledger.confirm(reason.strip() or "the server's last line is in the audit log")
    typer.echo(f"{folder}: its ledger takes charges again")
