"""A site's executor without FLARE: results, errors, restarts."""

from __future__ import annotations

import csv
import hashlib
import json
import resource
import stat
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import monai.bundle
import pytest
import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from safetensors.torch import load_file
from torch import Tensor

import oncofed
from oncofed.client.datasets import DATASETS_FILE
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import LocalScore
from oncofed.client.private_steps import PrivateSteps
from oncofed.client.state import SiteState
from oncofed.data.cases import read_cases
from oncofed.flare import wire
from oncofed.flare.executor import SiteExecutor
from oncofed.flare.folders import kit_folder
from oncofed.flare.security.admission import dataset_digest
from oncofed.flare.security.budget import charge_of, counts_folder, settle
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, SiteFacts, TrainResult
from oncofed.models.weights import Weights, norm_names
from oncofed.prediction.model import load_model
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import Ledger
from oncofed.privacy.policy import Policy
from oncofed.training import Trainer
from synthetic import make_site


class _Context(FLContext):
    """FLARE's context of a site, with a minimal engine."""

    def __init__(self, local: Path) -> None:
        super().__init__()
        workspace = SimpleNamespace(get_site_config_dir=lambda: str(local), get_root_dir=lambda: str(local))
        self.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace, private=True)
        self.set_prop(FLContextKey.APP_ROOT, str(local), private=True)

    def get_job_id(self, default: str = "") -> str:
        return "job"

    def get_identity_name(self, default: str = "") -> str:
        return "west"

    def get_engine(self, *args: object, **kwargs: object) -> SimpleNamespace:
        outer = self

        class _Opened:
            def __enter__(self) -> FLContext:
                return outer

            def __exit__(self, *args: object) -> None: ...

        return SimpleNamespace(new_context=_Opened, fire_event=lambda *a: None, get_cell=lambda: None)


@pytest.fixture
def local(tmp_path: Path, two_sites: dict[str, Path]) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / DATASETS_FILE).write_text(json.dumps({"west": {"balls": str(two_sites["west"])}}))
    return folder


def _reply(executor: SiteExecutor, request: Request, local: Path) -> Shareable:
    return executor.execute(request.task, wire.to_shareable(request), _Context(local), Signal())


def _prepare(executor: SiteExecutor, local: Path, profile: bool = False) -> Mapping[str, Any]:
    result = wire.read_result("prepare", _reply(executor, PrepareRequest(profile=profile), local))
    assert isinstance(result, SiteFacts), result
    return result.numbers


def _train(executor: SiteExecutor, local: Path, weights: Weights, number: int = 1) -> TrainResult:
    result = wire.read_result("train", _reply(executor, TrainRequest(weights=weights, round=number), local))
    assert isinstance(result, TrainResult), result
    return result


def _test(executor: SiteExecutor, local: Path, weights: Weights, number: int = 1) -> Mapping[str, Any]:
    request = EvaluateRequest(weights=weights, round=number, split="test")
    result = wire.read_result("validate", _reply(executor, request, local))
    assert isinstance(result, EvaluateResult), result
    return result.numbers


def _refusal(reply: Shareable) -> Refusal:
    refusal = wire.read_result("prepare", reply)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _end(executor: SiteExecutor, local: Path) -> None:
    executor.handle_event(EventType.END_RUN, _Context(local))


def _training(executor: SiteExecutor) -> InProcessTraining:
    assert isinstance(executor._training, InProcessTraining)
    return executor._training


def _trainer(executor: SiteExecutor) -> Trainer:
    return _training(executor).trainer


def _executor(spec: JobSpec) -> SiteExecutor:
    return SiteExecutor(spec.plan().model_dump(mode="json"), spec.federation().model_dump(mode="json"))


