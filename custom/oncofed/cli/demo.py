"""``oncofed demo``: four hospitals train one model on this machine."""

from __future__ import annotations

import shlex
import shutil
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    plain_console,
    progress_console,
    require_posix,
    show_result,
    typed_workspace,
)
from oncofed.cli.run_options import Backend, Port, Rounds
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.job.spec import JobSpec

_DATA_SEED = 1
SHARES = (0.45, 0.27, 0.18, 0.10)
BRAIN_NOTE = (
    "Real anatomy, simulated scanners: every patient is the ICBM152 average brain under a random smooth deformation; "
    "contrast, bias field, noise, voxel size, orientation and stored type are those of an invented scanner."
)
HIPPOCAMPUS_NOTE = (
    "Real patients of one hospital (Medical Segmentation Decathlon, task 4), dealt to four sites of uneven size."
)
NUCLEI_NOTE = (
    "Real microscopy (Data Science Bowl 2018, BBBC038): one site for each stain and image size, which stand for the "
    "laboratory and microscope; small groups make one site, others."
)
# Stains and sizes with fewer fields of view form one site.
_FEWEST_FIELDS = 50


class DemoData(str, Enum):
    """Images of the demo."""

    brain = "brain"
    hippocampus = "hippocampus"
    nuclei = "nuclei"


class DemoTarget(str, Enum):
    """What the demo's model learns."""

    tissue = "tissue"
    survival = "survival"


SURVIVAL_NOTE = (
    "Real anatomy, simulated patients: the ICBM152 average brain with a lesion, deformed and scanned at random. "
    "No outcome is real: the hazard follows from the lesion's size and from age, by a law that the code states."
)
HIPPOCAMPUS_SURVIVAL_NOTE = (
    "Real patients of one hospital (Medical Segmentation Decathlon, task 4), dealt to four sites of uneven size. No "
    "outcome is real: the hazard follows from the hippocampus's volume, by a law that the code states."
)
_SURVIVAL_JOBS = {DemoData.brain: "brain_survival", DemoData.hippocampus: "hippocampus_survival"}
_SURVIVAL_NOTES = {DemoData.brain: SURVIVAL_NOTE, DemoData.hippocampus: HIPPOCAMPUS_SURVIVAL_NOTE}
_JOBS = {
    DemoData.brain: "brain_tissue_segmentation",
    DemoData.hippocampus: "hippocampus_segmentation",
    DemoData.nuclei: "nuclei_segmentation",
}
_NEEDED = {
    DemoData.hippocampus: "the folder of Task04_Hippocampus with dataset.json, imagesTr and labelsTr. Download it from "
    "http://medicaldecathlon.com",
    DemoData.nuclei: "a folder with images/, labels/ (one number a nucleus) and a table with the columns image and "
    "stain. The images are BBBC038 of https://bbbc.broadinstitute.org",
}
_NOTES = {DemoData.brain: BRAIN_NOTE, DemoData.hippocampus: HIPPOCAMPUS_NOTE, DemoData.nuclei: NUCLEI_NOTE}


