"""Predictions that go back into a real Orthanc, where the policy allows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from commands import Outcome
from dicoms import make_seg, make_series, volume
from oncofed.privacy.policy import Policy
from orthancs import Orthanc, why_no_orthanc

pytest.importorskip("dicomweb_client", reason="needs dicomweb-client: pip install 'oncofed[hospital]'")
pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[hospital]'")
pytestmark = [
    pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one"),
    pytest.mark.xdist_group("orthanc"),
]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def kit(folder: Path, push: bool) -> Path:
    (folder / "local").mkdir(parents=True)
    policy = Policy.model_validate({"pacs": {"push": push}})
    (folder / "local" / "policy.json").write_text(policy.model_dump_json(by_alias=True), encoding="utf-8")
    return folder


def predictions(folder: Path) -> Path:
    """A folder with a SEG of oncofed, one of another maker, one of de-identified images, and the images."""
    files = make_series(folder, volume(), patient="MRN-1", modality="CT")
    mask = np.zeros(volume().shape, bool)
    mask[2:5, 3:9, 1:6] = True

    def made_here(dataset: pydicom.Dataset) -> None:
        dataset.Manufacturer = "oncofed"

    def of_a_pseudonym(dataset: pydicom.Dataset) -> None:
        made_here(dataset)
        dataset.PatientIdentityRemoved = "YES"

    make_seg(folder / "ours.dcm", files, {"lesion": mask}, change=made_here)
    make_seg(folder / "theirs.dcm", files, {"lesion": mask})
    make_seg(folder / "pseudonym.dcm", files, {"lesion": mask}, change=of_a_pseudonym)
    return folder


@pytest.mark.parametrize("protocol", ["web", "get"])
def test_what_oncofed_made_is_stored_once(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    orthanc.clear()
    folder, site = predictions(tmp_path / "predictions"), kit(tmp_path / "kit", push=True)
    pacs = tmp_path / "pacs.yaml"
    pacs.write_text(yaml.safe_dump(orthanc.pacs(protocol)), encoding="utf-8")
    arguments = ("data", "push", folder, "--to", pacs, "--site", site, "--json")
    sent = json.loads(run(*arguments).output)
    assert (sent["sent"], sent["before"], sent["refused"]) == (1, 0, {})
    assert sent["left_out"] == {
        "not made by oncofed": volume().shape[2] + 1,
        "made of de-identified images: the archive knows no such patient": 1,
    }
    assert orthanc.count == 1
    (name,) = orthanc.call("GET", "/instances")
    stored = orthanc.call("GET", f"/instances/{name}/simplified-tags")
    assert stored["SOPInstanceUID"] == pydicom.dcmread(folder / "ours.dcm").SOPInstanceUID
    again = json.loads(run(*arguments).output)
    assert (again["sent"], again["before"]) == (0, 1)
    entries = (site / "audit" / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["what"] for line in entries] == ["predictions sent to the archive"]
    assert "MRN-1" not in "".join(entries)


def test_what_another_archive_stored_is_sent(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    orthanc.clear()
    folder, site = predictions(tmp_path / "predictions"), kit(tmp_path / "kit", push=True)
    pacs = tmp_path / "pacs.yaml"
    with Orthanc(tmp_path / "clinical") as clinical:
        for archive, sent in ((orthanc, 1), (clinical, 1), (orthanc, 0)):
            pacs.write_text(yaml.safe_dump(archive.pacs("web")), encoding="utf-8")
            outcome = json.loads(run("data", "push", folder, "--to", pacs, "--site", site, "--json").output)
            assert (outcome["sent"], outcome["before"]) == (sent, 1 - sent)
        assert orthanc.count == clinical.count == 1


def test_where_the_policy_forbids_it_nothing_is_sent(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    orthanc.clear()
    folder, site = predictions(tmp_path / "predictions"), kit(tmp_path / "kit", push=False)
    pacs = tmp_path / "pacs.yaml"
    pacs.write_text(yaml.safe_dump(orthanc.pacs("web")), encoding="utf-8")
    refused = run("data", "push", folder, "--to", pacs, "--site", site)
    assert refused.status == 3
    assert "pacs: {push: true}" in refused.text
    assert orthanc.count == 0
    assert not (site / "audit").exists()


def test_an_archive_that_is_away_is_told(run: Callable[..., Outcome], tmp_path: Path) -> None:
    folder, site = predictions(tmp_path / "predictions"), kit(tmp_path / "kit", push=True)
    pacs = tmp_path / "pacs.yaml"
    for settings in (
        {"dicomweb": {"url": "http://127.0.0.1:9/dicom-web"}},
        {"dimse": {"host": "127.0.0.1", "port": 9, "called": "NOBODY"}},
    ):
        pacs.write_text(yaml.safe_dump(settings), encoding="utf-8")
        ended = run("data", "push", folder, "--to", pacs, "--site", site)
        assert ended.status == 1
        assert "0 of 1 objects are stored" in ended.text
