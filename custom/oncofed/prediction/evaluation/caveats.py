"""Caveats that come with an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncofed.data.case import Case
from oncofed.data.grouping import counted
from oncofed.job.spec import JobSpec
from oncofed.prediction.evaluation.subgroups import Subgroups
from oncofed.prediction.model import TrainedModel
from oncofed.report.evaluation import ScoresRecord
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Scores, Task
from oncofed.tasks.comparison import Comparison
from oncofed.tasks.deletion import why_left_out

_NEW = "their scores say nothing of new patients"


def of_calibration(model: TrainedModel) -> list[str]:
    """Return the temperatures a classification, or targets, were scored with."""
    if model.temperatures:
        names = [".".join(filter(None, (name, part))) for name, of in model.temperatures.items() for part in of]
        return [f"probabilities of {', '.join(names)} are calibrated by the model's temperatures"]
    if model.task.label_kind != "class":
        return []
    if model.temperature is None:
        return ["probabilities are not calibrated: no temperature came with the model"]
    return [f"probabilities are calibrated by the model's temperature, {model.temperature:.4g}"]


def of_attention(job: JobSpec, cases: Sequence[Case]) -> list[str]:
    """Return why a model of slides was not tested without its most attended tiles; empty of other models.

    Args:
        job: of the model.
        cases: that were scored.
    """
    if job.plan().model.kind != "bag":
        return []
    return [f"whether answers rest on what attention shows was not tested: {why_left_out(cases)}"]


def of_training(
    provenance: Mapping[str, Any], digest: str, lists: Mapping[str, str], cases: Sequence[Case]
) -> list[str]:
    """Return whether the model may have seen the cases.

    Args:
        provenance: of the model.
        digest: of the dataset.
        lists: case -> list of the job's deal.
        cases: that were scored.
    """
    sites: Mapping[str, Any] = provenance.get("sites", {})
    digests = {site: facts["dataset"] for site, facts in sites.items() if facts.get("dataset")}
    own = next((site for site, known in digests.items() if known == digest), None)
    learned, everyone = sum(lists[case.name] != "test" for case in cases), counted(len(cases), "case")
    if own:
        seen = (
            f"{learned} of {everyone} were trained on or chose the best round at {own}, which has this dataset: {_NEW}"
        )
        return [f"{seen}. The held-out ones alone: --split test"] if learned else []
    known = "no site of the run had this dataset as it is now" if digests else "nothing says what it was trained on"
    if learned:
        return [f"{known}; a site with this dataset would have trained on {learned} of {everyone}: if one did, {_NEW}"]
    advice = "Where nobody trained on it, all of its cases may be scored: --split all"
    return [f"{known}: these are the patients whom the job would hold out of it. {advice}"]


def of_mean(task: Task[Any], here: Scores, told: ScoresRecord) -> list[str]:
    """Return a note where the mean that may be handed on is of fewer targets than the one that is shown here.

    Args:
        task: of the model.
        here: scores over all cases, for the site.
        told: what may be handed on of them.
    """
    left_out = [name for name in task.parts if name in here.by_class and name not in (told.in_mean or ())]
    if not left_out or told.patients is None:
        return []
    mean = f"of {', '.join(told.in_mean)} alone, {told.mean:.3f}" if told.in_mean and told.mean is not None else "none"
    # The mean of all stays out of this sentence, which may be handed on.
    held = f"A figure of {', '.join(left_out)} would tell of fewer than {LEAST_PATIENTS} patients and stays at the site"
    shown = "with it the mean of all that this page and the terminal show"
    return [f"{task.metric_name} in evaluation.json: {mean}. {held}, and {shown}"]


def of_withheld(subgroups: Sequence[Subgroups]) -> list[str]:
    """Return how many groups are withheld, and why."""
    hidden = [group for column in subgroups for group in column.groups if not group.scores]
    if not hidden:
        return []
    every = sum(len(column.groups) for column in subgroups)
    few = f"of fewer than {LEAST_PATIENTS} patients, or so few would follow from what is told of others"
    return [f"{len(hidden)} of {counted(every, 'group')} withheld: {few}"]


def of_many(subgroups: Sequence[Subgroups]) -> list[str]:
    """Return how many of the differences chance alone explains."""
    known = [one.interval for column in subgroups for one in column.differences if one.interval]
    apart = sum(low > 0 or high < 0 for low, high in known)
    if not known:
        return []
    looked = f"{counted(len(known), 'difference')} between groups looked at"
    return [f"{looked}: {apart} outside of zero at 95 %, where by chance alone {0.05 * len(known):.2g} would be"]


def of_comparison(mine: JobSpec, its: JobSpec, found: Comparison) -> list[str]:
    """Return the limits of a comparison of two models."""
    remarks = []
    if found.rests_on_few:
        few = found.patients < LEAST_PATIENTS
        patients = f"fewer than {LEAST_PATIENTS} patients" if few else counted(found.patients, "patient")
        remarks.append(
            f"the comparison rests on {patients}: its interval may be too short, and a difference stay unseen"
        )
    if (mine.seed, mine.data.split, mine.data.splits) != (its.seed, its.data.split, its.data.splits):
        otherwise = "deals patients otherwise (seed, split, splits)"
        remarks.append(f"the other model's job {its.name} {otherwise}: it may have trained on some of these")
    return remarks
