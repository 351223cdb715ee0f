"""``oncofed data register``."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Collection, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    dataset_named,
    datasets_folder,
    ended_by_signals,
    escape,
    plain_console,
    progress_bars,
    progress_console,
    show_table,
)
from oncofed.cli.findings import show_accounts
from oncofed.errors import DataError, SpecError

if TYPE_CHECKING:
    from oncofed.data.features.survey import FeatureOptions
    from oncofed.data.manifest import Entry, Manifest

_MOST_SHOWN = 20


class TaskName(str, Enum):
    """Task of a dataset."""

    segmentation = "segmentation"
    classification = "classification"
    slides = "slides"


class Quality(str, Enum):
    """What is done with tiles of pen, fold, blur or bubble."""

    counted = "count"
    drop = "drop"
    none = "none"


class PatientRule(str, Enum):
    """Attribute that identifies a DICOM patient."""

    id = "id"
    study = "study"
    series = "series"
    folder = "folder"


def register(
    folder: Annotated[Path, typer.Argument(help="Folder of images in any layout. It is only read.")],
    dataset: Annotated[
        str | None, typer.Option(help="Name of the dataset: lower case, digits, _ and -; by default the folder's name.")
    ] = None,
    task: Annotated[TaskName | None, typer.Option(help="Task of the dataset; by default the layout's.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the labels (1=liver,2=tumour), or a CSV/TSV file: image,label,patient,split; for DICOM "
            "patient, study or series in place of image.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND:COLUMN|FILE",
            help="What columns of the table state: survival=survival:time_days,event, grade=grade:isup:1<2<3, "
            "findings=labels:edema,effusion, volume=value:volume:ml, type=class:histology; or targets.yaml. May be "
            "given several times.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The dataset's folder; by default datasets/NAME in the workspace.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Slides: side of a tile in pixels; by default 256. Features: if unsaid."),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            min=0.05, max=50, help="Slides: microns per pixel of a tile; by default 0.5. Features: if unsaid."
        ),
    ] = None,
    tissue: Annotated[float, typer.Option(min=0, max=1, help="Slides: least share of a tile that is tissue.")] = 0.25,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="Slides bring features of tiles, as TRIDENT, CLAM, STAMP, HEST or LazySlide extracted them; slides of "
            "the same names beside them are for heat maps.",
        ),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(help="Features: the encoder that made them, if their files do not say it or are of several."),
    ] = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(help="Features: the file of the encoder's weights that made them; its digest is noted."),
    ] = None,
    encoder_digest: Annotated[
        str | None, typer.Option(help="Features: the digest of these weights, as oncofed data encoders prints it.")
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(help="Features: a table of slides and their patients (image, patient), beside --labels PATIENTS."),
    ] = None,
    quality: Annotated[
        Quality,
        typer.Option(help="Slides: tiles with pen, fold, blur or bubble are counted, left out, or not looked for."),
    ] = Quality.counted,
    patient_from: Annotated[
        PatientRule | None,
        typer.Option(
            help="DICOM: what identifies a patient, if an anonymiser gave all one PatientID. Kept when the folder is "
            "registered again; by default id.",
        ),
    ] = None,
    patients_of: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="A registered dataset of this site that names patients alike: the same patient has the same key in "
            "both, and pays once for each job (oncofed site budget). Only when first registered.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Reader processes; by default one a core.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Read a folder and list its cases in dataset.json; the next time only changed files are read.

    Reads unsorted DICOM (series, SEG, RT-STRUCT, X-rays, slides), NIfTI, NRRD and MetaImage, Decathlon and nnU-Net
    folders, a table of images, one folder a class, images with masks, whole slides, and, with --features, features of
    slides. Volumes of DICOM become NIfTI without headers. Patients are stored as salted hashes. A case that cannot be
    used is set aside with its reason.

    Exit status: 0 also if some cases were set aside, 3 if all were. `oncofed data check` tells whether a job may train.
    """
    from oncofed.data.register import RegisterOptions, parse_labels
    from oncofed.data.register import register as read_folder
    from oncofed.data.slides import TileSpec
    from oncofed.data.target_columns import parse_targets

    name = dataset or _name_of(folder)
    target = out or datasets_folder(workspace) / name
    _require_name(name)
    table, names = _labels(labels, parse_labels)
    stated = _features(features, encoder, encoder_weights, encoder_digest, slides, tile, mpp)
    request = RegisterOptions(
        folder,
        name,
        target,
        task.value if task else None,
        names,
        table,
        TileSpec(tile or TileSpec.size, mpp or TileSpec.mpp, tissue, quality.value),
        workers,
        patient_from.value if patient_from else None,
        targets=parse_targets(targets or ()),
        features=stated,
        slides=slides,
        patients_of=dataset_named(patients_of, workspace) if patients_of else None,
    )
    with ended_by_signals(), progress_bars(progress_console(json)) as advance:
        manifest = read_folder(request, advance)
    if json:
        typer.echo(jsonlib.dumps(_summary(manifest, target), indent=2))
    else:
        _show_registered(manifest, target, name if target == datasets_folder(workspace) / name else str(target))
    if not manifest.entries:
        raise DataError(f"{folder}: none of its {len(manifest.quarantine)} cases can be used; each has its reason")


def _labels(text: str | None, parse: Any) -> tuple[Path | None, dict[int, str]]:
    if text is None:
        return None, {}
    if Path(text).is_file() or text.lower().endswith((".csv", ".tsv")):
        return Path(text), {}
    return None, parse(text)


