"""Sites agree before the first round on what ComBat makes alike, and each finds its own shift beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harmonizing_sites import feature_job, feature_site, table_job, table_site
from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.harmonization.agreed import Agreed
from oncofed.data.harmonization.combat import Numbers, agree, harmonized, shift_of, sums_of
from oncofed.errors import DataError, FederationError
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Result, SiteFacts
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, EventLog, Harmonized
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.run_state import read_run_state
from oncofed.tasks.bags import alike
from tiny_federation import Killed, Recorder

SCANNERS = {"east": (0.0, 1.0), "west": (2.5, 1.4), "south": (-1.5, 0.7)}


class _Site(InProcessSite):
    """A site that notes what it trained on, and may keep its sums back."""

    def __init__(self, spec: JobSpec, name: str, data: Path, folder: Path, tells: bool = True) -> None:
        super().__init__(spec.plan(), spec.federation(), SiteContext(site=name, data=data, state=folder))
        self._tells = tells
        self.seen: dict[str, Numbers] = {}
        self.facts: dict[str, Any] = {}

    def __call__(self, request: Request) -> Result:
        result = super().__call__(request)
        if isinstance(request, TrainRequest):
            self.seen = _seen(self)
        if isinstance(result, SiteFacts):
            self.facts = dict(result.numbers)
            if not self._tells:
                return SiteFacts({name: value for name, value in self.facts.items() if name != "harmonization"})
        return result


def _seen(site: InProcessSite) -> dict[str, Numbers]:
    """Return what the network sees of the site's training patients, a row each."""
    trainer = site.training.trainer
    task, found = trainer.task, []
    for case in trainer.cases.train:
        prepared = task.prepared(case)
        if "bags" in prepared:
            row = prepared["table"][None] if "table" in prepared else None
            found.append(alike(trainer.plan.data, prepared["bags"].float()[None], row)[0].mean(0))
        else:
            (row,) = task.row(prepared)
            found.append(row)
    return {"rows": torch.stack(found).double().numpy()}


def _run(
    spec: JobSpec,
    sites: Mapping[str, Path],
    folder: Path,
    *,
    quiet: frozenset[str] = frozenset(),
    kill_after: int | None = None,
    initial: Path | None = None,
) -> tuple[Recorder, dict[str, _Site]]:
    log = EventLog(folder / EVENTS_FILE)
    running = {name: _Site(spec, name, data, folder / name, name not in quiet) for name, data in sites.items()}
    recorder = Recorder(log, kill_after)
    try:
        train_in_memory(spec.plan(), spec.federation(), running, folder, recorder, JobModel(spec.plan(), initial))
    finally:
        log.close()
    return recorder, running


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return {
        name: table_site(folder / name, scanner, 40, seed, 50.0 + 8 * seed)
        for seed, (name, scanner) in enumerate(SCANNERS.items())
    }


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("slides")
    return {name: feature_site(folder / name, number, seed=number) for number, name in enumerate(SCANNERS)}


def _tags(spec: JobSpec, site: _Site) -> tuple[Numbers, Numbers]:
    """Return volume and area, and age and sex, of a site's training patients, as the table has them."""
    cases = InProcessSite(spec.plan(), spec.federation(), site.training._context)
    rows = []
    try:
        cases.training.prepare()
        for case in cases.training.trainer.cases.train:
            assert case.entry
            tags = case.entry.tags
            rows.append([*(float(tags[name]) for name in ("volume", "area", "age")), float(tags["sex"] == "M")])
    finally:
        cases.training.close()
    found = np.array(rows)
    return found[:, :2], found[:, 2:]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"strategy": {"name": "fedadam"}, "exchange": {"update": "int8", "model": "bfloat16"}},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "median"}, "exchange": {"update": "bfloat16"}},
        {"strategy": {"name": "ditto"}},
    ],
)
def test_columns_become_what_combat_of_all_patients_makes_of_them(
    change: dict[str, Any], tables: dict[str, Path], tmp_path: Path
) -> None:
    spec = table_job(change)
    recorder, running = _run(spec, tables, tmp_path)
    known = {name: _tags(spec, site) for name, site in running.items()}
    sums = {name: sums_of(*found) for name, found in known.items()}
    common = agree([sums[name] for name in sorted(sums)])
    for name, (values, covariates) in known.items():
        expected = harmonized(values, covariates, common, shift_of(sums[name], common))
        np.testing.assert_allclose(running[name].seen["rows"][:, 2:], expected, rtol=2e-4, atol=5e-3)
        assert running[name].seen["rows"][:, 0] == pytest.approx(covariates[:, 0]), "ages stay as they are"
    (told,) = (event for event in recorder.events if isinstance(event, Harmonized))
    assert sorted(told.sites) == sorted(SCANNERS)
    before, after, *factors = told.sites["west"]["columns"]
    assert after < before / 3
    assert factors[1] < factors[0]
    state = read_run_state(tmp_path)
    assert state
    best = load_file(tmp_path / MODELS_FOLDER / BEST_MODEL)
    for name in ("harmonization_columns", "harmonization_preserved"):
        assert torch.equal(state.model[name], best[name]), "nobody trains it"


