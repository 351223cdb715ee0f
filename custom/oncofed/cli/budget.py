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
from oncofed.errors import PolicyError

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