def _features(
    wanted: bool,
    encoder: str | None,
    weights: Path | None,
    digest: str | None,
    slides: Path | None,
    tile: int | None,
    mpp: float | None,
) -> FeatureOptions | None:
    """Return what is stated of features; None where slides bring none.

    Raises:
        SpecError: options of features without --features, or a digest that is none.
    """
    from oncofed.data.features.survey import FeatureOptions

    given = {"--encoder": encoder, "--encoder-weights": weights, "--encoder-digest": digest, "--slides": slides}
    if not wanted:
        if alone := [name for name, value in given.items() if value is not None]:
            raise SpecError(f"{alone[0]} is of features, which --features registers. Add --features, or leave it out")
        return None
    if weights is not None and digest is not None:
        raise SpecError("--encoder-weights and --encoder-digest say the same. Leave one of them out")
    if weights is not None:
        digest = _weights_digest(encoder, weights)
    elif digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SpecError(f"--encoder-digest {digest}: expected 64 digits 0-9 a-f, as oncofed data encoders prints them")
    return FeatureOptions(encoder, digest, tile, mpp)


def _weights_digest(encoder: str | None, weights: Path) -> str:
    """Return the digest of an encoder's weights.

    Raises:
        SpecError: the encoder is not said, or is none of the catalogue.
        TrainingError: they are not those of this encoder.
    """
    from oncofed.models.encoders import find_entry, load_encoder

    if encoder is None:
        raise SpecError("--encoder-weights needs the encoder whose weights they are. Say it: --encoder NAME")
    return load_encoder(find_entry(encoder), weights.expanduser(), may_be_pickle=True).digest


def _name_of(folder: Path) -> str:
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in folder.resolve().name.lower()).strip("_-")
    return name[:63] or "dataset"


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise SpecError(f"--dataset {name}: expected lower case letters, digits, _ and -, such as liver_ct")


def _summary(manifest: Manifest, folder: Path) -> dict[str, Any]:
    from oncofed.data.accounts import labelled_share
    from oncofed.data.decisions import in_words

    values = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    entries = [
        {
            "split": split,
            **{k: v for k, v in entry.model_dump(mode="json", exclude_none=True).items() if k != "thumbnail"},
        }
        for split, entry in manifest.by_split()
    ]
    kept = (
        "schema",
        "task",
        "modality",
        "labels",
        "label_kind",
        "targets",
        "quarantine",
        "files",
        "left_out",
        "remarks",
    )
    return {
        "dataset": manifest.name,
        "folder": str(folder),
        "manifest": str(folder / "dataset.json"),
        "cases": len(entries),
        "labelled": labelled_share(manifest),
        "decisions": in_words(manifest),
        **{key: values[key] for key in kept if key in values},
        "notes": _notes(manifest),
        "entries": entries,
    }


def _notes(manifest: Manifest) -> list[str]:
    """Return what a person should look at: mixtures, and vectors of another length than their encoder's."""
    from oncofed.data.mixtures import mixtures

    made = [entry.features for _, entry in manifest.by_split() if entry.features and entry.features.level == "tile"]
    return [*(what for _, what in mixtures(manifest)), *_other_lengths({(one.encoder, one.size) for one in made})]


def _other_lengths(made: Collection[tuple[str, int]]) -> Iterator[str]:
    if not made:
        return
    from oncofed.models.encoders import catalogue

    for encoder, size in sorted(made):
        entry = catalogue().get(encoder)
        if entry and entry.features != size:
            yield (
                f"vectors of {encoder} have {size:,} numbers, expected {entry.features:,} as oncofed makes them. If "
                "another encoder made them, register again with --encoder NAME; else they fit no slide of this dataset "
                "or of another site whose features oncofed extracts"
            )


def _show_registered(manifest: Manifest, folder: Path, dataset: str) -> None:
    console = plain_console()
    cases = list(manifest.by_split())
    table = Table(title=f"{manifest.name}: {len(cases)} cases, {manifest.description}", title_justify="left")
    for heading in ("case", "modality", "size", "spacing mm", "axes", "type", "label", "split", "notes"):
        table.add_column(heading, overflow="fold")
    for listed, entry in cases[:_MOST_SHOWN]:
        label = "mask" if isinstance(entry.label, str) else "–" if entry.label is None else str(entry.label)
        table.add_row(
            entry.name,
            entry.modality or "",
            _size(entry),
            _spacing(entry),
            entry.orientation or ("not known" if len(entry.shape or []) == 3 else "flat"),
            entry.features.encoder if entry.features else entry.dtype or "",
            label,
            listed if entry.split else "dealt by the job",
            "; ".join(entry.notes),
        )
    show_table(table, console)
    if len(cases) > _MOST_SHOWN:
        console.print(f"… and {len(cases) - _MOST_SHOWN} more")
    for what in _notes(manifest):
        console.print(f"[yellow]note[/] {escape(what)}", soft_wrap=True)
    show_accounts(manifest, folder, dataset)


def _spacing(entry: Entry) -> str:
    from oncofed.data.grouping import millimetres

    if not entry.spacing and entry.features and entry.features.mpp:
        return f"{entry.features.mpp / 1000:g} (of tiles)"
    return " x ".join(map(millimetres, entry.spacing or [])) or "not said"


def _size(entry: Entry) -> str:
    if entry.features:
        return f"{entry.features.tiles:,} x {entry.features.size} features"
    channels = f" ({entry.channels} channels)" if (entry.channels or 1) > 1 else ""
    return "x".join(map(str, entry.shape or [])) + channels
