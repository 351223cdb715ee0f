"""What sites have, side by side: by code first, by name second, and nothing of fewer than five patients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import made_records as made
from oncofed.data.manifest import Entry, Manifest, write_manifest
from oncofed.data.targets import DatasetTarget, FollowUp, TargetValue
from oncofed.data.vocabulary import Term, Vocabulary, read_vocabulary, side_by_side, vocabulary_of
from oncofed.errors import DataError


def _dataset(names: dict[str, int], codes: dict[str, str], unit: str = "mm") -> Manifest:
    """A dataset with one class of a mask, a size, and so many patients of each histology."""
    entries = []
    for name, count in names.items():
        for _ in range(count):
            number = len(entries)
            targets: dict[str, TargetValue] = {"histology": name, "size": 10.0}
            if number % 2:
                targets["survival"] = FollowUp(time=number, event=True)
            entries.append(
                Entry(
                    image=f"imagesTr/{number}.nii.gz",
                    label=f"labelsTr/{number}.nii.gz",
                    patient=f"Planted-{number}",
                    label_values={"0": 100, "1": 9},
                    targets=targets,
                )
            )
    targets = {
        "histology": DatasetTarget(kind="class", names=list(names), codes=codes),
        "size": DatasetTarget(kind="value", unit=unit, code="LN:21889-1"),
        "survival": DatasetTarget(kind="survival", unit="days"),
    }
    labels, of_labels = {"0": "background", "1": "tumour", "2": "cyst"}, {"1": "SCT:108369006"}
    return Manifest(name="lung", labels=labels, codes=of_labels, targets=targets, training=entries)


def _terms(found: Vocabulary, part: str) -> dict[str, int | None]:
    return {term.name: term.patients for term in found.terms if term.part == part}


def test_counts_are_of_five_patients_or_more_and_nobody_is_named() -> None:
    found = vocabulary_of(_dataset({"adeno": 12, "squamous": 9, "Miller, John": 1}, {}), "east")
    assert found.patients == 22
    assert _terms(found, "mask") == {"tumour": 22, "cyst": None}
    assert _terms(found, "target") == {"histology": 22, "size": 22, "survival": 11}
    # With the total and two of three, the third would follow.
    assert _terms(found, "name") == {"adeno": 12}
    assert found.rare == 2
    text = found.model_dump_json()
    assert "Planted" not in text
    assert "Miller" not in text


def test_a_name_with_a_code_is_listed_and_its_count_withheld() -> None:
    found = vocabulary_of(_dataset({"adeno": 12, "large cell": 2}, {"large cell": "ICDO3:8012/3"}), "east")
    assert _terms(found, "name")["large cell"] is None


def test_sites_are_matched_by_code_first_and_name_second() -> None:
    east = vocabulary_of(_dataset({"adeno": 9, "scc": 9}, {"scc": "ICDO3:8070/3"}), "east")
    west = vocabulary_of(_dataset({"Adeno": 9, "squamous": 9}, {"squamous": "ICD-O-3:8070/3"}, "cm"), "west")
    rows = {(row.part, row.name): row for row in side_by_side([east, west])}
    assert {key: row.by for key, row in rows.items()} == {
        ("mask", "tumour"): "code",
        ("mask", "cyst"): "name",
        ("target", "histology"): "name",
        ("name", "adeno"): "name",
        ("name", "scc"): "code",
        ("target", "size"): "code",
        ("target", "survival"): "name",
    }
    assert rows["target", "size"].notes == ["units mm and cm: a job's unit converts them"]
    assert rows["name", "scc"].names[1].name == "squamous"


def test_what_does_not_fit_is_said() -> None:
    def site(name: str, code: str, unit: str) -> Vocabulary:
        value = Term(part="target", name="marker", kind="value", unit=unit)
        return Vocabulary(name=name, terms=(value, Term(part="mask", name="lesion", codes=(code,))))

    rows = side_by_side([site("east", "SCT:52988006", "ng/mL"), site("west", "SCT:108369006", "mmol/L")])
    assert [(row.name, row.by) for row in rows if row.part == "mask"] == [("lesion", "one site")] * 2
    notes = [note for row in rows for note in row.notes]
    assert "units ng/mL and mmol/L: no factor between them: agree on one" in notes
    assert "another mask of that name has the code SCT:108369006" in notes


def test_the_command_writes_a_file_and_sets_files_side_by_side(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    files = []
    for site, code in (("east", "ICDO3:8070/3"), ("west", "")):
        folder = tmp_path / site
        folder.mkdir()
        write_manifest(folder, _dataset({"adeno": 9, "scc": 9}, {"scc": code} if code else {}))
        files.append(tmp_path / f"{site}.json")
        outcome = run("data", "vocabulary", folder, "--name", site, "--out", files[-1])
        assert outcome.status == 0, outcome.text
        assert "name of histology" in outcome.text
        assert "18 patients" in outcome.text
    both = run("data", "vocabulary", *files)
    assert "at one site alone" in both.text
    found = json.loads(run("data", "vocabulary", *files, "--json").output)
    assert found["sites"] == ["east", "west"]
    (row,) = [row for row in found["terms"] if row["name"] == "scc"]
    assert (row["by"], row["codes"]) == ("name", ["ICDO3:8070/3"])
    assert [at["patients"] for at in row["at"]] == [9, 9]


@pytest.mark.parametrize("source", ["omop", "fhir"])
def test_concepts_of_records_belong_to_it(tmp_path: Path, run, source: str) -> None:  # type: ignore[no-untyped-def]
    patients = made.make_patients(80)
    made.write_crosswalk(patients, tmp_path / "crosswalk.csv")
    made.write_hierarchy(tmp_path / "hierarchy.csv")
    made.fill_omop(f"sqlite:///{tmp_path}/cdm.db", patients)
    made.write_fhir(patients, tmp_path / "fhir")
    where = {
        "omop": f'omop: {{url: "sqlite:///{tmp_path}/cdm.db"}}',
        "fhir": 'fhir: {folder: fhir, person: "http://example.org/mrn", hierarchy: hierarchy.csv}',
    }
    (tmp_path / "lung.yaml").write_text(made.COHORT.format(source=where[source]))
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    arguments = ("--records", tmp_path / "lung.yaml", "--site", tmp_path / "kit")
    found = json.loads(run("data", "vocabulary", *arguments, "--json").output)
    terms = {(term["part"], term["of"], term["name"]): term["patients"] for term in found["terms"]}
    assert terms["concept", "", "lung_cancer"] >= 60
    assert terms["concept", "", "chemotherapy"] is None or terms["concept", "", "chemotherapy"] >= 5
    assert {name for part, of, name in terms if (part, of) == ("unit", "cea")} == {"U", "ng/mL", "ug/L"}
    codes = {name for part, of, name in terms if (part, of) == ("code", "stage")}
    assert codes == {"SNOMED:13104003", "SNOMED:60333009"}
    assert all(count is None or count >= 5 for count in terms.values())
    assert "vocabulary of records listed" in (tmp_path / "kit" / "audit" / "audit.jsonl").read_text()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in (
        "{",
        '{"schema": 1}',
        '{"schema": 1, "name": "x", "terms": [{"part": "mask", "name": "a", "patients": 3}]}',
    ):
        (tmp_path / "east.json").write_text(text)
        with pytest.raises(DataError, match="expected a file of oncofed data vocabulary"):
            read_vocabulary(tmp_path / "east.json")


def test_mistakes_of_the_command_are_named(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    assert "expected a dataset" in run("data", "vocabulary").text
    assert "are of one site" in run("data", "vocabulary", "a.json", "b.json", "--out", tmp_path / "c.json").text