def test_features_of_three_scanners_become_alike(slides: dict[str, Path], tmp_path: Path) -> None:
    spec = feature_job()
    recorder, running = _run(spec, slides, tmp_path)
    means = np.stack([site.seen["rows"].mean(axis=0) for site in running.values()])
    raw = []
    for site in running.values():
        sums = site.facts["harmonization"]
        raw.append(np.array(sums["features"]["sum"]) / sums["patients"])
    assert np.ptp(means, axis=0).mean() < 0.25 * np.ptp(np.stack(raw), axis=0).mean()
    (told,) = (event for event in recorder.events if isinstance(event, Harmonized))
    assert told.constant == {"features": 0}
    best = load_file(tmp_path / MODELS_FOLDER / BEST_MODEL)
    assert Agreed.of(best, ("features",)) is not None


@pytest.mark.parametrize("network", ["attention_mil", "clam_sb"])
def test_heads_over_tiles_see_what_is_made_alike(network: str, slides: dict[str, Path], tmp_path: Path) -> None:
    spec = feature_job({"model": {"network": network}, "rounds": {"number": 1}})
    _, running = _run(spec, slides, tmp_path)
    assert all(np.isfinite(site.seen["rows"]).all() for site in running.values())


def test_slides_need_no_table(slides: dict[str, Path], tmp_path: Path) -> None:
    spec = feature_job({"rounds": {"number": 1}}, covariates=[], harmonization={"features": "combat"})
    recorder, _ = _run(spec, slides, tmp_path)
    assert [event for event in recorder.events if isinstance(event, Harmonized)]


def test_a_site_that_tells_no_sums_trains_beside_the_others(tables: dict[str, Path], tmp_path: Path) -> None:
    recorder, running = _run(table_job(), tables, tmp_path, quiet=frozenset({"south"}))
    (told,) = (event for event in recorder.events if isinstance(event, Harmonized))
    assert sorted(told.sites) == ["east", "west"]
    common = [site.seen["rows"][:, 2:].mean(axis=0) for site in running.values()]
    raw = [_tags(table_job(), site)[0].mean(axis=0) for site in running.values()]
    assert (np.ptp(np.stack(common), axis=0) < 0.3 * np.ptp(np.stack(raw), axis=0)).all(), "it finds its own shift"


def test_one_site_alone_ends_the_run_in_plain_words(tables: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"data.harmonization\): found sums of 1 site, expected two at least"):
        _run(table_job(), tables, tmp_path, quiet=frozenset({"south", "west"}))


def test_a_covariate_that_goes_with_the_site_ends_the_run(tmp_path: Path) -> None:
    sites = {}
    for seed, (name, age) in enumerate((("young", 20.0), ("old", 100.0))):
        site = table_site(tmp_path / name, (0.0, 1.0), 40, seed, age)
        text = (site / "dataset.json").read_text()
        # Years that differ by tenths within a site, and by eighty between them.
        for number in range(1000, 0, -1):
            text = text.replace(f'"age": "{number / 10}"', f'"age": "{age + number % 10 / 10}"')
        (site / "dataset.json").write_text(text)
        sites[name] = site
    with pytest.raises(FederationError, match="age goes with the site"):
        _run(table_job(), sites, tmp_path / "run")


def test_four_patients_are_refused_before_anything_leaves(tables: dict[str, Path], tmp_path: Path) -> None:
    few = table_site(tmp_path / "few", (0.0, 1.0), 6)  # one or two of them are for validation and test
    with pytest.raises(DataError, match="told from 5 patients at least"):
        _run(table_job(), {**tables, "few": few}, tmp_path / "run")


def test_a_killed_server_keeps_what_was_agreed(tables: dict[str, Path], tmp_path: Path) -> None:
    two = {name: tables[name] for name in ("east", "west")}
    with pytest.raises(Killed):
        _run(table_job(), two, tmp_path, kill_after=14)
    before = read_run_state(tmp_path)
    assert before
    assert before.round == 1
    recorder, _ = _run(table_job(), tables, tmp_path)
    assert not [event for event in recorder.events if isinstance(event, Harmonized)]
    after = read_run_state(tmp_path)
    assert after
    assert torch.equal(after.model["harmonization_columns"], before.model["harmonization_columns"])


def test_a_model_that_the_job_brings_keeps_its_own(tables: dict[str, Path], tmp_path: Path) -> None:
    _run(table_job(), tables, tmp_path / "first")
    brought = load_file(tmp_path / "first" / MODELS_FOLDER / BEST_MODEL)
    save_file(brought, tmp_path / "brought.safetensors")
    recorder, _ = _run(table_job(), tables, tmp_path / "second", initial=tmp_path / "brought.safetensors")
    assert not [event for event in recorder.events if isinstance(event, Harmonized)]
    state = read_run_state(tmp_path / "second")
    assert state
    assert torch.equal(state.model["harmonization_columns"], brought["harmonization_columns"])


def test_a_site_forgets_nothing_between_processes(tables: dict[str, Path], tmp_path: Path) -> None:
    """The same request to a new process of the site sees the same values."""
    spec = table_job()
    _, running = _run(spec, tables, tmp_path)
    best = load_file(tmp_path / MODELS_FOLDER / BEST_MODEL)
    again = _Site(spec, "west", tables["west"], tmp_path / "again")
    try:
        again.training.prepare()
        again.training.trainer.load_weights(best)
        np.testing.assert_array_equal(_seen(again)["rows"], running["west"].seen["rows"])
    finally:
        again.training.close()
