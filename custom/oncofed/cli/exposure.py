"""``oncofed job exposure``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    progress_bars,
    progress_console,
    show_table,
)
from oncofed.cli.run_options import Model, named_sites, require_model
from oncofed.cli.terminal import echo_json
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.exposure.results import Exposure, View

_OF_RUN = "exposure"  # folder within a run's


def exposure(
    job: Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")],
    site: Annotated[
        list[str],
        typer.Option(
            "--site",
            help="NAME=DATASET: its patients are attacked. Further ones are the other sites of the sum; without, parts "
            "of the one dataset are.",
        ),
    ],
    sites: Annotated[
        int | None,
        typer.Option(min=2, max=50, help="Sites in the sum, with one --site; by default the job's fewest, else 4."),
    ] = None,
    model: Model = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer patients, images and iterations.")] = False,
    targets: Annotated[int | None, typer.Option(min=1, max=32, help="Images that are drawn again.")] = None,
    iterations: Annotated[int | None, typer.Option(min=8, max=100_000, help="Of each drawing.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is random in the attacks.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; by default a new one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print exposure.json to stdout, progress to stderr.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="A run's folder: its report shows the figures, and the result is kept in its exposure/."),
    ] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Attack a job with your own data, on this machine: which patients and images do its updates give away?"""
    keep_caches_in(workspace)
    from oncofed.data.cases import usable_cases
    from oncofed.exposure.measure import QUICK, Attacked, Effort, measure, require_patches
    from oncofed.job.spec import read_job
    from oncofed.prediction.model import read_weights
    from oncofed.report.exposure import FIGURES, require_report, write_exposure, write_into_report

    spec = read_job(job)
    require_model(model, evaluate_only=False)
    plan = spec.plan()
    require_patches(spec.name, plan)
    folders = named_sites(site, workspace)
    if into and out:
        raise SpecError("found --into and --out, expected one of them: --into keeps the result in the run's folder")
    if into:
        require_report(into, spec.name)
    folder = into / _OF_RUN if into else out or new_run_folder(workspace, f"{spec.name}-exposure")
    if not into and folder.exists() and any(folder.iterdir()):
        raise SpecError(f"{folder} is not empty. Name a new folder with --out, or leave --out away.")
    if sites and len(folders) > 1:
        raise SpecError(f"found --sites {sites} beside {len(folders)} sites, expected one --site, or no --sites")
    secure = spec.privacy.secure_aggregation
    effort = QUICK if quick else Effort()
    attacked = Attacked(
        name=spec.name,
        title=spec.title,
        plan=plan,
        strategy=spec.strategy.name,
        weights=read_weights(model) if model else None,
        sites=sites or (secure.minimum_sites if secure else 4),
    )
    console = progress_console(json)
    with ended_by_signals(), progress_bars(console) as advance:
        cases = {
            name: usable_cases(
                path,
                plan.data,
                plan.supervision(),
                plan.seed,
                name,
                partial(advance, f"{name}: checking data"),
            ).cases.train
            for name, path in folders.items()
        }
        effort = replace(effort, targets=targets or effort.targets, iterations=iterations or effort.iterations)
        found = measure(attacked, cases, effort, seed, advance)
    page = write_exposure(found, folder)
    report = write_into_report(found, into, _OF_RUN) if into else None
    if json:
        echo_json(found.model_dump_json(indent=2))
        return
    show_table(_table(found))
    if found.audit:
        console.print(
            f"one-run audit of the noise: epsilon at least {found.audit.epsilon_at_least:.2f} (more than "
            f"{found.audit.epsilon_most:.2f} it cannot show)"
        )
    console.print(f"Each figure is {found.words}. It took {found.seconds:.0f} s.", soft_wrap=True)
    console.print(f"Page:    {page}\nResult:  {folder / FIGURES}", soft_wrap=True)
    if report:
        console.print(f"Report:  {report}", soft_wrap=True)


def _table(found: Exposure) -> Table:
    table = Table(title=f"{found.title}: attacks of {found.when}", title_justify="left")
    table.add_column("what is seen")
    for heading in ("AUC, at least", "at 1 % false alarms", "images, at least", "by chance", "correlation"):
        table.add_column(heading, justify="right")
    for view in found.views:
        table.add_row(*_row(view), style="bold" if view.as_configured else "")
    return table


def _row(view: View) -> list[str]:
    a, b = view.recognition, view.reconstruction
    name = f"{view.name} (what this job's server is given)" if view.as_configured else view.name
    recognised = [f"{a.auc:.2f}", f"{a.true_positive_rate:.0%}"] if a else ["–", "–"]
    assert b  # all of them are shown here, to their owner
    images = [f"{b.recognised} of {b.targets}", f"{b.chance * b.targets:.1f}", f"{b.correlation:.2f}"]
    return [name, *recognised, *images]
