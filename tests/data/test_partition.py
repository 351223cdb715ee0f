from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.data.cases import read_cases
from oncofed.data.manifest import read_manifest
from oncofed.data.partition import deal_to_sites
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import SplitSpec
from oncofed.errors import DataError
from synthetic import make_site


def test_every_patient_goes_to_one_site_and_files_stay_where_they_are(tmp_path: Path) -> None:
    source = make_site(tmp_path / "source", 20)
    folders = deal_to_sites(source, tmp_path / "sites", (0.5, 0.3, 0.2), seed=1)
    names = {site: {c.name for c in read_cases(folder, SplitSpec(), 1)} for site, folder in folders.items()}
    assert [len(n) for n in names.values()] == [10, 6, 4]
    assert len(set.union(*names.values())) == 20
    assert all(link.is_symlink() for link in (folders["site-1"] / "imagesTr").iterdir())
    again = deal_to_sites(source, tmp_path / "again", (0.5, 0.3, 0.2), seed=1)
    assert {c.name for c in read_cases(again["site-2"], SplitSpec(), 1)} == names["site-2"]


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    source = make_site(tmp_path / "source", 6)
    with pytest.raises(DataError, match="6 patients are too few for 4 sites"):
        deal_to_sites(source, tmp_path / "sites", (0.45, 0.27, 0.18, 0.1), seed=1)


@pytest.mark.wild(
    "standard: every file is accounted for", "a site that is told the files of the whole folder as its own"
)
def test_a_site_does_not_inherit_the_folders_file_counts(tmp_path: Path) -> None:
    source = make_site(tmp_path / "source", cases=12)
    (source / "notes.txt").write_text("x")
    whole = register(RegisterOptions(source, "demo", tmp_path / "whole", workers=1))
    assert whole.files
    assert whole.left_out
    for folder in deal_to_sites(tmp_path / "whole", tmp_path / "sites", [1, 1], seed=0).values():
        site = read_manifest(folder)
        assert (site.files, site.left_out, site.remarks, site.quarantine) == ({}, {}, [], [])
        assert len(site.entries) == 6
