"""From a cohort to a checked dataset in one sitting, again and again.

Each step is a command of its own, too; here they follow each other, and what differs from the last time is said. A step
that fails leaves what the earlier ones made: the next time goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from oncofed.data.contract import Report, check_dataset
from oncofed.data.deidentify import pseudonym, read_key
from oncofed.data.manifest import Manifest
from oncofed.data.register import register
from oncofed.data.register_options import RegisterOptions
from oncofed.data.target_columns import parse_targets
from oncofed.hospital.cohort import read_cohort as read_patients
from oncofed.hospital.landing import IMAGES
from oncofed.hospital.notes import notes
from oncofed.hospital.pull import PullOptions, PullOutcome, deidentify_options, pull, record
from oncofed.hospital.selecting import Selected, select
from oncofed.hospital.settings import read_pacs
from oncofed.job.spec import JobSpec, read_job
from oncofed.private_files import write_private
from oncofed.records import read_cohort
from oncofed.records.files import OUTCOMES, PATIENTS, TARGETS, Changes
from oncofed.report.pages import render
from oncofed.settings import SettingError, StrictModel, read_yaml, validated

PAGE_FILE, _FIGURES_FILE = "onboarding.html", "onboarding.json"
# Called with (activity, units done, all units).
Progress = Callable[[str, int, int], None]


class Images(StrictModel):
    """Where the images are."""

    folder: Path = Field(
        description="of images in any layout, from the folder of this file; it is only read. With pacs: of the pull"
    )
    pacs: Path | None = Field(None, description="pacs.yaml: the cohort's images are pulled first; null: they are there")


class Study(StrictModel):
    """What a site brings to a job."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="of the dataset: lower case, digits, _ and -")
    job: str = Field(description="that the dataset is checked against: a job's name, its folder, or its job.yaml")
    cohort: Path | None = Field(None, description="the cohort's file, for outcomes and covariates; null: images alone")
    images: Images

    @model_validator(mode="after")
    def _is_no_path(self) -> Self:
        if self.cohort and self.cohort.suffix.lower() not in {".yaml", ".yml"}:
            raise SettingError(
                f"found {str(self.cohort)!r}, expected a file such as lung.yaml (oncofed data cohort)", "cohort"
            )
        if self.images.pacs and not self.cohort:
            raise SettingError("expected a cohort, too, whose images are pulled", "images.pacs")
        return self


@dataclass
class Onboarded:
    """What came of a sitting.

    Attributes:
        study: its settings.
        dataset: the registered dataset's folder.
        page: of what fits and what does not; it stays at the site.
        report: the dataset against the job.
        selected: the cohort; None: the study has none.
        pulled: what the archive had; None: nothing is pulled.
        figures: name -> number, of this time.
        before: the same of the last time; empty: it is the first.
    """

    study: Study
    dataset: Path
    page: Path
    report: Report
    selected: Selected | None = None
    pulled: PullOutcome | None = None
    figures: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)

    @property
    def changes(self) -> Changes | None:
        """Of the cohort since the last time; None: there was none."""
        return self.selected.changes if self.selected else None

    @property
    def missing(self) -> int:
        """Objects that the archive names and did not send."""
        return self.pulled.missing if self.pulled else 0

    @property
    def notes(self) -> list[str]:
        """What a person should know of the cohort and the pull; it names no patient."""
        return [*(self.selected.notes if self.selected else ()), *self.pull_notes]

    @property
    def pull_notes(self) -> list[str]:
        """Those of the pull."""
        return notes(self.pulled) if self.pulled else []

    @property
    def differences(self) -> list[tuple[str, int, int]]:
        """Figures that differ from the last time: name, then and now."""
        names = dict.fromkeys([*self.before, *self.figures]) if self.before else {}
        pairs = [(name, self.before.get(name, 0), self.figures.get(name, 0)) for name in names]
        return [pair for pair in pairs if pair[1] != pair[2]]