def test_sums_that_overlap_an_earlier_jobs_stay(spec: JobSpec, local: Path) -> None:
    """Two jobs' test patients differ by one.

    The second job's sums would reveal that patient's score.
    """
    weights = spec.plan().initial_weights()
    sums = {"paired": {"patients": 9, "difference": 0.1, "variance": 0.01}}
    left = []
    for policy, patients in (
        (Policy(), range(9)),
        (Policy(), range(10)),
        (Policy(), range(9)),
        (Policy(), None),
        (None, range(10)),  # in a simulation sites share no patients
    ):
        executor = _executor(spec)
        groups = [[f"p{n}" for n in patients]] if patients else []
        executor._policy, executor._training = policy, Mock()
        score = LocalScore({"validate_s": 1.0, **sums}, groups)
        executor._training.validate.return_value = score  # type: ignore[attr-defined]
        numbers = _test(executor, local, weights)
        assert "p1" not in str(numbers)
        left.append("paired" in numbers)
    assert left == [True, False, True, False, True]


def test_a_site_reports_its_cases_and_trains(spec: JobSpec, local: Path, two_sites: dict[str, Path]) -> None:
    executor = _executor(spec)
    counts = _prepare(executor, local)
    expected = {"train": 3, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__, "policy": None}
    assert counts == {
        **expected,
        "dataset": hashlib.sha256((two_sites["west"] / "dataset.json").read_bytes()).hexdigest(),
    }
    # Three training patients are too few to report anything.
    assert _prepare(executor, local, profile=True) == {**counts, "profile": {}}
    weights = _trainer(executor).weights()
    result = _train(executor, local, weights)
    assert (result.cases, result.steps) == (3, 4)
    assert set(result.numbers) == {"evaluation", "validate_s", "train_s", "loss"}
    assert any(result.delta[name].any() for name in weights)


def test_a_private_job_tells_a_digest_that_nobody_else_can_try(local: Path, two_sites: dict[str, Path]) -> None:
    context = _Context(local)
    plain = hashlib.sha256((two_sites["west"] / "dataset.json").read_bytes()).hexdigest()
    assert dataset_digest(context, "balls") == plain
    told = dataset_digest(context, "balls", keyed=True)
    assert told
    assert told != plain
    assert len(told) == len(plain)
    assert dataset_digest(context, "balls", keyed=True) == told, "the site can check it later"
    (kit_folder(context) / ".digest_key").unlink()
    assert dataset_digest(context, "balls", keyed=True) != told


def test_a_charge_says_whether_the_job_was_charged_before(local: Path, two_sites: dict[str, Path]) -> None:
    policy = Policy.model_validate({"schema": 1, "leaves": {"differential_privacy": {"delta": 1e-5}}})
    charge = charge_of(_Context(local), policy, "balls", two_sites["west"])
    assert [charge(Event(1.2, 0.08, 8), 1e-5, ("p", "q")) for _ in range(2)] == [False, True]


def test_a_stopped_job_settles_to_the_steps_whose_update_left(local: Path, two_sites: dict[str, Path]) -> None:
    policy = Policy.model_validate({"schema": 1, "leaves": {"differential_privacy": {"delta": 1e-5}}})
    context = _Context(local)
    charge_of(context, policy, "balls", two_sites["west"])(Event(1.2, 0.08, 300), 1e-5, ("p", "q"))
    counts_folder(context).mkdir(parents=True)
    steps = PrivateSteps(counts_folder(context), 300)
    for turn in ("first", "second"):  # whatever the server made of them: refused, late or lost, they left
        steps.begin(turn, 50)
        steps.end()
    for _ in range(2):
        settle(context)
    (charged,) = Ledger(kit_folder(context)).charges().values()
    assert charged.event == Event(1.2, 0.08, 100)
    found, _ = Ledger(kit_folder(context)).verify()
    assert found == []


@pytest.mark.attack(
    "a training loss in the live progress of a site that tells no scores",
    by="the site's policy (leaves.scores)",
    logged="nothing: none arrives",
)
@pytest.mark.parametrize(("rule", "told"), [("each", True), ("summed", False), ("none", False)])
def test_a_loss_is_told_live_where_scores_leave_alone(
    spec: JobSpec, local: Path, monkeypatch: pytest.MonkeyPatch, rule: str, told: bool
) -> None:
    policy = Policy.model_validate({"schema": 1, "leaves": {"scores": rule}})
    monkeypatch.setattr("oncofed.flare.executor.admit_job", lambda *args, **facts: policy)
    executor, sent = _executor(spec), dict[str, Any]()
    monkeypatch.setattr(executor, "fire_fed_event", lambda kind, values, context: sent.update(values))
    _train(executor, local, spec.plan().initial_weights())
    assert "step" in sent
    assert ("loss" in sent) == told


