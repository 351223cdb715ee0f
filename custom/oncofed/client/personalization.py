"""The model that a site keeps after the last round.

Its candidates are compared on validation patients; what it gains is measured on test patients, who chose nothing.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from oncofed.algorithms.settings import PersonalizationSpec
from oncofed.client.folder import CANDIDATES_FILE
from oncofed.client.local_training import ProgressReporter, SiteContext, Stop
from oncofed.client.own_training import OnSteps, OwnTraining, alone_plan, tuning_plan
from oncofed.client.preparation import initial_weights, set_broken_files_aside
from oncofed.client.progress import ThrottledProgress
from oncofed.data.case import Case
from oncofed.models.agreed import with_agreed_of
from oncofed.models.weights import Weights, digest_of
from oncofed.privacy.gains import ALONE, FEDERATED, FINE_TUNED, MIXED, gain_numbers
from oncofed.private_files import open_private, write_private
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.choice import Compared, compared, surest
from oncofed.tasks.differences import Part
from oncofed.training import Trainer

Outcomes = list[tuple[str, Any]]
_FOLDER, _CHOICE_FILE = "candidates", "choice.json"
PERSONALIZING = "personalizing"


@dataclass(frozen=True)
class Kept:
    """The model that a site keeps.

    Attributes:
        kind: which of ``gains.KEPT``.
        weights: all of the model's.
        gain: as ``gains.gain_numbers`` tells it; empty: of too few patients.
    """

    kind: str
    weights: Weights = field(repr=False)
    gain: Mapping[str, Any] = field(default_factory=dict)


class Personalization:
    """Compares a site's candidates once in a job, and tells which to keep.

    A later process finds what an earlier one trained and chose.

    Args:
        spec: the job's section.
        trainer: of the job; scores each candidate.
        context: where the site trains.
        validation: cases to choose by.
        progress: of training and scores.
        reporter: receives log lines.
    """

    def __init__(
        self,
        *,
        spec: PersonalizationSpec,
        trainer: Trainer,
        context: SiteContext,
        validation: tuple[Case, ...],
        progress: ThrottledProgress,
        reporter: ProgressReporter,
    ) -> None:
        self._spec, self._trainer, self._context = spec, trainer, context
        self._validation, self._progress, self._reporter = validation, progress, reporter
        self._folder = context.state / _FOLDER
        self._table = context.state / CANDIDATES_FILE
        self._own = OwnTraining(trainer, context.site, self._folder)

    def choose(self, federated: Weights, others: Mapping[str, Weights], stop: Stop) -> Kept | None:
        """Return the model to keep; None: it was stopped, or another model was asked about before.

        Args:
            federated: the job's model, as this site uses it.
            others: further candidates by kind, which the algorithm has.
            stop: polled; true ends it early.

        Raises:
            StateError: what an earlier process kept is of other cases or settings.
            OSError: what was chosen cannot be written.
        """
        if len({case.patient for case in self._validation}) < LEAST_PATIENTS:
            self._note(f"keeps the federated model: fewer than {LEAST_PATIENTS} validation patients cannot choose")
            return Kept(FEDERATED, federated)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        set_broken_files_aside(self._folder, self._reporter)
        digest = str(digest_of(federated))
        earlier = self._earlier()
        if earlier and earlier["of"] != digest:
            # Gains of many models would tell more of the patients than those of one.
            self._note("keeps what it chose before: asked about another model than the job's", logging.WARNING)
            return None
        start = partial(initial_weights, self._trainer.plan, self._context.initial)
        candidates = _Candidates(
            spec=self._spec,
            trainer=self._trainer,
            own=self._own,
            federated=federated,
            others=others,
            initial=start,
            count=self._count,
        )
        if earlier:
            weights = candidates.weights(earlier["name"], stop)
            return Kept(earlier["kind"], weights, earlier["gain"]) if weights is not None else None
        return self._chosen(candidates, digest, stop)

    def _chosen(self, candidates: _Candidates, digest: str, stop: Stop) -> Kept | None:
        beside = candidates.weights(FEDERATED, stop)
        assert beside is not None, "nothing is trained for it"
        reference = self._outcomes(beside, self._validation, stop)
        parts: dict[str, Part | None] = {}
        for name in candidates.names:
            weights = candidates.weights(name, stop)
            if weights is None:
                return None
            parts[name] = self._trainer.task.paired(self._outcomes(weights, self._validation, stop), reference)
        if stop():
            return None
        found = compared(parts, self._spec.level)
        name = surest(found) or FEDERATED
        gain = self._gain(candidates, name, stop)
        if stop():
            return None
        kind = name.split()[0]
        self._keep_table(found, name)
        facts = {"of": digest, "name": name, "kind": kind, "gain": gain}
        write_private(self._folder / _CHOICE_FILE, json.dumps(facts).encode())
        self._note(f"of {len(parts) + 1} candidates keeps: {name} ({self._table})")
        kept = candidates.weights(name, stop)
        return None if kept is None else Kept(kind, kept, gain)

    def _gain(self, candidates: _Candidates, name: str, stop: Stop) -> dict[str, Any]:
        """Return what the kept model gains on test patients."""
        task, cases = self._trainer.task, self._trainer.cases.test
        found: dict[str, Outcomes] = {}
        for one in {name, FEDERATED, *({ALONE} & set(candidates.names))}:
            weights = candidates.weights(one, stop)
            found[one] = self._outcomes(weights, cases, stop) if weights is not None else []
        if stop():
            return {}
        over_alone = task.paired(found[name], found[ALONE]) if ALONE in found else None
        validated = len({case.patient for case in self._validation})
        return gain_numbers(
            name.split(maxsplit=1)[0], validated, task.paired(found[name], found[FEDERATED]), over_alone
        )

    def _outcomes(self, weights: Weights, cases: tuple[Case, ...], stop: Stop) -> Outcomes:
        found = Outcomes()
        self._trainer.load_weights(weights)
        self._trainer.evaluate(cases, stop, False, self._count, found)
        return found

    def _earlier(self) -> dict[str, Any] | None:
        path = self._folder / _CHOICE_FILE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _keep_table(self, found: Mapping[str, Compared], kept: str) -> None:
        """Write each candidate's difference from the federated model, for the site only."""
        with open(self._table, "w", newline="", encoding="utf-8", opener=open_private) as file:
            table = csv.writer(file)
            table.writerow(["candidate", "validation_patients", "difference", "lower_bound", "kept"])
            table.writerow([FEDERATED, "", "", "", kept == FEDERATED])
            for name, one in found.items():
                told = (one.part.patients, f"{one.part.difference:.6f}", f"{one.bound:.6f}") if one.part else ("",) * 3
                table.writerow([name, *told, kept == name])

    def _count(self, done: int, total: int) -> None:
        if self._progress.is_due:
            self._progress.report(phase=PERSONALIZING, step=done, steps=total)

    def _note(self, text: str, level: int = logging.INFO) -> None:
        self._reporter.note(f"this site {text}", level)


