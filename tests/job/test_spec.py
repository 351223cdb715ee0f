from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec, list_jobs, parse_job, read_job
from synthetic import JOB, write_job


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sead: 3", r"job\.yaml:9: unknown setting sead; allowed here: schema, name, title, data"),
        (
            "batch_size: 2",
            "batchsize: 2",
            r"job\.yaml:7: unknown setting training\.batchsize; allowed here: steps_per_round, batch_size",
        ),
        ("learning_rate: 0.01", "learning_rate: fast", r"job\.yaml:7: training\.learning_rate: found 'fast'"),
        ("number: 2", "number: 2, deadline_s: 60", r"job\.yaml:8: rounds\.deadline_s: needs rounds\.quorum beside it"),
        ("number: 2", "number: 0", r"job\.yaml:8: rounds\.number: found 0; .*greater than or equal to 1"),
        (
            "network: unet",
            "network: unett",
            r"job\.yaml:6: model\.network: found 'unett'; unknown network .*dynunet.* unet,",
        ),
        ("patch: [16, 16, 16]", "patch: [16]", r"job\.yaml:4: data\.patch: .*at least 2 items"),
        (
            "patch: [16, 16, 16]",
            "patch: [17, 16, 16]",
            r"job\.yaml:4: data\.patch: .*each side must be a multiple of 2",
        ),
        ("{1: shell, 2: core}", "{1: shell, 3: core}", r"job\.yaml:5: task\.classes: .*without gaps"),
        ("title: Two nested balls\n", "", r"job\.yaml:1: title is missing"),
        ("seed: 3", "seed: 3\nseed: 4", r"job\.yaml:10: seed is given twice, first on line 9"),
        ("schema: 1", "schema: 2", r"job\.yaml:1: schema: found 2; Input should be 1"),
        ("name: balls", "name: [balls", r"job\.yaml:\d+: not YAML"),
        (JOB, "just text", r"job\.yaml:1: found str, expected settings"),
        ("name: balls", "name: ../balls", r"job\.yaml:2: name: found '\.\./balls'"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in JOB
    with pytest.raises(SpecError, match=message):
        parse_job(write_job(tmp_path, JOB.replace(old, new)))


_BLOCKS = """\
schema: 1
name: balls
title: Two nested balls
data:
  dataset: balls
  patch: [16, 16, 16]
task:
  type: segmentation
  classes: {1: shell, 2: core}
model:
  network: unet
training:
  steps_per_round: 4
  batch_size: 2
rounds:
  number: 2
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 2", "batch_size: 3\nresources:\n  gpus: 2", r":14: training\.batch_size: found 3.* 2 GPUs"),
        ("  batch_size: 2\n", "resources:\n  gpus: 3\n", r":15: training\.batch_size: found \d, .* 3 GPUs"),
        ("[16, 16, 16]", "[17, 16, 16]", r":6: data\.patch: \[17, 16, 16\] does not fit a unet"),
        ("network: unet", "network: densenet121", r":11: model\.network: the task segmentation needs a network"),
        ("type: segmentation", "type: pack\n  name: own", r":7: task: .*comes with a pack"),
        ("batch_size: 2", "loss: own", r":14: training\.loss: own comes with a pack"),
        ("batch_size: 2", "transforms: [own]", r":14: training\.transforms: own comes with a pack"),
        ("number: 2", "number: 2\n  deadline_s: 9", r":17: rounds\.deadline_s: needs rounds\.quorum beside it"),
        ("number: 2", "quorum: 3\n  sites_per_round: 2", r":16: rounds\.quorum: found 3, but only 2 sites"),
        (
            "number: 2",
            "quorum: 2\nstrategy: cyclic",
            r":16: rounds\.quorum: found 2, but cyclic asks .*: leave it out",
        ),
        ("number: 2", "late: drop\nstrategy: fedbuff", r":16: rounds\.late: found drop, but fedbuff takes every"),
        ("number: 2", "quorum: 2\nstrategy: krum", r":16: rounds\.quorum: found 2, expected at least the \d updates"),
        (
            "number: 2",
            "number: 2\nstrategy: swarm\nevaluation:\n  patience: 3\n  cross_site: true",
            r":20: evaluation\.cross_site: found true, but swarm gives no site's model to the server",
        ),
        (
            "2: core}\n",
            "2: core}\n  partial: true\n  distillation: 0.5\nresources: {gpus: 2}\n",
            r":12: resources\.gpus: found 2, expected 1: task\.distillation",
        ),
        (
            "16]\n",
            "16]\n  covariates:\n    - {name: age, range: [0, 100]}\n",
            r":7: data\.covariates: covariates are for jobs with targets, found the task segmentation",
        ),
        (
            "task:\n  type: segmentation\n  classes: {1: shell, 2: core}\n",
            "targets:\n- {name: part, kind: class, classes: [a, b]}\n- {name: place, kind: boxes}\n",
            r":9: targets\.1: boxes are learned alone",
        ),
        (
            "rounds:",
            "personalization:\n  candidates: [mixed]\nrounds:",
            r":16: personalization\.candidates: mixed is of fine-tuned weights: add fine_tuned",
        ),
        (
            "rounds:",
            "personalization:\n  shares: [0.5, 0.5]\nrounds:",
            r":16: personalization\.shares: found \[0\.5, 0\.5\]; expected each once",
        ),
        (
            "rounds:",
            "  ema_decay: 0.99\nstrategy: feddyn\nrounds:",
            r":15: training\.ema_decay: found 0\.99 beside strategy feddyn, whose term .*such as scaffold",
        ),
        ("rounds:", "personalization:\nrounds:", r":15: personalization: found nothing after it; write \{\} for"),
    ],
)
def test_settings_that_do_not_fit_are_reported_with_a_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in _BLOCKS
    with pytest.raises(SpecError, match=r"job\.yaml" + message):
        parse_job(write_job(tmp_path, _BLOCKS.replace(old, new)))


def test_models_whose_difference_has_no_variance_are_not_compared(tmp_path: Path) -> None:
    text = JOB.replace("segmentation, classes: {1: shell, 2: core}", "detection, classes: {1: lesion}")
    text = text.replace("{network: unet, channels: [4, 8], residual_units: 1}", "{network: retinanet}")
    assert parse_job(write_job(tmp_path / "one", text)).personalization is None
    with pytest.raises(SpecError, match=r"personalization: found task detection, whose metric has no paired"):
        parse_job(write_job(tmp_path / "two", text + "personalization: {}\n"))


def test_settings_that_a_pack_excludes_are_reported_with_a_line(tmp_path: Path) -> None:
    text = _BLOCKS.replace("network: unet", f"network: unet\n  code: {'a' * 64}")
    with pytest.raises(SpecError, match=r"job\.yaml:17: resources\.gpus: found 2, expected 1: a pack's code"):
        parse_job(write_job(tmp_path, text.replace("rounds:", "resources:\n  gpus: 2\nrounds:")))
    with pytest.raises(SpecError, match=r"job\.yaml:18: strategy: found swarm, which sends updates from site to site"):
        parse_job(write_job(tmp_path, text + "strategy: swarm\n"))


def test_several_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = JOB.replace("number: 2", "number: 0").replace("seed: 3", "seed: -1")
    with pytest.raises(SpecError) as caught:
        parse_job(write_job(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_shown_reads_back_as_the_same_job(spec: JobSpec, tmp_path: Path) -> None:
    assert parse_job(write_job(tmp_path / "again", spec.to_yaml())) == spec
    assert yaml.safe_load(spec.to_yaml())["training"]["weight_decay"] == 1e-4


def test_a_job_is_found_by_name_folder_or_file(job: Path, spec: JobSpec) -> None:
    assert read_job(job) == read_job(job.parent) == spec
    names = {entry.name for entry in list_jobs()}
    assert {"brain_tissue_segmentation", "hippocampus_segmentation"} <= names
    with pytest.raises(SpecError, match=r"unknown job 'hipocampus'.*Known jobs: .*hippocampus_segmentation"):
        read_job("hipocampus")


def test_a_changed_job_is_checked_again(spec: JobSpec) -> None:
    assert spec.with_rounds(7).plan().rounds == 7
    with pytest.raises(SpecError, match=r"rounds\.number: found 0"):
        spec.with_rounds(0)


def test_a_setting_under_its_former_name_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_job(tmp_path, JOB.replace("batch_size: 2", "batch_size: 2, checkpointing: true"))
    spec = parse_job(file)
    assert spec.training.recompute_activations
    now = "training.checkpointing is called training.recompute_activations now"
    assert [record.message for record in caplog.records] == [f"{now}; the next release does not know the former name"]
    caplog.clear()
    assert "checkpointing" not in spec.with_rounds(3).to_yaml()
    assert not caplog.records
    file.write_text(file.read_text().replace("checkpointing: true", "checkpointing: true, recompute_activations: true"))
    with pytest.raises(SpecError, match=r"job\.yaml:7: training: .*under its former name: give one of them"):
        parse_job(file)


def test_a_jobs_plan_is_made_once(spec: JobSpec) -> None:
    assert spec.plan() is spec.plan()
    assert JobSpec.model_validate(spec.model_dump(by_alias=True)) == spec


def test_every_setting_that_needs_one_has_a_description() -> None:
    for name, field in JobSpec.model_fields.items():
        section = field.annotation
        for key, setting in getattr(section, "model_fields", {}).items():
            plain = key in {"weight_decay", "split", "type"}
            assert setting.description or plain, f"{name}.{key} has no description"


@pytest.mark.parametrize("section", ["strategy", "task"])
@pytest.mark.parametrize("value", [[1], {"a": 1}, 3, None])
def test_an_unknown_name_in_a_section_is_reported_with_its_line(job: Path, section: str, value: object) -> None:
    key = "name" if section == "strategy" else "type"
    values = yaml.safe_load(job.read_text())
    values[section] = {key: value}
    job.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(SpecError, match=rf"job\.yaml:\d+: {section}: expected settings with a {key}; known: "):
        read_job(job)


def test_settings_without_a_name_are_no_strategy(job: Path) -> None:
    job.write_text(job.read_text() + "strategy: {mu: 1}\n")
    with pytest.raises(SpecError, match="strategy: expected settings with a name"):
        read_job(job)
