"""A model's card follows from the run's record alone.

It holds nothing about few patients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt

from oncofed.algorithms.plan import FederationPlan
from oncofed.data.spec import DataSpec
from oncofed.job.card import write_cards
from oncofed.job.spec import parse_job
from oncofed.models import ModelSpec
from oncofed.privacy.settings import DifferentialPrivacySpec
from oncofed.privacy.statement import statement_of
from oncofed.report.card import Card, make_card, write_card
from oncofed.report.card_text import md, to_markdown
from oncofed.report.evaluation import EvaluationRecord, GroupRecord, ScoresRecord, SubgroupsRecord
from oncofed.report.preparation import EncoderUse, StainUse
from oncofed.report.result import Result, SiteResult, SiteTiles
from oncofed.tasks import SegmentationSpec
from oncofed.tasks.calibration import Calibration
from oncofed.training import Plan
from synthetic import write_job

# What the Hub asks of a model-index (huggingface.co/docs/hub/model-cards).
_NAMED = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}}
_METRIC = {"type": "object", "required": ["type", "value"], "properties": {"value": {"type": "number"}}}
_RESULT = {
    "type": "object",
    "required": ["task", "dataset", "metrics"],
    "properties": {
        "task": _NAMED,
        "dataset": {**_NAMED, "required": ["type", "name"]},
        "metrics": {"type": "array", "minItems": 1, "items": _METRIC},
    },
}
_INDEX = {"type": "object", "required": ["name", "results"], "properties": {"results": {"items": _RESULT}}}
_HOSTILE = (
    "</td><script>alert(1)</script> | [x](http://evil.example) ![y](z) `a`\n"
    "# Heading\n- item\r\n\x1b[31m www.evil.example"
)


def _plan(**task: Any) -> Plan:
    data = DataSpec(dataset="balls", patch=(16, 16, 16), size_range=(8, 512))
    return Plan(
        data=data,
        task=SegmentationSpec(classes={1: "shell", 2: "core"}, **task),
        model=ModelSpec(network="unet", channels=(4, 8)),
    )


def _result(**more: Any) -> Result:
    sites = {
        "east": SiteResult(
            train_cases=40,
            validation_cases=8,
            test_cases=12,
            federated=0.81,
            alone=0.7,
            by_class={"federated": {"shell": 0.9, "core": 0.72}, "alone": {"shell": 0.71}},
            interval={"federated": (0.75, 0.86)},
            patients={"train": 20, "validation": 4, "test": 12},
            patients_behind={"shell": 12, "core": 1, "surface_dice.shell": 12, "surface_dice.core": 1},
            more={"federated": {"surface_dice.shell": 0.95, "surface_dice.core": 0.4142}},
        ),
        "north": SiteResult(
            train_cases=30, validation_cases=5, test_cases=9, federated=0.71, interval={"federated": (0.6, 0.8)}
        ),
        "west": SiteResult(
            train_cases=3,
            validation_cases=1,
            test_cases=2,
            federated=0.123456,
            by_class={"federated": {"core": 0.654321}},
        ),
    }
    values = {
        "job": "balls",
        "title": "Two balls",
        "status": "completed",
        "backend": "simulate",
        "rounds": 5,
        "seed": 1,
    }
    return Result(**{**values, "best_round": 4, "sites": sites, "environment": {"torch": "2.13.0"}, **more})


_SAID = {
    "provenance": {
        "model": "ab" * 32,
        "versions": {"oncofed": "1.0", "monai": "1.6.1"},
        "ended": "2026-01-01T00:00:00+00:00",
        "sites": {"east": {"dataset": "cd" * 32}},
    },
    "signature": None,
    "certificate": None,
}


def _card(result: Result | None = None, **more: Any) -> Card:
    return make_card(result or _result(), _SAID, _plan(), FederationPlan(), **more)


def test_the_card_follows_its_schema_and_repeats_what_the_run_wrote(tmp_path: Path) -> None:
    write_card(_card(named={"licence": "CC-BY-NC-4.0", "contact": ""}), tmp_path)
    values = json.loads((tmp_path / "card.json").read_text())
    schema = Draft202012Validator(Card.model_json_schema())
    assert list(schema.iter_errors(values)) == []
    assert list(schema.iter_errors({**values, "made_up": 1}))
    assert list(schema.iter_errors({**values, "privacy": None}))
    details, scores = values["model_details"], values["quantitative_analyses"]
    assert (details["digest"], details["licence"]) == ("ab" * 32, "CC-BY-NC-4.0")
    assert (details["signed_by"], details["contact"]) == (None, None)
    assert scores["sites"]["east"]["value"] == 0.81
    assert values["training_data"]["sites"]["east"] == {
        "train_cases": 40,
        "validation_cases": "fewer than 5",  # patients
        "dataset": "cd" * 32,
        "tiles": None,
    }
    assert values["training_data"]["sites"]["north"]["train_cases"] == "not reported"
    assert values["training_procedure"]["loss"] == "Dice with cross-entropy"
    assert values["environment"] == {"torch": "2.13.0", "oncofed": "1.0", "monai": "1.6.1"}
    assert values["monai"]["monai_version"] == "1.6.1"
    assert values["monai"]["intended_use"] == values["intended_use"] == "Research only. Not a medical device."


def test_figures_of_few_patients_are_left_out(tmp_path: Path) -> None:
    write_card(_card(), tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["training_data"]["sites"]["west"]["train_cases"] == "fewer than 5"
    west = card["quantitative_analyses"]["sites"]["west"]
    assert west == {"test_cases": "fewer than 5", "value": None, "interval": None, "by_class": {}, "more": {}}
    # Nor does it follow from what is there: mean, worst and spread are of the sites that are told.
    assert card["quantitative_analyses"]["mean"] == pytest.approx(0.76)
    assert card["quantitative_analyses"]["fairness"]["worst_site"] == "north"
    for name in ("card.json", "card.md"):
        text = (tmp_path / name).read_text()
        assert "0.123" not in text
        assert "0.654" not in text


def test_a_class_of_one_patient_at_a_site_is_left_out() -> None:
    sites = _card().quantitative_analyses.sites
    assert (sites["east"].by_class, sites["east"].more) == ({"shell": 0.9}, {"surface_dice.shell": 0.95})
    unknown = _result().sites["east"].model_copy(update={"patients_behind": {}})
    card = _card(_result(sites={"east": unknown}))
    assert (card.quantitative_analyses.sites["east"].by_class, card.quantitative_analyses.sites["east"].more) == (
        {},
        {},
    )
    assert "0.414" not in to_markdown(_card()) + card.to_json()
    assert "0.72" not in to_markdown(_card()) + card.to_json()


def test_its_front_matter_is_a_model_index() -> None:
    evaluation = EvaluationRecord(
        job="balls",
        model="ab" * 32,
        dataset="south",
        dataset_digest="ef" * 32,
        split="all",
        metric="dice",
        metric_name="Dice",
        scores=ScoresRecord(patients=20, cases=21, mean=0.5, interval=(0.4, 0.6)),
        subgroups=[
            SubgroupsRecord(column="vendor", groups=[GroupRecord(name="A|B", patients=9, mean=0.4)], withheld_groups=2)
        ],
        ended="2026-01-01T00:00:00+00:00",
    )
    text = to_markdown(_card(evaluation=evaluation))
    [index] = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert list(Draft202012Validator(_INDEX).iter_errors(index)) == []
    told = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in index["results"]}
    assert told == {"east": 0.81, "north": 0.71, "south": 0.5}
    assert "### By vendor" in text
    assert "| A\\|B | 9 | 0.400 |" in text
    assert "Withheld groups: 2" in text
    assert "not evaluated by subgroup" not in text
    assert "not evaluated by subgroup" in to_markdown(_card())


def test_a_run_without_scores_or_provenance_has_a_card_too() -> None:
    card = make_card(_result(sites={}), {}, _plan(), FederationPlan())
    assert (card.model_details.digest, card.quantitative_analyses.mean) == (None, None)
    text = to_markdown(card)
    assert "model-index" not in text
    assert "nothing vouches for them" in text
    assert "; this is the model of round 4\n" in text


def test_encoder_and_stains_stand_in_the_card() -> None:
    encoder = EncoderUse(network="uni2-h", features=1536, digest="12" * 32, tile=256, mpp=0.5, unknown=["west"])
    stain = StainUse(normalise="macenko", augment="none", sites=["east", "north"])
    card = _card(_result(encoder=encoder, stain=stain))
    text = to_markdown(card)
    for said in (
        "- Encoder: uni2-h, 1,536 numbers a tile\n",
        f"- Encoder's weights (SHA-256): {'12' * 32}\n",
        "- Tiles: 256 x 256 pixels, 0.5 µm a pixel\n",
        "- Encoder not known: west brought features",
        "- Stains: normalised (macenko)\n",
        "- Template of stains: agreed by 2 sites: east, north\n",
        "made the features of west is not known",
    ):
        assert said in text
    values = json.loads(card.to_json())
    assert values["model_details"]["encoder"]["digest"] == "12" * 32
    assert values["training_data"]["stain"]["normalise"] == "macenko"
    assert "Encoder" not in to_markdown(_card())


def test_calibration_is_shown_if_present() -> None:
    found = Calibration(temperature=1.234, patients=40, sites=["east"], log_loss=(0.5, 0.4))
    text = to_markdown(_card(_result(calibration=found)))
    assert "- Temperature: 1.23\n" in text
    assert "## Calibration" not in to_markdown(_card())


@pytest.mark.parametrize("where", ["title", "data_note", "site", "licence", "class"])
def test_user_text_is_escaped(where: str) -> None:
    """Titles, notes and names cannot become Markdown or HTML."""
    result, named, plan = _result(), {}, _plan()
    if where == "site":
        result = _result(sites={_HOSTILE: result.sites["east"]})
    elif where == "licence":
        named = {"licence": _HOSTILE}
    elif where == "class":
        plan = plan.model_copy(update={"task": SegmentationSpec(classes={1: _HOSTILE})})
    else:
        result = _result(**{where: _HOSTILE})
    text = to_markdown(make_card(result, _SAID, plan, FederationPlan(), named))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "monai"
    clean = to_markdown(_card())
    html = MarkdownIt("commonmark").enable("table").render(body)
    plain = MarkdownIt("commonmark").enable("table").render(clean.split("---\n", 2)[2])
    for tag in ("<script", "<img", "<a ", "<code", "<h1", "<em", "<h4"):
        assert html.count(tag) == (1 if tag == "<h1" else 0), tag
    assert html.count("<h2>") == plain.count("<h2>")
    assert "alert(1)" in html
    assert "http://" not in body  # GitHub makes links of bare addresses
    assert "\x1b" not in text


def test_harmless_text_is_not_escaped() -> None:
    assert md("Hippocampus head and body, T1-weighted MRI (1.5 T): 20 %") == (
        "Hippocampus head and body, T1-weighted MRI (1.5 T): 20 %"
    )
    assert md("a\n\tb  c") == "a b c"


def test_a_run_writes_its_card_next_to_the_model_and_into_its_bundle(tmp_path: Path) -> None:
    job = parse_job(write_job(tmp_path / "run"))
    weights = job.plan().initial_weights()
    folder = tmp_path / "run"
    (folder / "model").mkdir()
    job.plan().write_bundle(folder / "model", job.title, weights)
    write_cards(job, _result(), folder)
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["model_details"]["parameters"] == sum(values.numel() for values in weights.values())
    assert card["quantitative_analyses"]["evaluation"] is None
    for name in ("card.json", "card.md"):
        beside, inside = (folder / "model" / where / name for where in (".", "bundle/docs"))
        assert beside.read_bytes() == inside.read_bytes()


def test_tiles_of_slides_stand_with_the_training_data() -> None:
    assert "Tiles with tissue" not in to_markdown(_card())
    result = _result()
    result.sites["east"].tiles = SiteTiles(patients=6, tiles=12_345, pen=0, fold=617)
    card = _card(result)
    assert card.training_data.sites["east"].tiles == result.sites["east"].tiles
    text = to_markdown(card)
    assert "| east | 12,345 | 0.0% | 5.0% | not reported | not reported |" in text
    assert "| west | not reported | not reported | not reported | not reported | not reported |" in text


def test_a_promise_of_privacy_stands_in_the_card() -> None:
    section = DifferentialPrivacySpec(noise_multiplier=1.2, delta=1e-5, sampling=0.08)
    card = _card(_result(privacy=statement_of(section, 300)))
    assert card.privacy.promise
    assert card.privacy.promise.epsilon == pytest.approx(6.974, abs=0.001)
    assert "losses" not in card.privacy.travelled
    text = to_markdown(card)
    assert "epsilon 6.974 at delta 1e-05" in text
    assert "a round and site, each patient with a chance of 0.08, 4 patches of one" in text
    assert "validation and test patients, on whose images scores rest" in text
    assert "not differentially private" in to_markdown(_card())
