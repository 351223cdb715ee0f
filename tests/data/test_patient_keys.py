"""The same person has one key, or an account of their own in the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oncofed.data.decisions import SAME_PATIENT, content_of, name_of
from oncofed.data.manifest import Decision, Manifest, read_manifest, write_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.privacy.ledger import account_of

_PEOPLE = ("anna", "anna", "ben", "eve")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images without a patient."""
    return _images(tmp_path / "images", seed=0)


def _images(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(len(_PEOPLE)):
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(folder / f"scan{number}.png")
    return folder


def _register(images: Path, out: Path, people: tuple[str, ...], patients_of: Path | None = None) -> Manifest:
    table = images.parent / "table.csv"
    rows = [f"scan{number}.png,{'ab'[number % 2]},{person}" for number, person in enumerate(people)]
    table.write_text("\n".join(["image,label,patient", *rows]) + "\n")
    return register(RegisterOptions(images, out.name, out, table=table, workers=1, patients_of=patients_of))


def test_a_dataset_registered_anew_with_other_keys_is_another_account(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "scans"
    keys = {entry.patient for entry in _register(images, out, _PEOPLE).entries}
    first = account_of(out)
    assert len(keys) == 3
    _register(images, out, _PEOPLE)
    assert account_of(out) == first
    _register(images, out, ("p1", "p1", "p2", "p3"))
    other = account_of(out)
    assert other != first
    _register(images, out, ("p1", "p1", "p2", "p3"))
    assert account_of(out) == other
    _register(images, out, _PEOPLE)
    assert account_of(out) not in {first, other}, "some were charged under the other keys"


def test_a_grown_dataset_keeps_its_account(images: Path, tmp_path: Path) -> None:
    _register(images, tmp_path / "scans", _PEOPLE[:3])
    first = account_of(tmp_path / "scans")
    _register(images, tmp_path / "scans", _PEOPLE)
    assert account_of(tmp_path / "scans") == first


def test_patients_that_a_person_joins_are_another_account(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "scans"
    manifest = _register(images, out, _PEOPLE)
    first = account_of(out)
    two = manifest.entries[1:3]
    names, content = [name_of(one) for one in two], {name_of(one): content_of(one, "copies") for one in two}
    facts = {"groups": [names], "content": content, "who": "eve", "time": "2025-01-01T00:00:00"}
    decision = Decision.model_validate({"finding": "copies", "action": SAME_PATIENT, **facts})
    write_manifest(out, manifest.model_copy(update={"decisions": [decision]}))
    assert account_of(out) != first


def test_two_datasets_of_one_salt_know_the_same_patient(images: Path, tmp_path: Path) -> None:
    one, two, apart = tmp_path / "scans", tmp_path / "slides", tmp_path / "apart"
    first = _register(images, one, _PEOPLE)
    more = _images(tmp_path / "more", seed=1)
    second = _register(more, two, ("eve", "ben", "carl", "carl"), patients_of=one)
    assert account_of(one) == account_of(two)
    assert len({entry.patient for entry in first.entries} & {entry.patient for entry in second.entries}) == 2
    assert (two / ".salt").stat().st_mode & 0o777 == 0o600
    _register(more, apart, ("eve", "ben", "carl", "carl"))
    assert account_of(apart) != account_of(one)
    with pytest.raises(DataError, match="a salt of its own"):
        _register(more, apart, _PEOPLE, patients_of=one)
    with pytest.raises(DataError, match="Register it first"):
        _register(more, tmp_path / "third", _PEOPLE, patients_of=more)


def test_the_same_images_under_other_keys_share_no_account(images: Path, tmp_path: Path) -> None:
    _register(images, tmp_path / "one", _PEOPLE)
    _register(images, tmp_path / "two", ("p1", "p1", "p2", "p3"), patients_of=tmp_path / "one")
    assert account_of(tmp_path / "one") != account_of(tmp_path / "two")


def test_names_of_files_stand_for_nobody_elsewhere(images: Path, tmp_path: Path) -> None:
    names = tuple(f"scan{number}" for number in range(len(_PEOPLE)))
    _register(images, tmp_path / "one", names)
    _register(images, tmp_path / "two", names, patients_of=tmp_path / "one")
    assert account_of(tmp_path / "one") != account_of(tmp_path / "two")
    assert {entry.patient for entry in read_manifest(tmp_path / "one").entries} == {
        entry.patient for entry in read_manifest(tmp_path / "two").entries
    }