def demo(
    backend: Backend = "federation",
    rounds: Rounds = None,
    data: Annotated[
        DemoData,
        typer.Option(help="brain: built in; hippocampus: the Decathlon's task 4; nuclei: microscopy; see --data-root."),
    ] = DemoData.brain,
    data_root: Annotated[
        Path | None,
        typer.Option(
            help="hippocampus: folder of Task04_Hippocampus with dataset.json, imagesTr, labelsTr; nuclei: folder with "
            "images/, labels/ and a table of image and stain."
        ),
    ] = None,
    target: Annotated[
        DemoTarget,
        typer.Option(
            help="tissue: what the masks show; survival: made outcomes, with their curves (--data brain; with --data "
            "hippocampus beside the mask)."
        ),
    ] = DemoTarget.tissue,
    port: Port = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep images, startup kits and FLARE's own files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print result.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Train one MONAI model at four hospitals, and compare it with each hospital alone and with all data pooled.

    Provisions an alliance, starts its server and four sites as separate processes, submits a job with an engineer's
    kit, and stops everything at the end. Nothing is downloaded, and nothing is written outside the workspace.
    """
    keep_caches_in(workspace)
    from oncofed.job.run import Run
    from oncofed.job.spec import read_job

    require_posix()
    if data in _NEEDED and data_root is None:
        raise SpecError(f"--data {data.value} needs --data-root DIR: {_NEEDED[data]}")
    survival = target is DemoTarget.survival
    if survival and data not in _SURVIVAL_JOBS:
        raise SpecError(f"--target survival goes with --data brain or hippocampus, found --data {data.value}")
    spec = read_job((_SURVIVAL_JOBS if survival else _JOBS)[data])
    if rounds:
        spec = spec.with_rounds(rounds)
    console = progress_console(json)
    folder = new_run_folder(workspace, spec.name)
    images = folder / "data"
    try:
        with ended_by_signals():
            if survival and data is DemoData.brain:
                sites = _outcomes(images, console)
            else:
                sites = _images(spec, data, data_root, images, console)
            if survival and data is DemoData.hippocampus:
                _state_outcomes(sites, console)
            run = Run(
                spec=spec,
                sites=sites,
                backend=backend,
                folder=folder,
                console=console,
                port=port,
                keep=keep,
                data_note=(_SURVIVAL_NOTES if survival else _NOTES)[data],
            )
            result = run.execute()
            example = _example(sites, folder) if data is DemoData.brain and not survival else None
    finally:
        if not keep:
            shutil.rmtree(images, ignore_errors=True)
    show_result(result, folder, json)
    if example and not json:
        words = ["oncofed", "predict", str(folder), str(example), "--out", str(folder / "predictions")]
        plain_console().print(f"Predict: {shlex.join([*words, *typed_workspace()])}")


def _example(sites: dict[str, Path], folder: Path) -> Path:
    """Write one test patient as a DICOM series to predict.

    Returns its folder.
    """
    from oncofed.data.case import case_of
    from oncofed.data.example_series import write_series
    from oncofed.data.manifest import read_manifest

    site = sites[min(sites)]
    manifest = read_manifest(site)
    patient = next(entry for split, entry in manifest.by_split() if split == "test")
    write_series(case_of(site, manifest, patient).image, folder / "example")
    return folder / "example"


def _outcomes(images: Path, console: Console) -> dict[str, Path]:
    from oncofed.data.brain_outcomes import SIZES, make_outcome_hospitals
    from oncofed.job.watch import progress_bar

    patients = sum(map(sum, SIZES))
    console.print(f"making {patients} patients of {len(SIZES)} hospitals (real anatomy, made outcomes) …")
    with progress_bar(console) as bar:
        task = bar.add_task("patients", total=patients)
        return make_outcome_hospitals(images, _DATA_SEED, progress=lambda done, _: bar.update(task, completed=done))


def _state_outcomes(sites: dict[str, Path], console: Console) -> None:
    from oncofed.data.hippocampus_outcomes import state_outcomes

    console.print("making outcomes by the volumes of the masks …")
    state_outcomes(sites, _DATA_SEED)


def _images(spec: JobSpec, data: DemoData, root: Path | None, images: Path, console: Console) -> dict[str, Path]:
    from oncofed.data.brain import HOSPITALS, make_hospitals
    from oncofed.data.partition import deal_by_tags, deal_to_sites
    from oncofed.data.register import RegisterOptions, register
    from oncofed.job.watch import progress_bar

    if data is DemoData.hippocampus:
        assert root is not None
        return deal_to_sites(root, images, SHARES, spec.seed)
    if data is DemoData.nuclei:
        assert root is not None
        registered = images / "registered"
        console.print("registering the images …")
        register(RegisterOptions(root, spec.data.dataset, registered, "segmentation"))
        return deal_by_tags(registered, images / "sites", ("stain", "size"), _FEWEST_FIELDS)
    patients = sum(h.train + h.validation + h.test for h in HOSPITALS)
    console.print(f"making {patients} patients of {len(HOSPITALS)} hospitals (real anatomy, simulated scanners) …")
    with progress_bar(console) as bar:
        task = bar.add_task("patients", total=patients)
        return make_hospitals(images, _DATA_SEED, progress=lambda done, _: bar.update(task, completed=done))
