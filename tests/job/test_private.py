"""Jobs with differential privacy: what is refused, and what is told before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from commands import Outcome
from oncofed.errors import SpecError
from oncofed.job.outcome import begin_result
from oncofed.job.private import privacy_costs, privacy_notes
from oncofed.job.spec import JobSpec, read_job
from oncofed.privacy.accountant import Event, epsilon
from oncofed.privacy.policy import ProposedJob
from oncofed.privacy.statement import statement_of
from oncofed.report.remarks import remarks
from oncofed.report.result import Means
from oncofed.settings import SettingError
from oncofed.site.policies import parse_policy
from oncofed.training.optimizer import build_optimizer
from oncofed.training.private_plan import check_private, require_no_mixing, require_same_buffers
from synthetic import JOB, make_site, write_job

_SECTION = "privacy: {differential_privacy: {noise_multiplier: 1.2, delta: 1.0e-3, sampling: 0.1}}\n"


def _spec(tmp_path: Path, text: str = JOB, section: str = _SECTION) -> JobSpec:
    return read_job(write_job(tmp_path / "job", text + section))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("noise_multiplier: 1.2", "noise_multiplier: 0", r"job\.yaml:10: privacy.*noise_multiplier: found 0"),
        ("noise_multiplier: 1.2, ", "", r"epsilon: found neither, expected either epsilon or noise_multiplier"),
        ("noise_multiplier: 1.2", "noise_multiplier: 1.2, epsilon: 8", r"epsilon: found both, expected either"),
        ("sampling: 0.1", "sampling: 0.1, clip: 0", r"clip: found 0"),
        ("sampling: 0.1", "sampling: 0", r"sampling: found 0"),
        ("delta: 1.0e-3", "delta: 1", r"delta: found 1"),
        ("delta: 1.0e-3", "delta: 0.05", r"delta: found 0\.05; Input should be less than 0\.05"),
        ("delta: 1.0e-3", "delta: 0", r"delta: found 0"),
        ("sampling: 0.1", "sampling: 0.1, unit: site", r"below 100 the noise drowns the model.*Expected patient"),
        ("sampling: 0.1", "sampling: 0.1, noise: shared", r"noise: found shared, but .* less noise .*or take local"),
        ("sampling: 0.1", "sampling: 0.1, lost: 1", r"lost: is of noise that sites make together: leave it out"),
        ("sampling: 0.1", "sampling: 0.1, colluding: 2", r"colluding: is of noise that sites make together"),
        (
            "residual_units: 1",
            "residual_units: 1, norm: batch",
            r"yaml:6: model\.norm: found batch .*by the others",
        ),
        ("batch_size: 2", "batch_size: 2, precision: float16", r"precision: found float16 .*Expected auto, bfloat16"),
        ("batch_size: 2", "batch_size: 8, micro_batch: 8", r"micro_batch: found 8 .*would join patients.*at most 4"),
        ("seed: 3", "seed: 3\nstrategy: fedbuff", r"strategy: found fedbuff .*epsilon is not known before"),
        ("seed: 3", "seed: 3\nstrategy: ditto", r"strategy: found ditto .*a personal model too.*are not charged"),
        (
            "residual_units: 1}",
            "residual_units: 1}\nstrategy: fedbn",
            r"job\.yaml:7: strategy: found fedbn .*needs batch normalisation",
        ),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = JOB + _SECTION
    assert old in text
    with pytest.raises(SpecError, match=message):
        read_job(write_job(tmp_path / "job", text.replace(old, new)))


_STEP = "{steps_per_round: 1, batch_size: 2, optimizer: sgd, momentum: 0, learning_rate: 0.2, schedule: constant, "
_TOGETHER = (
    JOB.replace("{steps_per_round: 4, batch_size: 2, learning_rate: 0.01, ", _STEP)
    + "privacy: {secure_aggregation: {minimum_sites: 6}, differential_privacy: {noise: shared, colluding: 1, lost: 1, "
    "noise_multiplier: 1.2, delta: 1.0e-3, sampling: 0.1}}\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps_per_round: 1", "steps_per_round: 4", r"steps_per_round: found 4 beside .*noise: shared.*Expected 1"),
        ("optimizer: sgd", "optimizer: adamw", r"training\.optimizer: found adamw .*Expected sgd"),
        ("momentum: 0,", "momentum: 0.9,", r"training\.momentum: found 0\.9 .*strategy: fedavgm has momentum"),
        ("seed: 3", "seed: 3\nstrategy: scaffold", r"strategy: found scaffold .*take fedavg or fedavgm"),
        ("seed: 3", "seed: 3\nstrategy: fednova", r"strategy: found fednova .*take fedavg or fedavgm"),
        ("colluding: 1", "colluding: 3", r"colluding: found 3, expected at most 2 with rosters of 6 sites"),
        ("colluding: 1", "colluding: 0", r"colluding: found 0"),
        ("lost: 1", "lost: 2", r"lost: found 2, expected at most 1 with rosters of 6 sites"),
        ("minimum_sites: 6", "minimum_sites: 3", r"lost: found 1, expected at most 0 with rosters of 3 sites"),
        ("number: 2", "number: 2, quorum: 5", r"rounds\.quorum: found 5, expected at least the 6 sites"),
        ("secure_aggregation: {minimum_sites: 6}, ", "", r"noise: found shared, but a site's own update has less"),
    ],
)
def test_noise_that_sites_make_together_is_refused_where_it_would_be_too_little(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in _TOGETHER
    read_job(write_job(tmp_path / "job", _TOGETHER))
    read_job(write_job(tmp_path / "job", _TOGETHER.replace("seed: 3", "seed: 3\nstrategy: fedavgm")))
    with pytest.raises(SpecError, match=message):
        read_job(write_job(tmp_path / "job", _TOGETHER.replace(old, new)))


def test_sites_that_make_noise_together_are_said_to_be_trusted(tmp_path: Path) -> None:
    spec = read_job(write_job(tmp_path / "job", _TOGETHER))
    assert (spec.federation().smallest_roster, spec.federation().smallest_sum) == (6, 5)
    costs, alone = privacy_costs(spec, spec.plan().build_network()), _spec(tmp_path)
    own = privacy_costs(alone.changed({"training": {"steps_per_round": 1}}), spec.plan().build_network())
    assert costs
    assert own
    # The same promise: sites of the smallest roster make noise for four of them.
    assert (costs.epsilon, costs.steps) == (own.epsilon, own.steps)
    assert costs.noise_to_signal[200] == pytest.approx(own.noise_to_signal[200] * (6 / 4) ** 0.5)
    assert f"for {costs.most_cases:,} training cases of all sites at most" in "\n".join(costs.lines())
    assert "with 200 training patients of all sites" not in "\n".join(own.lines())
    promise = statement_of(spec.privacy.differential_privacy, 2)
    assert promise
    said = dict(promise.said())
    assert "at most 1 of the sites that take part in a round helps the server" in said["Trust"]
    assert "at most 1 is lost" in said["Trust"]
    assert said["Mechanism"].startswith("shared noise, noise multiplier 1.2")
    assert (promise.noise, promise.colluding, promise.lost) == ("shared", 1, 1)


_TARGETS = """\
schema: 1
name: outcome
title: An outcome
data: {dataset: balls, patch: [32, 32, 32]%s}
targets: [%s]
model: {network: resnet18}
%s"""
_OUTCOME = "{name: outcome, kind: class, classes: [absent, present]}"


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (", covariates: [{name: age, range: [0, 120]}]", _OUTCOME, "age.*sums over training patients leave"),
        ("", "{name: death, kind: survival, unit: months, horizon: 36, model: cox}", "a loss that compares patients"),
    ],
)
def test_targets_that_need_others_patients_are_refused(tmp_path: Path, data: str, target: str, message: str) -> None:
    read_job(write_job(tmp_path / "job", _TARGETS % (data, target, "")))
    with pytest.raises(SpecError, match=message):
        read_job(write_job(tmp_path / "job", _TARGETS % (data, target, _SECTION)))


@pytest.mark.parametrize("setting", ["loss: mine", "transforms: [mine]"])
def test_a_pack_that_sees_whole_batches_is_refused(tmp_path: Path, setting: str) -> None:
    text = JOB.replace("batch_size: 2", f"batch_size: 2, {setting}")
    with pytest.raises(SpecError, match=r"may join patients, as a pack can"):
        _spec(tmp_path, text)


def test_any_code_of_a_pack_is_refused(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    model = spec.model.model_copy(update={"code": "ab" * 32})
    with pytest.raises(SettingError, match=r"model\.code: found the pack abababababab… .*could leave it out"):
        check_private(spec.plan().model_copy(update={"model": model}))


def test_a_layer_that_keeps_means_is_found_in_any_network(tmp_path: Path) -> None:
    for layer in (nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2, track_running_stats=True)):
        with pytest.raises(SpecError, match=rf"found the layer 1 \({type(layer).__name__}\)"):
            require_no_mixing(nn.Sequential(nn.ReLU(), layer))
    require_no_mixing(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.LayerNorm(2)))


class _Centred(nn.Module):
    """Keeps a mean over patients in a buffer of its own name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Subtract the mean so far, (N, 2)."""
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * images.mean(0)
        return images - self.centre


def test_a_buffer_that_training_changes_is_found_whatever_its_name() -> None:
    network = nn.Sequential(_Centred(), nn.Linear(2, 1))
    require_no_mixing(network)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.eval()(torch.ones(3, 2))
    require_same_buffers(network, before)
    network.train()(torch.ones(3, 2))
    with pytest.raises(SpecError, match=r"found the buffer 0\.centre, which training changes without noise"):
        require_same_buffers(network, before)


def test_a_job_without_the_section_has_no_promise(tmp_path: Path) -> None:
    spec = _spec(tmp_path, section="")
    assert privacy_notes(spec) == []
    assert privacy_costs(spec, spec.plan().build_network()) is None
    assert statement_of(spec.privacy.differential_privacy, 8) is None


def test_momentum_is_a_setting_and_what_it_was(tmp_path: Path) -> None:
    spec = _spec(tmp_path, section="")
    network = spec.plan().build_network()
    for momentum, nesterov in ((None, True), (0.9, True), (0.0, False)):
        more = {} if momentum is None else {"momentum": momentum}
        changed = spec.changed({"training": {"optimizer": "sgd", **more}})
        group = build_optimizer(changed.training, network).param_groups[0]
        assert (group["momentum"], group["nesterov"]) == (0.99 if momentum is None else momentum, nesterov)


def test_costs_are_told_before_anything_runs(
    tmp_path: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_job(tmp_path / "job", JOB + _SECTION)
    told = run("job", "check", file).text
    exact = epsilon([Event(1.2, 0.1, 8)], 1e-3)
    assert f"epsilon {exact:.3f}" in told
    assert "for each training patient of each site (PLD, dp-accounting 0." in told
    assert "noise multiplier 1.2, sampling 0.1, 8 steps" in told
    assert "note: adamw does badly under noise: try training: {optimizer: sgd, momentum: 0.9}" in told
    assert "schedule: constant" in told
    found: dict[str, Any] = json.loads(run("job", "check", file, "--json").output)["privacy"]
    assert found["epsilon"] < found["renyi_epsilon"]
    length = 1.2 * 0.1 * found["trained"] ** 0.5 / (0.1 * 200)
    assert found["noise_to_signal"]["200"] == pytest.approx(length)
    assert found["noise_to_signal"]["20"] == pytest.approx(10 * length)
    assert found["epsilon_of_policies"] > found["epsilon"]
    assert f"at delta 1e-05, at which sites' policies limit it by default: {found['epsilon_of_policies']:g}" in told
    drowned = max(int(n) for n, length in found["noise_to_signal"].items() if length > found["clip"])
    assert f"with {drowned} training patients or fewer each step is more noise than gradient" in told
    assert "training.batch_size is not used" in told


def test_a_promise_says_what_nist_asks(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    promise = statement_of(spec.privacy.differential_privacy, spec.plan().total_steps)
    assert promise
    said = dict(promise.said())
    assert said["Promise"].startswith(
        f"epsilon {promise.epsilon:g} at delta 0.001: (epsilon, delta)-differential privacy"
    )
    assert "each training patient of each site" in said["To whom"]
    assert "the number of training patients is public" in said["Neighbours"]
    assert "validation and test patients" in said["Not covered"]
    assert promise.epsilon >= epsilon([Event(1.2, 0.1, 8)], 1e-3)
    assert not any(word in str(said).lower() for word in ("anonym", "complian", "de-identif", "secure"))


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ("secure_aggregation:", r"yaml:11: privacy\.secure_aggregation: found nothing after it; write \{\} for"),
        (
            "differential_privacy:",
            r"yaml:11: privacy\.differential_privacy: found nothing after it; write delta",
        ),
        ("secure_aggregation: true", r"yaml:11: .*: found True; write \{\} or \{minimum_sites: 3\}"),
        ("differential_privacy: 8", r"found 8; expected a section with delta and sampling; it may have unit, noise"),
        ("secure_aggregation: {minimum: 3}", r"secure_aggregation\.minimum; allowed here: minimum_sites"),
        (
            "differential_privacy: {deltas: 1.0e-3}",
            r"differential_privacy\.deltas; allowed here: unit, noise, colluding",
        ),
    ],
)
def test_a_section_that_says_nothing_or_something_else(tmp_path: Path, privacy: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_job(write_job(tmp_path / "job", f"{JOB}privacy:\n  {privacy}\n"))


def test_sections_that_are_off_are_written_and_read(tmp_path: Path) -> None:
    for privacy in ("", "privacy: {secure_aggregation: null}\n", "privacy: {secure_aggregation: {}}\n", _SECTION):
        spec = read_job(write_job(tmp_path / "job", JOB + privacy))
        again = read_job(write_job(tmp_path / "again", spec.changed({"training": {"batch_size": 3}}).to_yaml()))
        assert again.privacy == spec.privacy


def test_too_few_patients_are_told_before_anything_starts(
    tmp_path: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_job(tmp_path / "job", JOB + _SECTION)
    sites = {name: make_site(tmp_path / name, 6, seed) for seed, name in enumerate(("east", "west"))}
    checked = run("data", "check", file, sites["east"])
    assert checked.status == 3
    assert "found 4 training patients; too few training patients for differential privacy: expected" in checked.text
    named = [part for name, folder in sites.items() for part in ("--site", f"{name}={folder}")]
    refused = run("job", "run", file, *named)
    assert refused.status != 0
    for site in sites:
        assert f"{site}: found 4 training patients; too few" in refused.text


@pytest.mark.parametrize(
    ("settings", "said", "not_said"),
    [
        ({"sampling": 0.1}, "under noise a public model", "no step at all"),
        ({"clip": 0.1}, "under noise a public model", "noise is as long as the clip"),
        ({"clip": 0.5}, "noise is as long as the clip (0.5) says, also where gradients are shorter", "no step at all"),
        ({"sampling": 0.05}, "most patients are in no step at all", "promises little"),
        ({"sampling": 1}, "under noise a public model", "a larger sampling"),
        ({"noise_multiplier": 0.8, "sampling": 1}, "promises little", "the least that is taken"),
        (
            {"noise_multiplier": None, "epsilon": 90, "sampling": 1},
            "the noise multiplier is 0.3, the least",
            "a larger",
        ),
        ({"delta": 0.02}, "delta 0.02 is refused by every site of 50 training patients or more", "promises little"),
    ],
)
def test_notes_say_what_is_true_alone(tmp_path: Path, settings: dict[str, Any], said: str, not_said: str) -> None:
    spec = _spec(tmp_path)
    private = spec.privacy.model_dump()["differential_privacy"] | settings
    steps = {"training": {"steps_per_round": 1}} if "epsilon" in settings else {}
    notes = " | ".join(privacy_notes(spec.changed({"privacy": {"differential_privacy": private}, **steps})))
    assert said in notes
    assert not_said not in notes


def test_models_to_compare_with_are_said_to_have_noise(tmp_path: Path) -> None:
    result = begin_result(_spec(tmp_path), "simulate")
    result.best_round, result.mean, result.baselines_have_noise = 1, Means(alone=0.5, pooled=0.6), True
    assert any(line.startswith("Alone and Pooled: trained with the job's noise") for line in remarks(result))
    result.baselines_have_noise = False
    assert not any("noise" in line for line in remarks(result))


def test_the_docs_job_passes_the_docs_policy(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    job, policy = (
        re.findall(r"```yaml\n(.*?)```", (docs / name).read_text(), re.DOTALL)[0]
        for name in ("differential-privacy.md", "privacy.md")
    )
    base = "".join(line for line in JOB.splitlines(keepends=True) if not line.startswith(("training", "rounds")))
    spec = read_job(write_job(tmp_path / "job", base + job))
    (tmp_path / "policy.yaml").write_text(policy)
    rules = parse_policy(tmp_path / "policy.yaml")
    facts = ProposedJob(
        spec.name,
        None,
        spec.data.dataset,
        spec.model.network,
        spec.strategy.name,
        smallest_sum=spec.federation().smallest_sum,
        noise_multiplier=spec.noise_multiplier,
    )
    assert rules.refusal(facts) is None
    private, limits = spec.privacy.differential_privacy, rules.leaves.differential_privacy
    assert private
    assert limits.largest_epsilon_a_job
    assert epsilon([private.event(spec.plan().total_steps)], limits.delta) <= limits.largest_epsilon_a_job
