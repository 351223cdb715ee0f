"""Figures of named targets over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.data.targets import is_known
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.differences import Part
from oncofed.tasks.patient_statistics import PatientStatistics
from oncofed.tasks.scores import Scores
from oncofed.tasks.sum_forms import is_part
from oncofed.tasks.targets.base import TargetFigures, TargetHead, figure_name, known_rows
from oncofed.tasks.targets.outcome import TargetOutcome

# Groups in which patients are left out for the variance of a difference.
_JACKKNIFE_GROUPS = 200


class TargetStatistics(PatientStatistics[TargetOutcome]):
    """Turns the outcomes of cases into each target's figures.

    Attributes:
        heads: of the targets, by name.
    """

    heads: dict[str, TargetHead[Any]]

    def summarise(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> Scores:
        """Return each target's figures, and the mean of their primary ones."""
        by_class: dict[str, float] = {}
        extra: dict[str, float] = {}
        primaries = []
        for name, figures in self._figures(outcomes).items():
            if figures.primary is not None:
                by_class[name] = figures.primary
                primaries.append(figures.primary)
            by_class |= {f"{name}.{member}": value for member, value in figures.members.items()}
            extra |= {figure_name(name, metric): value for metric, value in figures.extra.items()}
        return Scores(float(np.mean(primaries)) if primaries else None, by_class, extra)

    def drawing(self, patients: Sequence[Sequence[TargetOutcome]]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return a function from drawn patients to the metric."""
        parts = {
            name: [self._stacked(name, [("", outcome) for outcome in own]) for own in patients] for name in self.heads
        }

        if not all(_are_numbers(answers) for of_target in parts.values() for answers, *_ in of_target):
            return lambda drawn: None

        def metric(drawn: NDArray[np.int64]) -> float | None:
            found = []
            for name, head in self.heads.items():
                chosen = [parts[name][number] for number in drawn]
                answers, truths = (np.concatenate([part[which] for part in chosen]) for which in (0, 1))
                people = [f"{number}" for number, part in enumerate(chosen) for _ in part[2]]
                found.append(head.primary_figure(answers, truths, people))
            known = [value for value in found if value is not None]
            return float(np.mean(known)) if known else None

        return metric

    def patients_behind(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, set[str]]:
        """Return the patients behind each figure, by its name."""
        found: dict[str, set[str]] = {}
        for name, figures in self._figures(outcomes).items():
            for part, patients in figures.behind.items():
                metric = part.partition(".")[0]
                is_extra = part in figures.extra or metric in {m.name for m in self.heads[name].declared_metrics}
                own = figure_name(name, part) if is_extra else ".".join(filter(None, (name, part)))
                found[own] = patients
        return found

    def kinds(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, set[str]]:
        """Return the patients whom sums may tell apart, by target."""
        found: dict[str, set[str]] = {}
        for name, head in self.heads.items():
            _, truths, patients = self._stacked(name, outcomes)
            found |= {f"{name}.{kind}": people for kind, people in head.kinds(truths, patients).items()}
        return found

    def classes_told(self, outcome: TargetOutcome) -> set[str]:
        """Return the targets that a case states, and their members that it has."""
        found = {name for name in self.heads if is_known(outcome.truths[name])}
        members = {name: self.heads[name].members_told(outcome.truths[name]) for name in found}
        return found | {f"{name}.{member}" for name, of_target in members.items() for member in of_target}

    def paired(
        self, outcomes: Sequence[tuple[str, TargetOutcome]], others: Sequence[tuple[str, TargetOutcome]]
    ) -> Part | None:
        """Return the difference of two models' metrics, with its jackknife variance over patients.

        Efron and Stein (Annals of Statistics 1981); patients are left out in at most 200 groups. None where a target's
        figure rests on fewer than five patients.
        """
        if any(len(figures.behind.get("", ())) < LEAST_PATIENTS for figures in self._figures(outcomes).values()):
            return None
        patients = sorted({patient for patient, _ in outcomes})
        groups = min(len(patients), _JACKKNIFE_GROUPS)
        group_of = {patient: number % groups for number, patient in enumerate(patients)}

        def difference(left_out: int) -> float | None:
            sides = ([o for o in side if group_of[o[0]] != left_out] for side in (outcomes, others))
            first, second = (self.summarise(side).mean for side in sides)
            return None if first is None or second is None else first - second

        whole, parts = difference(-1), [difference(number) for number in range(groups)]
        if whole is None or None in parts:
            return None
        spread = np.square(np.array(parts, np.float64) - np.mean(np.array(parts, np.float64))).sum()
        return Part(len(patients), whole, float(spread) * (groups - 1) / groups)

    def pooled(
        self, outcomes: Sequence[tuple[str, TargetOutcome]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts and sums of each target, to add to other sites'.

        A target that one to four patients lack is left out: its number would tell of them.
        """
        del temperature
        found, everybody = {}, len({patient for patient, _ in outcomes})
        for name, of_target in (self._told_of(outcomes) or {}).items():
            sums = self.heads[name].site_sums(*of_target)
            if sums and is_part(sums["patients"], everybody):
                found[name] = sums
        return {"patients": everybody, "targets": found} if found else None

    def temperature_sums(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, Any] | None:
        """Return sums to fit temperatures, by target and finding; a target that one to four lack is left out."""
        found, everybody = {}, len({patient for patient, _ in outcomes})
        for name, of_target in (self._told_of(outcomes) or {}).items():
            sums = self.heads[name].temperature_sums(*of_target)
            people = len(set(of_target[2]))
            if sums and is_part(people, everybody):
                found[name] = {"patients": people, "parts": sums}
        return {"patients": everybody, "targets": found} if found else None

    def _figures(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, TargetFigures]:
        told = self._told_of(outcomes)
        if told is None:
            return dict.fromkeys(self.heads, TargetFigures(None))
        return {name: self.heads[name].figures(*of_target) for name, of_target in told.items()}

    def _told_of(
        self, outcomes: Sequence[tuple[str, TargetOutcome]]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], list[str]]] | None:
        """Return ``_stacked`` of each target; None where a network diverged.

        An answer that is no number has no place among others: as a risk it would rank, as a grade be the lowest. One
        such answer leaves no target a figure, so that the others' mean does not stand for the model.
        """
        found = {name: self._stacked(name, outcomes) for name in self.heads}
        return found if all(_are_numbers(answers) for answers, *_ in found.values()) else None

    def _stacked(
        self, name: str, outcomes: Sequence[tuple[str, TargetOutcome]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
        """Return answers, truths and patients of the cases that state a target."""
        width = self.heads[name].settings.width
        truths = np.array([outcome.truths[name] for _, outcome in outcomes], np.float64).reshape(-1, width)
        known = known_rows(truths)
        chosen = [outcome for outcome, stated in zip(outcomes, known, strict=True) if stated]
        empty = self.heads[name].answer(np.zeros((1, self.heads[name].outputs)))[:0]
        answers = np.stack([outcome.answers[name] for _, outcome in chosen]) if chosen else empty
        return answers, truths[known], [patient for patient, _ in chosen]


def _are_numbers(answers: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(answers).all())
