"""What the cards of jobs with a table say, on made files: their commands register such a table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from carded import CARDED, card_of, make_pictures, register_by_card
from oncofed.data.cases import usable_cases
from oncofed.data.manifest import read_manifest
from oncofed.data.target_columns import parse_targets
from oncofed.job.spec import read_job
from oncofed.tasks.targets.labels import LabelsTarget
from pictures import read


@pytest.mark.parametrize("name", CARDED)
def test_the_cards_command_makes_the_jobs_dataset(name: str, tmp_path: Path) -> None:
    folder = register_by_card(name, tmp_path / "in", tmp_path / "set")
    spec = read_job(name)
    manifest = read_manifest(folder)
    assert not manifest.quarantine
    assert list(manifest.targets) == [target.name for target in spec.task.named_targets]
    small = spec.changed({"data": {"spacing_range": None}}).plan()
    found = usable_cases(folder, small.data, small.supervision(), small.seed, "here")
    assert len(found.cases.train) + len(found.cases.validation) + len(found.cases.test) == 40
    assert f"--dataset {spec.data.dataset} " in card_of(name)


def test_a_blank_finding_and_an_uncertain_one_are_unknown(tmp_path: Path) -> None:
    manifest = read_manifest(register_by_card("chest_findings", tmp_path / "in", tmp_path / "set"))
    by_source = {entry.source: entry.targets["findings"] for entry in manifest.entries}
    assert by_source["004.png"] == {"effusion": False, "pleural thickening": False}
    assert by_source["005.png"] == {"atelectasis": False, "pleural thickening": True}
    (truth,) = read_job("chest_findings").task.named_targets
    encoded = truth.encode(by_source["005.png"], manifest.targets["findings"])
    assert sum(value != value for value in encoded) == 12


def test_the_table_of_chestxray14_is_read_as_the_card_says(tmp_path: Path) -> None:
    (target,) = read_job("chest_findings").task.named_targets
    assert isinstance(target, LabelsTarget)
    listed = [name.title().replace(" ", "_") for name in target.findings]
    names = make_pictures(tmp_path / "in" / "images_001" / "images", 16, 1)
    cells = ["No Finding", "|".join(listed[:2]), *listed[2:], "Mass|Hernia", "No Finding"]
    rows = [f"{name},{cell},0,{number},60" for number, (name, cell) in enumerate(zip(names, cells, strict=True))]
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "\n".join(["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age", *rows])
    )
    (yaml,) = re.findall(r'```yaml title="targets.yaml"\n(.*?)```', card_of("chest_findings"), re.DOTALL)
    (tmp_path / "targets.yaml").write_text(yaml)
    targets = parse_targets([str(tmp_path / "targets.yaml")])
    manifest = read(tmp_path / "in", tmp_path / "set", table=tmp_path / "Data_Entry_2017.csv", targets=targets)
    assert not manifest.quarantine
    encoded = [target.encode(entry.targets["findings"], manifest.targets["findings"]) for entry in manifest.entries]
    assert [sum(values) for values in encoded] == [0, 2, *[1] * 12, 2, 0]
    assert encoded[1][:3] == (1, 1, 0)
