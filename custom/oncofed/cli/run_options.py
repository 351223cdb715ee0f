"""Options that commands which run jobs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from oncofed.cli.common import dataset_named
from oncofed.errors import DataError, SpecError

Backend = Annotated[
    Literal["federation", "simulate"],
    typer.Option(help="federation: real server and sites from startup kits, mutual TLS; simulate: FLARE's simulator."),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Number of rounds; by default the job's.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the server; by default a free one.")]
Model = Annotated[
    Path | None, typer.Option("--model", help="Initial weights (safetensors); by default drawn from the seed.")
]
EvaluateOnly = Annotated[
    bool,
    typer.Option(
        "--evaluate-only",
        help="Score --model on every site's test cases, and train nothing. The result has each site's figures, and "
        "those over the patients of all sites from counts and sums; a calibration.json next to --model is used.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        envvar="ONCOFED_TRACK",
        help="Also send curves, settings and report to mlflow (at MLFLOW_TRACKING_URI), or keep them as offline files "
        "of wandb; give it once for each. Only what this command shows is sent.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        help="With --evaluate-only: weights of another model. Both are scored on the same patients; the result has the "
        "difference with its interval, and whether --model is worse by at most the job's evaluation.margin."
    ),
]


def parse_seeds(text: str) -> list[int]:
    """Return seeds of a list with commas; empty: none.

    Raises:
        SpecError: one of them is no whole number.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SpecError(f"--seeds {text}: expected whole numbers with commas between them, such as 1,2,3") from None


def require_model(model: Path | None, evaluate_only: bool, against: Path | None = None) -> None:
    """Check the options of models.

    Raises:
        SpecError: a file is missing, or options do not fit together.
    """
    if evaluate_only and model is None:
        raise SpecError("--evaluate-only needs --model FILE: the weights to score, such as a run's model.safetensors.")
    if against is not None and not evaluate_only:
        raise SpecError("--against needs --evaluate-only: two models are compared as they are, and nothing is trained.")
    for option, path in (("model", model), ("against", against)):
        if path is not None and not (path.is_file() and path.suffix == ".safetensors"):
            raise SpecError(f"--{option} {path}: expected a file of weights, such as a run's model/model.safetensors.")


def named_sites(values: list[str], workspace: Path) -> dict[str, Path]:
    """Return the dataset of each site, from ``NAME=DATASET`` arguments.

    Raises:
        SpecError: see ``parse_sites``.
    """
    return {name: _site_folder(value, workspace) for name, value in parse_sites(values).items()}


def _site_folder(value: Path, workspace: Path) -> Path:
    """Return a site's dataset.

    A missing one is reported later, with the data of all sites.
    """
    try:
        return dataset_named(value, workspace)
    except DataError:
        return value


def parse_sites(values: list[str]) -> dict[str, Path]:
    """Return the folder of each site, from ``NAME=FOLDER`` arguments.

    Raises:
        SpecError: an argument has another form, or its name is given twice or unfit for a certificate.
    """
    from oncofed.job.outcome import POOLED
    from oncofed.training.plan import REFERENCES

    sites: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise SpecError(
                f"--site {value}: expected NAME=FOLDER, with letters, digits, - and _ in NAME, "
                "for example --site fred-hutch=/data/hippocampus"
            )
        if name in sites:
            raise SpecError(f"--site {name} is given twice. Give each site a name of its own.")
        if name in ("server", "localhost", POOLED, *REFERENCES):
            raise SpecError(f"--site {name}: this name is taken. Give the site another one.")
        sites[name] = Path(folder).expanduser()
    return sites
