"""A run's result and report say which encoder and which template of stains its slides went through."""

from __future__ import annotations

from pathlib import Path

from oncofed.job.outcome import begin_result, note_preparation
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, parse_job
from oncofed.report.html import write_report
from oncofed.report.result import read_result
from oncofed.rounds.events import EncoderUnknown, Event, Ready, Standardised
from synthetic import write_job
from trained import SLIDES

DIGEST = "ab" * 32


def _spec(folder: Path, network: str, stain: str) -> JobSpec:
    spec = parse_job(write_job(folder, SLIDES))
    values = spec.model_dump(mode="json", by_alias=True)
    values["task"]["encoder"] = {"network": network}
    values["data"] |= {"spacing": [0.0005, 0.0005], "patch": [224, 224], "stain": {"normalise": stain}}
    return JobSpec.model_validate(values)


def _state(*events: Event) -> RunProgress:
    state = RunProgress()
    for event in events:
        state.apply(event)
    return state


def test_encoder_digest_and_sites_that_do_not_know_it(tmp_path: Path) -> None:
    spec = _spec(tmp_path, "uni2-h", "none")
    cases = {site: {"train": 9, "validation": 5, "test": 6} for site in ("east", "west")}
    told = {"east": {**cases["east"], "encoder": DIGEST}, "west": {**cases["west"], "encoder": None}}
    result = begin_result(spec, "federation")
    note_preparation(result, _state(EncoderUnknown(site="west"), Ready(seconds=1.0, sites=told)), spec)
    assert result.encoder is not None
    assert (result.encoder.network, result.encoder.digest) == ("uni2-h", DIGEST)
    assert (result.encoder.tile, result.encoder.mpp, result.encoder.unknown) == (224, 0.5, ["west"])
    assert result.stain is None
    result.write(tmp_path)
    assert read_result(tmp_path) == result
    html = write_report(result, {}, tmp_path).read_text()
    assert DIGEST in html
    assert "west brought features without the digest" in html


def test_the_template_of_stains_and_the_sites_behind_it(tmp_path: Path) -> None:
    spec = _spec(tmp_path, "colour", "macenko")
    first, *others = (column.name for column in spec.plan().data.stain.columns)
    agreed = {name: [0.5, 0.1] for name in others}
    state = _state(Standardised(columns=agreed, sites={name: ["east", "west"] for name in others}))
    result = begin_result(spec, "federation")
    note_preparation(result, state, spec)
    assert result.encoder is not None
    assert result.encoder.digest is None
    assert result.stain is not None
    assert (result.stain.sites, result.stain.published) == (["east", "west"], [first])
    html = write_report(result, {}, tmp_path).read_text()
    assert "agreed by 2 sites: east, west" in html
    assert "none: it has none" in html
    note_preparation(result, _state(Standardised(columns={}, sites={})), spec)
    assert result.stain.sites == []
    assert "no site told sums" in write_report(result, {}, tmp_path).read_text()
