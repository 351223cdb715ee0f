"""A site's offer of GPUs: assignment, refusal and hours."""

from __future__ import annotations

import json
import os
from datetime import datetime, time, timedelta
from pathlib import Path

import pytest
from nvflare.apis.fl_context import FLContext

from commands import wait_for
from fake_smi import install, row
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.session import quiet
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import FederationError
from oncofed.flare.runtime.resources import (
    GPU_MEMORY,
    GPUS,
    LENDING_FILE,
    GPUAssigner,
    SiteOffer,
    SiteResources,
    read_lending,
)
from oncofed.gpus import GPU
from oncofed.job.flare import export_job
from oncofed.job.spec import parse_job
from oncofed.privacy.policy import POLICY_FILE, Policy
from synthetic import make_site, write_job

TWO = [GPU(number, "H100", "570", 80.0, 79.0, 0) for number in (0, 1)]


class _Site:
    """A site's resource manager with given GPUs and clock."""

    def __init__(self, folder: Path, gpus: list[GPU], lending: SiteOffer | None = None, now: str = "12:00") -> None:
        self.gpus, self.now = gpus, now
        self.manager = SiteResources(lambda: self.gpus, lambda: time.fromisoformat(self.now))
        self.manager._file = folder / LENDING_FILE
        if lending:
            self.manager._file.write_bytes(lending.to_json())

    def ask(self, **wanted: float) -> list[int] | str:
        """Return the GPUs that a job gets, or the refusal."""
        enough, token = self.manager.check_resources(wanted, FLContext())
        if not enough:
            return token
        given = self.manager.allocate_resources(wanted, token, FLContext())
        assert isinstance(given[GPUS], list)
        return given[GPUS]

    def free(self, *gpus: int) -> None:
        self.manager.free_resources({"job": 1, GPUS: list(gpus)}, "", FLContext())


def test_a_gpu_serves_one_job_at_a_time(tmp_path: Path) -> None:
    site = _Site(tmp_path, TWO)
    assert site.ask(**{GPUS: 1}) == [0]
    assert site.ask(**{GPUS: 1}) == [1]
    assert site.ask(**{GPUS: 1}) == "0 of its GPUs are free now, and the job needs 1"
    site.free(0)
    assert site.ask(**{GPUS: 1}) == [0]
    assert site.ask() == []  # a federated profile needs none


def test_a_cancelled_reservation_frees_its_gpu(tmp_path: Path) -> None:
    site = _Site(tmp_path, TWO[:1])
    enough, token = site.manager.check_resources({GPUS: 1}, FLContext())
    assert enough
    assert "0 of its GPUs" in site.ask(**{GPUS: 1})
    site.manager.cancel_resources({GPUS: 1}, token, FLContext())
    assert site.ask(**{GPUS: 1}) == [0]


@pytest.mark.parametrize(
    ("gpus", "lending", "wanted", "answer"),
    [
        (TWO, SiteOffer(gpus=(1,)), {GPUS: 1}, [1]),
        (TWO, SiteOffer(gpus=(1,)), {GPUS: 2}, "it lends 1 GPUs, and the job needs 2"),
        (TWO, SiteOffer(gpus=(7,)), {GPUS: 1}, "it lends 0 GPUs, and the job needs 1"),
        (TWO, SiteOffer(gpus=()), {GPUS: 1}, "it lends 0 GPUs, and the job needs 1"),
        (TWO, None, {GPUS: 1, GPU_MEMORY: 141}, "it lends 0 GPUs with 141 GiB, and the job needs 1"),
        (TWO, None, {GPUS: 2, GPU_MEMORY: 16}, [0, 1]),
        ([GPU(0, "H100", "570", 80.0, 3.0, 99), TWO[1]], None, {GPUS: 1, GPU_MEMORY: 16}, [1]),
        ([], None, {GPUS: 1}, []),
        ([], None, {GPUS: 1, GPU_MEMORY: 16}, "it has no GPU, and the job needs one with 16 GiB"),
    ],
)
def test_a_job_gets_gpus_or_a_reason(
    tmp_path: Path, gpus: list[GPU], lending: SiteOffer | None, wanted: dict[str, float], answer: list[int] | str
) -> None:
    assert _Site(tmp_path, gpus, lending).ask(**wanted) == answer


def test_a_gpu_slice_serves_one_single_gpu_job(tmp_path: Path) -> None:
    slices = [GPU(0, "A100 1g.5gb", "570", 5.0, 5.0, None, f"MIG-{name}", is_slice=True) for name in "ab"]
    site = _Site(tmp_path, slices)
    assert site.ask(**{GPUS: 2}) == "it lends 0 GPUs, and the job needs 2"
    assert site.ask(**{GPUS: 1, GPU_MEMORY: 8}) == "it lends 0 GPUs with 8 GiB, and the job needs 1"
    assert [site.ask(**{GPUS: 1}) for _ in slices] == [["MIG-a"], ["MIG-b"]]
    assert site.ask(**{GPUS: 1}) == "0 of its GPUs are free now, and the job needs 1"


def test_a_busy_gpu_is_assigned_last_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = _Site(tmp_path, [GPU(0, "H100", "570", 80.0, 3.0, 99), TWO[1]])
    assert site.ask(**{GPUS: 1}) == [1]
    assert not caplog.records
    assert site.ask(**{GPUS: 1}) == [0]
    assert "GPU 0 has 3 of 80 GiB free for the job: nvidia-smi shows what else uses it" in caplog.text