def test_a_repeated_request_gets_the_same_update_after_a_restart(spec: JobSpec, local: Path) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    weights = _trainer(executor).weights()
    first = _train(executor, local, weights).delta
    for again in (executor, _executor(spec)):
        if again is not executor:
            _end(executor, local)
        assert _same(_train(again, local, weights).delta, first)
    _end(again, local)
    executor = _executor(spec)
    other = {name: value + 0.1 if value.is_floating_point() else value for name, value in weights.items()}
    update = _train(executor, local, other).delta
    assert any((update[name] != first[name]).any() for name in first)


def test_a_site_keeps_the_previous_rounds_result(spec: JobSpec, local: Path) -> None:
    """A server killed before it kept a round repeats it."""
    executor = _executor(spec)
    _prepare(executor, local)
    weights = _trainer(executor).weights()
    first = (weights, 1)
    second = ({n: v * 0.9 if v.is_floating_point() else v for n, v in weights.items()}, 2)
    expected = [_train(executor, local, *turn).delta for turn in (first, second)]
    _end(executor, local)
    executor = _executor(spec)
    _prepare(executor, local)
    for turn, update in zip((first, second, first), (*expected, expected[0]), strict=True):
        assert _same(_train(executor, local, *turn).delta, update)


@pytest.mark.parametrize("strategy", ["fednova", "scaffold", "feddyn", "ditto"])
def test_a_site_killed_before_it_kept_its_update_sends_the_same(
    spec: JobSpec, local: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    spec = spec.changed({"strategy": {"name": strategy}, "exchange": {"update": "int8"}})

    def rounds(folder: Path, killed: bool) -> tuple[Weights, int, float]:
        folder.mkdir()
        (folder / DATASETS_FILE).write_text((local / DATASETS_FILE).read_text())
        executor = _executor(spec)
        _prepare(executor, folder)
        weights = _trainer(executor).weights()
        _train(executor, folder, weights)
        second = ({n: v * 0.9 if v.is_floating_point() else v for n, v in weights.items()}, 2)
        if killed:
            with monkeypatch.context() as until:
                until.setattr(SiteState, "write", lambda *a: None)
                _train(executor, folder, *second)
            _end(executor, folder)
            executor = _executor(spec)
        result = _train(executor, folder, *second)
        update = {**result.delta, **{f"extra.{name}": value for name, value in result.extra.items()}}
        _end(executor, folder)
        return update, result.steps, result.numbers["loss"]

    update, *told = rounds(local / "undisturbed", killed=False)
    again, *told_again = rounds(local / "disturbed", killed=True)
    assert told_again == told
    assert told[0] == spec.training.steps_per_round
    assert again.keys() == update.keys()
    assert all(torch.equal(again[name], update[name]) for name in update)


def test_only_trained_weights_travel(spec: JobSpec, local: Path) -> None:
    executor = _executor(spec.changed({"training": {"trainable": ["model.2*"]}}))
    _prepare(executor, local)
    trainer = _trainer(executor)
    assert trainer
    before = trainer.weights()
    sent = {name: value for name, value in before.items() if name.startswith("model.2")}
    update = _train(executor, local, sent).delta
    assert set(update) == set(sent) < set(before)
    after = trainer.weights()
    assert all(torch.equal(after[name], before[name]) for name in set(before) - set(sent))


def test_a_site_keeps_local_normalisation_with_fedbn(spec: JobSpec, local: Path) -> None:
    settings = {"strategy": {"name": "fedbn"}, "model": {"norm": "batch"}}
    executor = _executor(spec.changed(settings))
    _prepare(executor, local)
    trainer = _trainer(executor)
    assert trainer
    _train(executor, local, trainer.weights())
    update = trainer.weights()
    names = norm_names(trainer.network)
    assert any("running_mean" in name for name in names & set(update))
    elsewhere = {name: torch.zeros_like(value) for name, value in update.items()}
    loaded = _training(executor)._weights_here(elsewhere)
    assert all(torch.equal(value, (update if name in names else elsewhere)[name]) for name, value in loaded.items())


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn", "ditto"])
def test_a_site_keeps_the_model_that_serves_it(spec: JobSpec, local: Path, strategy: str) -> None:
    executor = _executor(spec.changed({"strategy": {"name": strategy}, "model": {"norm": "batch"}}))
    _prepare(executor, local)
    trainer, training = _trainer(executor), _training(executor)
    _train(executor, local, trainer.weights())
    sent = {name: torch.zeros_like(value) for name, value in trainer.weights().items()}
    folder = local / "oncofed" / "job" / "model"
    request = EvaluateRequest(weights=sent, round=1, split="test")
    training.validate(request, lambda: False)
    assert not folder.exists()
    score = training.validate(request, lambda: False, "spheres")
    assert score.own == (strategy == "ditto")
    kept = load_file(folder / "model.safetensors")
    expected = training._personal.weights() if training._personal else training._weights_here(sent)
    assert all(torch.equal(kept[name], expected[name]) for name in sent)
    assert (strategy == "fedavg") == all(not value.any() for value in kept.values())
    network = monai.bundle.load("bundle", bundle_dir=folder)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in kept.items())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    model = load_model(folder.parent)
    assert model.job.plan() == training._plan
    assert (model.job.name, model.provenance["kept_by"], model.folder) == ("spheres", "west", folder.parent)
    assert all(torch.equal(model.weights[name], value) for name, value in kept.items())


