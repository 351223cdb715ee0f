"""``card.md``: a model card as Markdown, with Hugging Face metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from oncofed.data.slides.tile_quality import FLAGS
from oncofed.report.card import NOT_REPORTED, Card, Interval, Quantitative
from oncofed.report.evaluation import EvaluationRecord
from oncofed.tasks.targets import figure_titles

# Characters with a meaning in a line of Markdown (CommonMark, GitHub's), and those that make an address a link.
_MARKS = re.compile(r"([\\`*_\[\]|~#!^$@])")
_ADDRESS = re.compile(r":(?=//)|(?<=\bwww)\.", re.IGNORECASE)
_HF_TASKS = {"class": "image-classification", "mask": "image-segmentation", "detection": "object-detection"}


def md(text: object) -> str:
    """Escape untrusted text for Markdown.

    The result is one line without markup, HTML or link.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = _MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ADDRESS.sub(lambda found: f"\\{found[0]}", line)


def to_markdown(card: Card) -> str:
    """Return ``card.md``."""
    details = card.model_details
    parts = [
        f"---\n{yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True)}---\n",
        f"# {md(details.title or details.name)}\n",
        f"**{md(card.intended_use)}**\n",
        "## Model\n",
        _list(_details(card)),
        "## Limits\n",
        "\n".join(f"- {md(caveat)}" for caveat in card.caveats_and_recommendations) + "\n",
        "## Training data\n",
        _list(_data(card)),
        _training_table(card),
        _tiles_table(card),
        "## Training\n",
        _list(_training(card)),
        _targets_table(card),
        f"## {md(_capital(card.quantitative_analyses.metric_name))} on each site's held-out patients\n",
        _scores_table(card.quantitative_analyses, figure_titles(details.targets)),
        _list(_fairness(card.quantitative_analyses)),
        *_calibration(card.quantitative_analyses),
        *(_evaluation(card.quantitative_analyses.evaluation) if card.quantitative_analyses.evaluation else []),
        "## Privacy\n",
        _list(_privacy(card)),
        "## Environment\n",
        _list(sorted(card.environment.items())),
    ]
    return "\n".join(part for part in parts if part)


def front_matter(card: Card) -> dict[str, Any]:
    """Return a Hugging Face model card's metadata.

    Tags, and the scores as a ``model-index``.
    """
    details, scores, data = card.model_details, card.quantitative_analyses, card.training_data
    kind = "class" if "classification" in details.task or details.targets else "mask"
    task = {"type": _HF_TASKS.get(details.task, _HF_TASKS[kind]), "name": details.title}

    def told(name: str, split: str, value: float, interval: Interval | None) -> dict[str, Any]:
        metric: dict[str, Any] = {"type": scores.metric, "name": scores.metric_name, "value": value}
        if interval:
            metric["args"] = {"interval_95": list(interval)}
        return {"task": task, "dataset": {"type": data.dataset, "name": name, "split": split}, "metrics": [metric]}

    results = [
        told(name, "test", site.value, site.interval) for name, site in scores.sites.items() if site.value is not None
    ]
    found = scores.evaluation
    if found and found.scores.mean is not None:
        results.append(told(found.dataset, found.split, found.scores.mean, found.scores.interval))
    licence = {"license": "other", "license_name": details.licence} if details.licence else {}
    index = {"model-index": [{"name": details.name, "results": results}]} if results else {}
    tags = ["medical", "federated-learning", "monai", data.modality]
    return {**licence, "library_name": "monai", "pipeline_tag": task["type"], "tags": tags, **index}


def _details(card: Card) -> Iterator[tuple[str, object]]:
    details = card.model_details
    yield "Job", details.name
    yield "Task", details.task
    coded = {value: f" ({details.codes[value]})" if value in details.codes else "" for value in details.classes}
    if details.classes:
        yield "Classes", ", ".join(f"{value}: {name}{coded[value]}" for value, name in details.classes.items())
    yield "Network", f"{details.network}, {details.parameters:,} parameters"
    yield from details.encoder.said() if details.encoder else ()
    yield "Weights (SHA-256)", details.digest or "nothing vouches for them"
    yield "Provenance", f"signed by {details.signed_by}" if details.signed_by else "not signed"
    yield "Ended", details.ended or "not said"
    yield "Licence", details.licence or "not said: see the agreement of the alliance"
    if details.contact:
        yield "Contact", details.contact


def _data(card: Card) -> Iterator[tuple[str, object]]:
    data = card.training_data
    yield "Dataset", data.dataset
    yield "Images", f"{data.modality}; {', '.join(data.channels)}"
    yield "Voxel size", " x ".join(f"{side:g}" for side in data.spacing) + " mm" if data.spacing else "each image's own"
    yield from data.stain.said() if data.stain else ()
    yield from data.harmonization.said() if data.harmonization else ()
    if data.note:
        yield "Note", data.note


def _training_table(card: Card) -> str:
    rows = [
        (name, site.train_cases, site.validation_cases, f"{site.dataset[:16]}…" if site.dataset else "not said")
        for name, site in card.training_data.sites.items()
    ]
    return _table(("Site", "Training cases", "Validation cases", "Dataset (SHA-256)"), rows)


def _tiles_table(card: Card) -> str:
    sites = {name: site.tiles for name, site in card.training_data.sites.items()}
    if not any(sites.values()):
        return ""
    rows = [
        (
            name,
            f"{tiles.tiles:,}",
            *(NOT_REPORTED if share is None else f"{share:.1%}" for share in tiles.shares.values()),
        )
        if tiles
        else (name, *[NOT_REPORTED] * (1 + len(FLAGS)))
        for name, tiles in sites.items()
    ]
    return _table(("Site", "Tiles with tissue", *(f"of which {flag}" for flag in FLAGS)), rows)


