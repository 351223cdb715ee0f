"""A job of several targets: rounds between sites in this process, each message past the outbound policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.flare import wire
from oncofed.job.outcome import begin_result, note_pooled
from oncofed.job.spec import JobSpec, parse_job
from oncofed.messages.requests import EvaluateRequest, Request
from oncofed.messages.results import Result
from oncofed.report.html import write_report
from oncofed.rounds.events import EVENTS_FILE, EventLog, EventReader, Finished
from oncofed.tasks.calibration import read_calibration
from outbound_results import policy_of
from tiny_federation import Recorder

JOB = """\
schema: 1
name: four_targets
title: Several targets of one image
data: {dataset: flat, modality: xray, channels: [grey], patch: [32, 32], max_bad_share: 1,
  split: {validation: 0.35, test: 0.35}}
targets:
  - {name: side, kind: class, classes: [left, right]}
  - {name: findings, kind: labels, findings: [lump, stripes, never], positive_weight: {lump: 2}}
  - {name: shade, kind: grade, grades: [dark, grey, bright]}
  - {name: size, kind: value, unit: cm, range: [0, 3], loss: gaussian}
model: {network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}}
training: {steps_per_round: 10, batch_size: 8, learning_rate: 0.005, warmup_steps: 0}
rounds: {number: 1}
"""


def _write_site(folder: Path, count: int, seed: int) -> Path:
    """Write images whose targets can be seen; a third does not state its stripes."""
    rng = np.random.default_rng(seed)
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    for number in range(count):
        lump, striped, side = rng.random(3) < (0.4, 0.5, 0.5)
        shade, size = int(rng.integers(0, 3)), int(rng.integers(4, 14))
        pixels = rng.normal(40 + 50 * shade, 8, (32, 32))
        pixels[:, ::4] += 30 * striped
        begin = 16 if side else 0
        pixels[8 : 8 + size, begin + 2 : begin + 2 + size] += 60
        pixels[26:30, 8:24] += 90 * lump
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "imagesTr" / f"{number:03}.png")
        findings = {"lump": bool(lump), "never": False, **({"stripes": bool(striped)} if number % 3 else {})}
        targets = {
            "side": ["left", "right"][int(side)],
            "findings": findings,
            "shade": ["dark", "grey", "bright"][shade],
            "size": float(2 * size),
        }
        entries.append({"image": f"imagesTr/{number:03}.png", "name": f"{number:03}", "targets": targets})
    declared = {
        "side": {"kind": "class"},
        "findings": {"kind": "labels"},
        "shade": {"kind": "grade", "names": ["dark", "grey", "bright"]},
        "size": {"kind": "value", "unit": "mm"},
    }
    (folder / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    return folder


class _Site(InProcessSite):
    """A site whose results pass its outbound policy, as messages do."""

    def __init__(self, spec: JobSpec, name: str, data: Path, folder: Path) -> None:
        super().__init__(spec.plan(), spec.federation(), SiteContext(site=name, data=data, state=folder))
        self._policy = policy_of(spec)

    def __call__(self, request: Request) -> Result:
        if isinstance(request, EvaluateRequest):
            sent = wire.read_request("validate", wire.to_shareable(request))
            assert isinstance(sent, EvaluateRequest)
            request = sent
        return self._policy.check(super().__call__(request), 1000).result


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text(JOB)
    return parse_job(file)


@pytest.fixture(scope="module")
def run(spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    log = EventLog(folder / EVENTS_FILE)
    sites = {
        name: _Site(spec, name, _write_site(folder / f"{name}_data", count, seed), folder / name)
        for name, count, seed in (("east", 96, 1), ("west", 120, 2))
    }
    try:
        train_in_memory(spec.plan(), spec.federation(), sites, folder, Recorder(log))
    finally:
        log.close()
    return folder


def _finished(run: Path) -> Finished:
    return next(event for event in EventReader(run / EVENTS_FILE).read() if isinstance(event, Finished))


def test_what_the_sites_know_is_told_over_both(run: Path) -> None:
    pooled = _finished(run).pooled
    assert pooled
    targets = pooled["targets"]
    assert set(targets) == {"side", "findings", "shade", "size"}
    assert set(targets["findings"]["classes"]) == {"lump", "stripes"}, "nobody has a finding that never is"
    assert targets["findings"]["figures"]["judged"]["value"] == 2
    assert targets["shade"]["tables"][0]["columns"] == ["dark", "grey", "bright"]
    assert targets["size"]["figures"]["mae"]["unit"] == "cm"
    assert next(iter(targets["size"]["figures"])) == "concordance_correlation"
    site = next(iter(_finished(run).test.values()))
    assert {"side", "findings.lump", "findings.stripes", "shade", "size"} <= set(site["by_class"])
    assert {"f1.findings.lump", "mae.size", "mae_grades.shade"} <= set(site["more"])


def test_thresholds_are_chosen_on_validation_patients_and_kept_with_the_model(run: Path) -> None:
    calibration = read_calibration(run / "models")
    assert calibration
    assert calibration.temperature is None
    assert set(calibration.thresholds["findings"]) == {"lump", "stripes"}
    assert _finished(run).calibration == calibration.model_dump(mode="json", by_alias=True)
    figures = _finished(run).pooled["targets"]["findings"]["figures"]  # type: ignore[index]
    assert "none was learned" not in figures["f1.lump"]["title"]


def test_the_report_shows_them(run: Path, spec: JobSpec, tmp_path: Path) -> None:
    event = _finished(run)
    result = begin_result(spec, "simulate")
    note_pooled(result, pooled=event.pooled, paired=event.paired, calibration=event.calibration)
    text = write_report(result, {}, tmp_path).read_text()
    assert "quadratic weighted kappa" in text
    assert "AUROC of lump" in text
    assert "mean absolute error (cm)" in text
    assert text.count("<svg") >= 3