def test_a_failure_to_keep_a_model_is_logged_only_at_the_site(
    spec: JobSpec, local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    monkeypatch.setattr("oncofed.client.kept_model.save_file", Mock(side_effect=OSError(28, "No space left on device")))
    request = EvaluateRequest(weights=_trainer(executor).weights(), round=1, split="test")
    numbers = _training(executor).validate(request, lambda: False, "spheres").numbers
    assert numbers.keys() == {"evaluation", "validate_s"}
    assert "the model could not be kept" in caplog.text
    assert not list((local / "oncofed" / "job").glob("model*"))


def test_no_name_or_path_leaves_with_an_error(spec: JobSpec, local: Path, two_sites: dict[str, Path]) -> None:
    bad = read_cases(two_sites["west"], spec.data.split, spec.seed).train[0]
    bad.label.unlink()
    reply = _reply(_executor(spec), PrepareRequest(), local)
    assert _refusal(reply).reason == "its data did not pass the checks; the site's own log names the cases"
    assert bad.name not in repr(dict(reply))
    assert _prepare(_executor(spec.changed({"data": {"max_bad_share": 0.5}})), local)["train"]


def test_a_read_error_during_training_may_pass(spec: JobSpec, local: Path, tmp_path: Path) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    weights = _trainer(executor).weights()
    image = _trainer(executor).cases.train[0].image
    away = image.rename(image.with_suffix(".away"))
    reply = _reply(executor, TrainRequest(weights=weights, round=1), local)
    reason = "it cannot read a file that it could read before; the site's own log names it"
    assert _refusal(reply) == Refusal(reason, may_pass=True)
    assert image.name not in repr(dict(reply))
    away.rename(image)
    again = _train(executor, local, weights)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / DATASETS_FILE).write_text((local / DATASETS_FILE).read_text())
    assert _same(again.delta, _train(_executor(spec), tmp_path / "other", weights).delta)


def test_validation_cases_of_a_round_are_limited(
    spec: JobSpec, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = make_site(tmp_path / "many", 18)
    (local / DATASETS_FILE).write_text(json.dumps({"west": {"balls": str(many)}}))
    split = {"validation": 0.5, "test": 0.1}
    executor = _executor(spec.changed({"evaluation": {"most_cases": 5}, "data": {"split": split}}))
    _prepare(executor, local)
    trainer, looked = _trainer(executor), []
    assert len(trainer.cases.validation) > 5
    evaluate = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda cases, *more: looked.append(cases) or evaluate(cases, *more))
    numbers = _train(executor, local, trainer.weights()).numbers
    assert numbers["evaluation"]["cases"] == 5
    _train(executor, local, trainer.weights(), 2)
    assert looked[0] == looked[1]  # the same in each round
    _test(executor, local, trainer.weights(), 2)
    assert looked[2] == trainer.cases.test


