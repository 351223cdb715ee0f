"""``oncofed data boxes``."""

from __future__ import annotations

import json as jsonlib
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from oncofed.cli.common import DEFAULT_WORKSPACE, Workspace, dataset_named, plain_console


class CoordinatesName(str, Enum):
    """What the numbers of a table of boxes are."""

    lps = "lps"
    ras = "ras"
    voxels = "voxels"


def boxes(
    dataset: Annotated[str, typer.Argument(help="A registered dataset's name, or its folder with dataset.json.")],
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV or TSV, one object a row: seriesuid, image, case or name; coordX, coordY, coordZ, diameter_mm, "
            "or low_x, low_y, low_z, high_x, high_y, high_z; optionally class."
        ),
    ],
    coordinates: Annotated[
        CoordinatesName,
        typer.Option(help="lps: mm as in DICOM and LUNA16; ras: mm as in NIfTI; voxels: of the stored image's edge."),
    ] = CoordinatesName.lps,
    name: Annotated[str, typer.Option(help="Class of all boxes, where the table has no column class.")] = "",
    rest_has_none: Annotated[
        bool, typer.Option("--rest-has-none", help="Cases without a row were looked at too, and have no object.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """State objects of a registered dataset's cases as boxes, from a table; for jobs that detect."""
    from oncofed.data.box_tables import state_boxes

    folder = dataset_named(dataset, workspace)
    found = state_boxes(folder, table, coordinates.value, name, rest_has_none)
    if json:
        typer.echo(jsonlib.dumps(vars(found), indent=2))
        return
    told = f"{found.boxes} boxes of {found.cases} cases are written; {found.none} cases are known to have none"
    more = f"; {found.unknown} rows are of images that the dataset does not have" if found.unknown else ""
    plain_console().print(f"{told}{more}.", soft_wrap=True, highlight=False)