class _Candidates:
    """A site's candidates by name; each is trained when it is first asked for.

    Args:
        spec: the job's section.
        trainer: of the job.
        own: trains those that are not there yet.
        federated: the job's model, as this site uses it.
        others: further candidates by kind.
        initial: gives the weights that the job's training began with.
        count: takes (steps done, steps in all).
    """

    def __init__(
        self,
        *,
        spec: PersonalizationSpec,
        trainer: Trainer,
        own: OwnTraining,
        federated: Weights,
        others: Mapping[str, Weights],
        initial: Callable[[], Weights],
        count: OnSteps,
    ) -> None:
        self._spec, self._trainer, self._own = spec, trainer, own
        self._federated, self._others, self._initial, self._count = federated, others, initial, count
        self.names = [*others, *(self._trained_names() if trainer.cases.train else ())]

    def _trained_names(self) -> Iterator[str]:
        for kind in self._spec.candidates:
            yield from [f"{MIXED} {share:g}" for share in self._spec.shares] if kind == MIXED else [kind]

    def weights(self, name: str, stop: Stop) -> Weights | None:
        """Return a candidate's weights; None: its training was stopped."""
        kind, _, share = name.partition(" ")
        if kind == FEDERATED:
            return self._federated
        if kind in self._others:
            return self._others[kind]
        if kind == ALONE:
            return self._alone(stop)
        tuned = self._fine_tuned(stop)
        return tuned if kind == FINE_TUNED or tuned is None else mixed(self._federated, tuned, float(share))

    def _fine_tuned(self, stop: Stop) -> Weights | None:
        plan = tuning_plan(self._trainer.plan, self._spec)
        return self._own.trained(FINE_TUNED, plan, self._federated, self._count, stop, taught=True)

    def _alone(self, stop: Stop) -> Weights | None:
        start = with_agreed_of(self._initial(), self._federated)
        return self._own.trained(ALONE, alone_plan(self._trainer.plan), start, self._count, stop, taught=False)


def mixed(federated: Weights, own: Weights, share: float) -> Weights:
    """Return the weighted mean of two models' weights; integer counters are the second's.

    Args:
        federated: first model, by name.
        own: second model, likewise.
        share: of the second.
    """
    return {n: v.lerp(own[n].to(v), share) if v.is_floating_point() else own[n] for n, v in federated.items()}
