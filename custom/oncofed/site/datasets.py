"""Checks of registered datasets: present, fit for jobs, de-identified."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from oncofed.data.contract import check_dataset
from oncofed.data.decisions import decided
from oncofed.data.manifest import MANIFEST_FILE, read_manifest
from oncofed.data.quality import phi_warnings, unsettled
from oncofed.errors import DataError
from oncofed.site.check import Check
from oncofed.training import Plan

_REGISTER = "register the folder: oncofed data register FOLDER --dataset NAME --out DATASET"


def check_datasets(datasets: Mapping[str, Path], jobs: Mapping[str, Plan]) -> Iterator[Check]:
    """Check a site's datasets.

    Args:
        datasets: name -> folder, from ``site.yaml``.
        jobs: name -> plan of the alliance's jobs.
    """
    missing = [name for name, folder in datasets.items() if not (folder / MANIFEST_FILE).is_file()]
    if missing:
        found = f"{', '.join(missing)}: no {MANIFEST_FILE} in the folder that site.yaml names"
        yield Check("datasets", "fail", found, _REGISTER)
    elif not datasets:
        yield Check("datasets", "warn", "none", f"{_REGISTER}; then name it in site.yaml")
    else:
        yield Check("datasets", "ok", ", ".join(sorted(datasets)))
    for name, folder in datasets.items():
        if name not in missing:
            yield from _check_phi(name, folder)
    for job, plan in jobs.items():
        yield _check_job(job, plan, datasets)


def _check_phi(name: str, folder: Path) -> Iterator[Check]:
    try:
        manifest = decided(read_manifest(folder))
    except DataError as error:
        yield Check(f"dataset {name}", "fail", str(error), _REGISTER)
        return
    found = unsettled(manifest, phi_warnings(manifest))
    if found:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in found))
        advice = f"oncofed data check JOB {shlex.quote(str(folder))} names the cases; oncofed data deidentify --help"
        yield Check(f"patients in {name}", "warn", f"{len(found)} findings that may identify one: {kinds}", advice)
    else:
        yield Check(f"patients in {name}", "ok", "nothing was found that identifies one")


def _check_job(job: str, plan: Plan, datasets: Mapping[str, Path]) -> Check:
    name, folder = plan.data.dataset, datasets.get(plan.data.dataset)
    if folder is None:
        return Check(f"job {job}", "fail", f"site.yaml names no dataset {name}", f"name it there; {_REGISTER}")
    try:
        report = check_dataset(folder, plan.data, plan.supervision(), plan.seed, plan.task.wanted_features(plan.data))
    except DataError as error:
        return Check(f"job {job}", "fail", str(error), _REGISTER)
    advice = f"{shlex.join(['oncofed', 'data', 'check', job, str(folder)])} says more"
    if not report.may_train:
        return Check(f"job {job}", "fail", f"{name}: {'; '.join(report.why_not[:2])}", advice)
    cases = ", ".join(f"{number} {split}" for split, number in report.cases.items())
    if not report.clean:
        but = [f"{len(report.set_aside)} cases are set aside"] if report.set_aside else []
        but += [finding.what for finding in report.findings]
        return Check(f"job {job}", "warn", f"{name} fits: {cases}; {'; '.join(but)}", advice)
    return Check(f"job {job}", "ok", f"{name} fits: {cases}")