def test_a_site_offers_the_gpus_of_its_initial_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch, [row(number) for number in range(4)])
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    manager = SiteResources(now=lambda: time.fromisoformat("12:00"))
    manager._file = tmp_path / LENDING_FILE
    given = []
    for _ in range(2):
        _, token = manager.check_resources({GPUS: 1}, FLContext())
        given.append(manager.allocate_resources({GPUS: 1}, token, FLContext()))
        GPUAssigner().consume(given[-1])
        assert os.environ["CUDA_VISIBLE_DEVICES"] == str(given[-1][GPUS][0])
    assert [resources[GPUS] for resources in given] == [[2], [3]]


def test_a_site_with_unreadable_gpus_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path / "bin", monkeypatch, ["Unable to determine the device handle for GPU0000:3B:00.0"], status=255)
    manager = SiteResources(now=lambda: time.fromisoformat("12:00"))
    manager._file = tmp_path / LENDING_FILE
    enough, told = manager.check_resources({GPUS: 1}, FLContext())
    assert (enough, told) == (False, "its GPUs cannot be asked; the site's own log says more")
    assert "no job is taken: nvidia-smi says: Unable to determine" in caplog.text


def test_jobs_at_once_are_limited(tmp_path: Path) -> None:
    site = _Site(tmp_path, [], SiteOffer(jobs_at_once=1))
    assert site.ask(**{GPUS: 1}) == []
    assert site.ask(**{GPUS: 1}) == "it runs 1 of 1 jobs at once"
    site.free()
    assert site.ask(**{GPUS: 1}) == []


@pytest.mark.parametrize(
    ("hours", "now", "is_open"),
    [
        (None, "03:00", True),
        ("08:00-18:00", "08:00", True),
        ("08:00-18:00", "18:00", False),
        ("18:00-07:00", "23:59", True),
        ("18:00-07:00", "06:59", True),
        ("18:00-07:00", "12:00", False),
    ],
)
def test_hours_may_go_over_midnight(tmp_path: Path, hours: str | None, now: str, is_open: bool) -> None:
    answer = _Site(tmp_path, [], SiteOffer(hours=hours), now).ask(**{GPUS: 1})
    assert answer == ([] if is_open else f"it lends nothing now, but at {hours}")


def test_the_sites_policy_has_windows_too(tmp_path: Path) -> None:
    policy = Policy(windows=("18:00-20:00", "22:00-07:00"))
    (tmp_path / POLICY_FILE).write_text(policy.model_dump_json(by_alias=True))
    refused = "its policy lets jobs run at 18:00-20:00, 22:00-07:00"
    assert _Site(tmp_path, [], None, "12:00").ask(**{GPUS: 1}) == refused
    assert _Site(tmp_path, [], None, "21:00").ask(**{GPUS: 1}) == refused
    assert _Site(tmp_path, [], None, "19:00").ask(**{GPUS: 1}) == []
    both = _Site(tmp_path, [], SiteOffer(hours="20:00-08:00"), "19:00")
    assert both.ask(**{GPUS: 1}) == "it lends nothing now, but at 20:00-08:00"


@pytest.mark.parametrize("text", ["{", "[]", '{"gpus": null}', '{"gpus": 3, "jobs_at_once": 1, "hours": null}'])
def test_a_broken_offer_file_offers_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / LENDING_FILE).write_text(text)
    with pytest.raises(FederationError, match="is broken"):
        read_lending(tmp_path / LENDING_FILE)


def test_a_jobs_process_sees_only_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    GPUAssigner().consume({"job": 1, GPUS: [2, 3]})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    GPUAssigner().consume({"job": 1, GPUS: []})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def _hours(begins_in: float, ends_in: float) -> SiteOffer:
    begin, end = (datetime.now() + timedelta(hours=hours) for hours in (begins_in, ends_in))
    return SiteOffer(hours=f"{begin:%H:%M}-{end:%H:%M}")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_job_stops_after_hours_and_resumes_when_they_begin(tmp_path: Path) -> None:
    datasets = {site: {"balls": make_site(tmp_path / site, 6, n)} for n, site in enumerate(("east", "west"))}
    job = write_job(tmp_path / "balls")
    job.write_text(job.read_text().replace("number: 2", "number: 3000, quorum: 1"))
    exported = export_job(parse_job(job), tmp_path / "exported")
    spec = AllianceSpec(sites=("east", "west"), port=free_port())
    with LocalAlliance(spec, tmp_path / "alliance", datasets, tmp_path / "logs", tmp_path / "tmp") as alliance:
        alliance.wait_registered()
        lending = alliance.kit("east") / "local" / LENDING_FILE
        lending.write_bytes(_hours(2, 3).to_json())
        with quiet():
            job_id = alliance.session().submit_job(str(exported))
        events = alliance.server_kit / "oncofed" / job_id / "events.jsonl"
        wait_for(lambda: _last(events) == ["west"], "west trains alone")
        lending.write_bytes(_hours(-1, 1).to_json())
        wait_for(lambda: _last(events) == ["east", "west"], "east is given the running job")
        lending.write_bytes(_hours(2, 3).to_json())
        wait_for(lambda: _last(events) == ["west"], "its hours are over")
        lending.write_bytes(SiteOffer().to_json())
        wait_for(lambda: _last(events) == ["east", "west"], "they begin again")
        with quiet():
            assert alliance.session().get_job_status(job_id) == "RUNNING"
            alliance.session().abort_job(job_id)


def _last(events: Path) -> list[str]:
    if not events.is_file():
        return []
    rounds = [event for event in map(json.loads, events.read_text().splitlines()) if event["kind"] == "round"]
    return list(rounds[-1]["participation"]["in_time"]) if rounds else []
