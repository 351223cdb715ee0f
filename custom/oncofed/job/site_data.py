"""Checks the data of a run's sites before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from oncofed.data.cases import Cases, Usable, usable_cases
from oncofed.data.contract import doubts
from oncofed.data.grouping import finding_lines
from oncofed.errors import DataError
from oncofed.job.spec import JobSpec
from oncofed.job.watch import progress_bar
from oncofed.privacy.settings import too_few_patients


@dataclass(frozen=True)
class CheckedSites:
    """Usable cases of a run's sites.

    Attributes:
        cases: by site.
        set_aside: number of cases that cannot be used, by site.
    """

    cases: dict[str, Cases] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)


def checked_sites(spec: JobSpec, sites: Mapping[str, Path], console: Console, trains: bool = True) -> CheckedSites:
    """Check the sites' data, and say what is set aside or doubtful.

    Args:
        spec: the job.
        sites: site name -> folder of its data.
        console: for progress and findings.
        trains: whether the job trains, and does not score a model alone.

    Raises:
        DataError: the data of one or more sites cannot be used; names each.
    """
    console.print(f"checking the data of {', '.join(sites)} …", markup=False, highlight=False)
    refused, found = [], CheckedSites()
    for site, folder in sites.items():
        try:
            usable = _usable(spec, site, folder, console)
        except DataError as error:
            refused.append(str(error))
            continue
        patients = len({case.patient for case in usable.cases.train})
        few = too_few_patients(spec.privacy.differential_privacy, patients)
        if few and trains:
            refused.append(f"{site}: found {patients} training patients; {few}")
        found.cases[site] = usable.cases
        found.set_aside[site] = len(usable.set_aside)
        for line in finding_lines((problem.case, problem.what) for problem in usable.set_aside):
            console.print(f"set aside {site}: {line}", markup=False, highlight=False)
        _tell_doubts(spec, site, folder, console)
    if refused:
        raise DataError("\n".join(refused))
    return found


def _usable(spec: JobSpec, site: str, folder: Path, console: Console) -> Usable:
    plan = spec.plan()
    with progress_bar(console) as bar:
        task = bar.add_task(f"checking images of {site}", total=0)
        return usable_cases(
            folder,
            plan.data,
            plan.supervision(),
            plan.seed,
            site,
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _tell_doubts(spec: JobSpec, site: str, folder: Path, console: Console) -> None:
    plan = spec.plan()
    for doubt in doubts(folder, plan.data, plan.supervision(), spec.seed):
        label = f"found {site}: {doubt.kind}" if doubt.severe else f"warning {site}"
        console.print(f"{label}: {doubt.what}", markup=False, highlight=False, soft_wrap=True)