@pytest.mark.parametrize("content", ["{}", "{", '{"west": {"other": "/data"}}', '{"east": {"balls": "/data"}}'])
def test_a_dataset_that_is_not_registered_is_refused(spec: JobSpec, local: Path, content: str) -> None:
    (local / DATASETS_FILE).write_text(content)
    assert "did not pass the checks" in _refusal(_reply(_executor(spec), PrepareRequest(), local)).reason


def test_a_non_finite_loss_is_reported_as_such(spec: JobSpec, local: Path) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    weights = {k: v * float("nan") for k, v in _trainer(executor).weights().items()}
    reply = _reply(executor, TrainRequest(weights=weights, round=1), local)
    assert _refusal(reply).reason.startswith("the loss was not finite in 4 of 4 steps")


def test_an_unknown_task_is_refused(spec: JobSpec, local: Path) -> None:
    reply = _executor(spec).execute("delete_everything", Shareable(), _Context(local), Signal())
    assert "does not know" in _refusal(reply).reason


def test_figures_of_single_cases_stay_at_the_site(spec: JobSpec, local: Path) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    assert _trainer(executor)
    numbers = _test(executor, local, _trainer(executor).weights())
    table = local / "oncofed" / "job" / "test_cases.csv"
    rows = list(csv.DictReader(table.open()))
    assert [row["case"] for row in rows] == [case.name for case in _trainer(executor).cases.test]
    assert 0 <= float(rows[0]["dice.core"]) <= 1
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert rows[0]["case"] not in repr(numbers)


def test_a_site_with_broken_state_starts_afresh(spec: JobSpec, local: Path) -> None:
    first = _executor(spec)
    _prepare(first, local)
    weights = _trainer(first).weights()
    _train(first, local, weights)
    kept = local / "oncofed" / "job"
    for path in kept.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    _end(first, local)
    again = _executor(spec)
    update = _train(again, local, weights).delta
    assert any(update[name].any() for name in weights)
    assert {path.name for path in kept.glob("*.broken")} == {"site.broken", "checkpoint.broken"}


def test_a_full_disk_loses_the_state_but_not_the_update(spec: JobSpec, local: Path) -> None:
    executor = _executor(spec)
    _prepare(executor, local)
    weights = _trainer(executor).weights()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        result = _train(executor, local, weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    update, numbers = result.delta, result.numbers
    assert any(update[name].any() for name in weights)
    assert numbers["not_kept"] == "File too large"
    assert str(local) not in repr(numbers)
    assert not list(local.rglob("*.unfinished"))


@pytest.mark.parametrize("own", [False, True])
def test_a_calibration_is_kept_only_with_its_model(spec: JobSpec, local: Path, own: bool) -> None:
    executor = _executor(spec)
    folder = local / "oncofed" / "job" / "model"
    folder.mkdir(parents=True)
    files = {"calibration.json": "{}", "training_profile.json": "{}", "../other.json": "{}"}
    executor._keep_artifacts(files, own, _Context(local))
    expected = {"training_profile.json"} | (set() if own else {"calibration.json"})
    assert {path.name for path in folder.iterdir()} == expected


def test_a_kept_bundle_gets_the_models_artifacts(spec: JobSpec, local: Path) -> None:
    folder = local / "oncofed" / "job" / "model"
    bundle = spec.plan().write_bundle(folder, "Balls", spec.plan().initial_weights())
    assert bundle
    files = {
        "calibration.json": '{"temperature": 2.5, "patients": 20, "sites": ["west"], "log_loss": [1, 0.5]}',
        "training_profile.json": '{"sites": 1, "traits": {}}',
    }
    _executor(spec)._keep_artifacts(files, False, _Context(local))
    assert {name: (bundle / name).read_text() for name in files} == files
    assert "temperature" not in json.loads((bundle / "configs" / "inference.json").read_text())  # of a segmentation
