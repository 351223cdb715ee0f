"""The table of a registered dataset serves a prediction as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from oncofed.data.target_columns import parse_targets
from oncofed.data.targets import FollowUp
from oncofed.errors import DataError, SpecError
from oncofed.prediction.covariate_table import TableReading, table_notes, with_table
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import Sources, gather
from targets_made import JOB, make_dataset
from trained import make_run

CPU = torch.device("cpu")
WITH_TABLE = JOB.replace(
    "patch: [32, 32]}",
    "patch: [32, 32],\n  covariates: [{name: age, unit: years, range: [0, 120]}, {name: sex, categories: [F, M]}]}",
)
# Of a hospital: its own names, a date, an outcome, a class and a column that differs by row.
HEADING = "MRN;file name;Alter;sex;examined;months;dead;lump;remark"
TARGETS = """\
columns: {patient: MRN, image: file name}
targets:
  death: {kind: survival, time: months, event: dead, unit: months}
  lump: {kind: class, column: lump}
"""


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return load_model(make_run(tmp_path / "run", WITH_TABLE))


@pytest.fixture
def sources(model: TrainedModel, tmp_path: Path) -> Sources:
    images = make_dataset(tmp_path / "set") / "images"
    return gather([images], tmp_path / "out", model.job, tmp_path, only=["0[0-3]"])


def reading(model: TrainedModel, tmp_path: Path, text: str = TARGETS) -> TableReading:
    (tmp_path / "targets.yaml").write_text(text)
    said = parse_targets([str(tmp_path / "targets.yaml")])
    return TableReading(model.job.data.covariates, said, model.job.plan().supervision())


def write(tmp_path: Path, *rows: str, heading: str = HEADING) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("\n".join([heading, *rows]) + "\n")
    return path


ROWS = (
    "p0;00.png;61;F;2020-03-01;12,5;1;present;seen",
    "p1;01.png;52;M;2021-04-02;7,25;0;absent;again",
    "p2;02;;M;2021-05-02;30;0;;later",
    "p9;77.png;52;M;2021-04-02;7,25;0;absent;of nobody",
)


def test_what_a_registered_table_states_is_read_alike(model: TrainedModel, sources: Sources, tmp_path: Path) -> None:
    table = write(tmp_path, *ROWS)
    read = reading(model, tmp_path)
    found = with_table(sources, table, read)
    assert [one.entry.tags for one in found.cases[:3]] == [{"sex": "F"}, {"sex": "M"}, {"sex": "M"}]
    assert found.cases[0].entry.targets == {"death": FollowUp(time=12.5, event=True), "lump": "present"}
    notes = " / ".join(found.notes + table_notes(found, read.columns))
    assert "table.csv has no column age, which the model reads; found alter, sex" in notes
    assert "left out because they hold dates: examined" in notes
    assert "table.csv states no target grade" in notes
    assert "1 row of table.csv are of no case" in notes
    assert "1 of 4 cases state none of age, sex" in notes
    assert "3 of 4 cases state other columns, and no age" in notes
    out = tmp_path / "out"
    predict(model, found, out, CPU, Options())
    rows = {row["case"]: row for row in csv.DictReader((out / "targets.csv").open())}
    assert rows["00"]["lump.stated"] == "present"
    assert rows["00"]["death.stated"] == "event at 12.5 months"
    assert rows["02"]["lump.stated"] == "", "the table says nothing of it"
    assert not rows["03"]["death.stated"], "no row is of it"
    assert "2020" not in (out / "predictions.json").read_text(), "dates stay in the table"


def test_rows_that_cannot_be_used_set_their_case_aside(model: TrainedModel, sources: Sources, tmp_path: Path) -> None:
    later = "p1;01.png;52;F;2022-04-02;7,25;0;absent;differs"
    never = "p3;03.png;40;F;2022-04-02;-4,5;0;absent;negative"
    found = with_table(sources, write(tmp_path, *ROWS, later, never), reading(model, tmp_path))
    reasons = {bad.name: bad.reason for bad in found.set_aside}
    assert set(reasons) == {"01", "03"}
    assert "lines 3 and 6 say another sex each of one case" in reasons["01"]
    assert reasons["03"].startswith("line 7: target death")
    assert "remark" not in str(reasons), "columns that the model does not read may say anything"


def test_a_table_without_what_the_model_reads_is_refused(model: TrainedModel, sources: Sources, tmp_path: Path) -> None:
    bare = write(tmp_path, "00.png,3", heading="image,size")
    with pytest.raises(SpecError, match="found the columns size, expected some of age, sex"):
        with_table(sources, bare, TableReading(model.job.data.covariates))
    with pytest.raises(DataError, match="columns: has no column mrn, found image, size"):
        with_table(sources, bare, reading(model, tmp_path))
    with pytest.raises(DataError, match="target lump: has no column lump"):
        with_table(sources, bare, reading(model, tmp_path, "targets: {lump: {kind: class, column: lump}}\n"))
