"""One object that cannot be sent costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from commands import Outcome
from dicoms import make_series, volume
from orthancs import Orthanc, why_no_orthanc

pytest.importorskip("dicomweb_client", reason="needs dicomweb-client: pip install 'oncofed[hospital]'")
pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[hospital]'")
pytestmark = [
    pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one"),
    pytest.mark.xdist_group("orthanc"),
]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc", {"StorageAccessOnFind": "Never", "MaximumStorageCacheSize": 0}) as server:
        yield server


@pytest.mark.parametrize("protocol", ["web", "get", "move"])
def test_a_file_that_the_archive_lost_is_counted(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    count = volume().shape[2]
    files = make_series(tmp_path / "one", patient="MRN-1", modality="CT")
    orthanc.add(files)
    orthanc.add(make_series(tmp_path / "two", patient="MRN-1", modality="CT"))
    stored = [path for path in (orthanc.folder / "database").glob("*/*/*") if path.is_file()]
    (lost,) = [path for path in stored if path.read_bytes() == files[3].read_bytes()]
    lost.unlink()
    pacs, cohort = tmp_path / "pacs.yaml", tmp_path / "cohort.csv"
    pacs.write_text(yaml.safe_dump(orthanc.pacs(protocol, patience_minutes=0.5)), encoding="utf-8")
    cohort.write_text("patient_id\nMRN-1\n", encoding="utf-8")
    ended = run("data", "pull", cohort, "--from", pacs, "--out", tmp_path / "out", "--json")
    assert ended.status == 1, ended.text
    values = json.loads(ended.output)
    # Orthanc's DICOMweb does not list a series of which a file is lost, so that its others cannot be asked for either.
    assert 1 <= values["missing"] <= (count if protocol == "web" else 1)
    assert values["objects"] == 2 * count - values["missing"]
