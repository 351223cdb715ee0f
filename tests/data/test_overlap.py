"""Patients whom two sites have are counted by fingerprints that tell nobody who they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dicoms import make_xray
from oncofed.audit import AuditLog
from oncofed.cli.main import app
from oncofed.data.overlap import SitePatients, read_site_patients, shared_patients, site_patients
from oncofed.errors import DataError, PolicyError, SpecError
from oncofed.privacy.policy import POLICY_FILE, Policy
from oncofed.private_files import random_secret
from oncofed.site.overlap import write_fingerprints
from pictures import pictures, read

KEY = b"k" * 32


def with_table(folder: Path, patients: list[str], seed: int) -> Path:
    """Register pictures of these patients, and return the dataset."""
    names = [f"{seed}_{number}.png" for number in range(len(patients))]
    # Pictures are noise by their place in the list: the names before let each site have its own.
    source = pictures(folder / "in", *(f"unused/{n}.png" for n in range(20 * seed)), *names)
    rows = [f"{name};{patient}" for name, patient in zip(names, patients, strict=True)]
    (source / "t.csv").write_text("\n".join(["image;patient", *rows]), encoding="utf-8")
    read(source, folder / "set")
    return folder / "set"


def with_dicom(folder: Path, patients: list[str]) -> Path:
    values = np.ones((30, 20), np.uint16) * np.arange(20, dtype=np.uint16)
    for number, patient in enumerate(patients):
        make_xray(folder / "in", values * np.uint16(number + 2), f"{number}.dcm", PatientID=patient)
    read(folder / "in", folder / "set")
    return folder / "set"


def test_the_same_ids_are_found_in_a_table_and_in_dicom(tmp_path: Path) -> None:
    east = site_patients(with_dicom(tmp_path / "east", [f"MRN-{n}" for n in range(8)]), "east", KEY)
    west = site_patients(with_table(tmp_path / "west", [f" mrn-{n}" for n in range(2, 16)], 1), "west", KEY)
    assert (len(east.patients), len(west.patients)) == (8, 14)
    # Of east, all but two are shared, and a count would tell of these two.
    assert shared_patients([east, west]) == {("east", "west"): None, ("west", "east"): 6}
    north = site_patients(with_table(tmp_path / "north", [f"MRN-{n}" for n in range(3, 20)], 2), "north", KEY)
    shared = shared_patients([east, west, north])
    assert {pair: count for pair, count in shared.items() if count} == {("west", "east"): 6, ("north", "east"): 5}
    assert len(shared) == 6


def test_copies_of_images_are_found_whatever_their_patients_are_called(tmp_path: Path) -> None:
    one = with_table(tmp_path / "one", [f"A{n // 2}" for n in range(20)], 0)
    two = with_table(tmp_path / "two", [f"B{n // 2}" for n in range(20)], 0)
    shared = shared_patients([site_patients(one, "one", KEY), site_patients(two, "two", KEY)])
    assert shared == {("one", "two"): 10, ("two", "one"): 10}


def test_images_that_nobody_gave_a_patient_count_by_themselves_alone(tmp_path: Path) -> None:
    for site, unused in (("one", 0), ("two", 20)):
        source = pictures(tmp_path / site / "in", *(f"unused/{n}.png" for n in range(unused)))
        for path in source.rglob("*.png"):
            path.unlink()
        pictures(source, *(f"case_{n}.png" for n in range(6)))
        read(source, tmp_path / site / "set")
    one, two = (site_patients(tmp_path / site / "set", site, KEY) for site in ("one", "two"))
    assert all(len(group) == 1 for group in (*one.patients, *two.patients)), "case_0 is no ID"
    assert shared_patients([one, two]) == {("one", "two"): 6, ("two", "one"): 6}


def test_a_file_tells_no_identity_and_nothing_without_the_key(tmp_path: Path) -> None:
    folder = with_table(tmp_path / "east", [f"Müller-{n}" for n in range(6)], 0)
    found, other = site_patients(folder, "east", KEY), site_patients(folder, "east", b"x" * 32)
    text = found.model_dump_json()
    assert "ller" not in text
    assert not {f for g in found.patients for f in g} & {f for g in other.patients for f in g}
    # By its own salt, the dataset has other keys: the file does not lead back to dataset.json.
    manifest = (folder / "dataset.json").read_text()
    assert not any(f[:16] in manifest for group in found.patients for f in group)
    with pytest.raises(DataError, match=r"of east, west were written with different keys, expected one.* Agree on one"):
        shared_patients([found, other.model_copy(update={"site": "west"})])
    with pytest.raises(DataError, match="the key has 4 bytes, expected 32"):
        site_patients(folder, "east", b"abcd")


def made(site: str, people: set[int]) -> SitePatients:
    patients = tuple((f"{person:032x}",) for person in sorted(people))
    return SitePatients(schema=1, site=site, key="0" * 32, patients=patients)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_no_count_is_of_few_patients(one: set[int], two: set[int]) -> None:
    shared = shared_patients([made("one", one), made("two", two)])
    both = len(one & two)
    for (first, _), count in shared.items():
        own = one if first == "one" else two
        assert count in {None, both}
        assert (count is None) == (both < 5 or 0 < len(own) - both < 5)


def kit_of(folder: Path, allowed: bool) -> Path:
    kit = folder / "east"
    (kit / "local").mkdir(parents=True)
    policy = Policy.model_validate({"schema": 1, "leaves": {"patient_overlap": allowed}})
    (kit / "local" / POLICY_FILE).write_text(policy.model_dump_json(by_alias=True))
    return kit


def test_the_policy_decides_and_the_log_tells(tmp_path: Path) -> None:
    folder = with_table(tmp_path / "data", [f"P{n}" for n in range(6)], 0)
    key = tmp_path / "key"
    random_secret(key)
    assert not Policy(schema=1).leaves.patient_overlap, "off unless somebody allows it"
    with pytest.raises(PolicyError, match="does not let fingerprints of patients leave"):
        write_fingerprints(kit_of(tmp_path / "a", False), "east", folder, key, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    kit = kit_of(tmp_path / "b", True)
    assert write_fingerprints(kit, "east", folder, key, tmp_path / "b.json") == 6
    (entry,) = AuditLog(kit).entries()
    assert entry["what"] == "patients' fingerprints written"
    assert len(read_site_patients(tmp_path / "b.json").patients) == 6
    assert "P1" not in kit.joinpath("audit", "audit.jsonl").read_text()


def test_the_commands(tmp_path: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["data", "overlap", "key", str(tmp_path / "key")]).exit_code == 0
    assert (tmp_path / "key").stat().st_mode & 0o77 == 0
    assert isinstance(run.invoke(app, ["data", "overlap", "key", str(tmp_path / "key")]).exception, SpecError)
    files = []
    for site in ("one", "two"):
        folder = with_table(tmp_path / site, [f"P{n}" for n in range(7)], 0)
        kit, out = kit_of(tmp_path / site, True), tmp_path / f"{site}.json"
        arguments = ["--key", str(tmp_path / "key"), "--site", str(kit.rename(kit.with_name(site))), "--out", str(out)]
        result = run.invoke(app, ["data", "overlap", "write", str(folder), *arguments])
        assert result.exit_code == 0, result.output
        files.append(str(out))
    result = run.invoke(app, ["data", "overlap", "compare", "--json", *files])
    assert json.loads(result.stdout) == [
        {"of": "one", "also_at": "two", "patients": 7},
        {"of": "two", "also_at": "one", "patients": 7},
    ]
    result = run.invoke(app, ["data", "overlap", "compare", files[0], str(tmp_path / "key")])
    assert isinstance(result.exception, DataError)