def _training(card: Card) -> Iterator[tuple[str, object]]:
    one = card.training_procedure
    yield "Strategy", one.strategy
    best = f"; this is the model of round {one.best_round}" if one.best_round is not None else ""
    yield "Rounds", f"{one.rounds}{best}"
    promise = card.privacy.promise
    batches = f"batches of {one.batch_size}"
    if promise:
        batches = f"each patient with a chance of {promise.sampling:g}, {promise.patches} patches of one"
    yield "Steps", f"{one.steps_per_round} a round and site, {batches}"
    yield "Learning rate", f"{one.learning_rate:g}"
    yield "Loss", one.loss
    yield "Augmentation", one.augmentation
    yield "Seed", one.seed


def _targets_table(card: Card) -> str:
    details = card.model_details
    rows = [
        (name, one.kind, one.asks, one.metric_name, details.stated_by.get(name, NOT_REPORTED))
        for name, one in details.targets.items()
    ]
    table = _table(("Target", "Kind", "Answer", "Metric", "Test patients who state it"), rows)
    return f"## Targets\n\n{table}" if table else ""


def _scores_table(scores: Quantitative, titles: Mapping[str, str]) -> str:
    classes = list(dict.fromkeys(name for site in scores.sites.values() for name in site.by_class))
    rows = [
        (
            name,
            site.test_cases,
            _number(site.value),
            "–" if site.value is None else _range(site.interval),
            *(_number(site.by_class.get(one)) for one in classes),
        )
        for name, site in scores.sites.items()
    ]
    rows.append(("mean of these sites", "", _number(scores.mean), "", *("" for _ in classes)))
    return _table(
        (
            "Site",
            "Test cases",
            _capital(scores.metric_name),
            "95 % interval",
            *(titles.get(one, one) for one in classes),
        ),
        rows,
    )


def _privacy(card: Card) -> Iterator[tuple[str, object]]:
    yield "Left the sites", card.privacy.travelled
    yield "Updates as", card.privacy.update
    if card.privacy.sums:
        yield from card.privacy.sums.said()
    yield "Noise", card.privacy.noise
    if card.privacy.promise:
        yield from card.privacy.promise.said()


def _fairness(scores: Quantitative) -> Iterator[tuple[str, object]]:
    if scores.fairness:
        yield "Worst site", f"{scores.fairness.worst_site}, {scores.fairness.worst:.3f}"
        yield "Spread over the sites", f"{scores.fairness.spread:.3f}"
    if (together := scores.over_sites) and together.auroc is not None:
        yield "AUROC over all sites' patients", f"{together.auroc:.3f} ({together.patients} patients)"


def _calibration(scores: Quantitative) -> list[str]:
    found = scores.calibration
    if found is None:
        return []
    rows: list[tuple[str, object]] = [
        ("Learned of", f"{found.patients} validation patients of {', '.join(found.sites)}")
    ]
    if found.temperature is not None:
        rows.insert(0, ("Temperature", f"{found.temperature:.3g}"))
    if found.log_loss:
        rows.append(("Log loss", f"{found.log_loss[0]:.3f} before, {found.log_loss[1]:.3f} after"))
    rows += [
        (f"Temperature of {', '.join(filter(None, (target, name)))}", f"{value:.3g}")
        for target, of_target in found.temperatures.items()
        for name, value in of_target.items()
    ]
    rows += [
        (f"Threshold of {target}, {name}", f"{threshold:.3g}")
        for target, of_target in found.thresholds.items()
        for name, threshold in of_target.items()
    ]
    return ["## Calibration\n", _list(rows)]


def _evaluation(found: EvaluationRecord) -> Iterator[str]:
    yield f"## Evaluated on {md(found.dataset)}\n"
    scores, few = found.scores, "fewer than five"
    yield _list(
        [
            ("Patients", f"{scores.patients if scores.patients is not None else few} ({found.split})"),
            (_capital(found.metric_name), f"{_number(scores.mean)}, 95 % interval {_range(scores.interval)}"),
            ("Dataset (SHA-256)", found.dataset_digest),
        ]
    )
    for column in found.subgroups:
        yield f"### By {md(column.column)}\n"
        rows = [(one.name, one.patients, _number(one.mean), _range(one.interval)) for one in column.groups]
        yield _table(("Group", "Patients", _capital(found.metric_name), "95 % interval"), rows)
        if column.withheld_groups:
            yield f"Withheld groups: {column.withheld_groups}\n"
    if compared := found.comparison:
        difference = "–" if compared.difference is None else f"{compared.difference:+.3f}"
        words = f"difference {difference}, 95 % interval {_range(compared.interval)}"
        yield _list([(f"Beside the model {compared.other_model[:12]}…", words)])
    yield "".join(f"- {md(remark)}\n" for remark in found.remarks)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(interval: Interval | None) -> str:
    return "too few to tell" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _list(rows: Iterable[tuple[str, object]]) -> str:
    return "".join(f"- {md(name)}: {md(value)}\n" for name, value in rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    if not (lines := list(rows)):
        return ""
    written = [headings, ["---"] * len(headings), *lines]
    cells = [" | ".join(cell if cell == "---" else md(cell) for cell in map(str, line)) for line in written]
    return "".join(f"| {line} |\n" for line in cells)