def read_study(file: Path) -> Study:
    """Read a study's file; paths in it are from its folder.

    Raises:
        SpecError: one line for each mistake.
    """
    values, lines = read_yaml(file, "images: {folder: /data/ct}")
    study = validated(Study, values, str(file), lines, "the file")
    folder = file.resolve().parent
    pacs = folder / study.images.pacs if study.images.pacs else None
    images = study.images.model_copy(update={"folder": folder / study.images.folder, "pacs": pacs})
    cohort = folder / study.cohort if study.cohort else None
    job = str(folder / study.job) if (folder / study.job).exists() else study.job
    return study.model_copy(update={"images": images, "cohort": cohort, "job": job})


def onboard(
    study: Study,
    datasets: Path,
    kit: Path | None,
    key_file: Path,
    progress: Progress,
    notify: Callable[[str], None],
) -> Onboarded:
    """Select, pull, register and check; write the page.

    Args:
        study: its settings.
        datasets: folder of the registered datasets.
        kit: the site's, for its audit log and policy; None: nothing is recorded.
        key_file: secret of the pseudonyms, where images are de-identified as they are pulled.
        progress: called as work goes on.
        notify: called with a line of text that names no patient.

    Raises:
        DataError: a step cannot be done; what earlier steps made stays.
    """
    job = read_job(study.job, with_code=True)
    dataset = datasets / study.name
    selected, pulled = None, None
    tables = dataset / "cohort"
    images = study.images.folder
    if study.cohort:
        settings = read_pacs(study.images.pacs) if study.images.pacs else None
        deidentify = deidentify_options(settings, kit) if settings else None
        key = read_key(key_file) if deidentify else b""
        named = (lambda patient: pseudonym(key, patient)) if deidentify else str
        doing = lambda what, done, total: progress("reading the cohort's records", done, total)  # noqa: E731
        selected = select(read_cohort(study.cohort), tables, kit, doing, named)
        if settings:
            wanted = read_patients(tables / PATIENTS)
            pulling = PullOptions(wanted, settings, images, key_file, deidentify)
            if kit:
                record(kit, pulling)
            pulled = pull(pulling, progress, notify)
            images = images / IMAGES
    options = RegisterOptions(
        images,
        study.name,
        dataset,
        table=tables / OUTCOMES if selected else None,
        targets=parse_targets([str(tables / TARGETS)]) if selected else None,
        # What left the cohort or the archive stays in the pull's folder, and out of the dataset.
        only=frozenset(name.partition("/")[2] for name in pulled.files) if pulled else None,
    )
    manifest = register(options, progress)
    progress("checking", 0, 1)
    report = _checked(dataset, job)
    progress("checking", 1, 1)
    figures = _figures(manifest, report, selected)
    done = Onboarded(study, dataset, dataset / PAGE_FILE, report, selected, pulled, figures)
    done.before = _last_figures(dataset / _FIGURES_FILE)
    write_private(done.page, _page(done, job, manifest).encode())
    write_private(dataset / _FIGURES_FILE, (json.dumps(done.figures, indent=2) + "\n").encode())
    return done


def _checked(dataset: Path, job: JobSpec) -> Report:
    return check_dataset(dataset, job.data, job.plan().supervision(), job.seed, job.task.wanted_features(job.data))


def _figures(manifest: Manifest, report: Report, selected: Selected | None) -> dict[str, int]:
    figures = {"cases": len(manifest.entries), "cases set aside": len(report.set_aside)}
    figures |= {
        f"cases to {split}" if split == "test" else f"cases for {split}": n for split, n in report.cases.items()
    }
    figures |= {"findings": len(report.findings), "warnings": len(report.warnings)}
    if selected:
        figures["patients of the cohort"] = selected.patients
        figures["cases with an outcome"] = sum(bool(entry.targets) for entry in manifest.entries)
    return figures


def _last_figures(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): int(number) for name, number in found.items()} if isinstance(found, dict) else {}


def _page(done: Onboarded, job: JobSpec, manifest: Manifest) -> str:
    values: dict[str, Any] = {"done": done, "report": done.report, "job": job, "manifest": manifest}
    return render("onboarding.html", **values)
