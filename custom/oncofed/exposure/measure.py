"""Runs the attacks on a job as it is configured, with one's own data."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain

import torch
from torch import Tensor

import oncofed
from oncofed.data.augment import Batch
from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.inputs import Patches
from oncofed.devices import training_device
from oncofed.errors import SpecError
from oncofed.exposure.audit import audit
from oncofed.exposure.gradients import KnownModel, patches_of, with_noise
from oncofed.exposure.groups import Groups, deal
from oncofed.exposure.recognition import Reference, recognition
from oncofed.exposure.reconstruction import draw_again, reconstruction
from oncofed.exposure.results import Exposure, Recognition, Reconstruction, View
from oncofed.models.weights import Weights
from oncofed.privacy.noise import SecretRandomness
from oncofed.training import Plan, Trainer
from oncofed.training.shared_noise import site_deviation

# Called with (what is done, parts of it done, parts in all).
Progress = Callable[[str, int, int], None]

_MOST_CANDIDATES = 32
_MOST_REFERENCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Effort:
    """How long the attacks try.

    Attributes:
        patients: of a site that are trained on, at most.
        steps: of the update whose patients are recognised, at most.
        patches: of a candidate, for its gradient.
        targets: images that are drawn again.
        iterations: of each drawing.
    """

    patients: int = 40
    steps: int = 100
    patches: int = 4
    targets: int = 5
    iterations: int = 60


QUICK = Effort(patients=20, steps=30, patches=2, targets=2, iterations=40)


@dataclass(frozen=True)
class Attacked:
    """What is attacked.

    Attributes:
        name: of the job.
        title: of the job.
        plan: of the job.
        strategy: its algorithm's name.
        weights: that the update begins with; None: those of the job's seed.
        sites: in the sum, where one dataset stands in for all.
    """

    name: str
    title: str
    plan: Plan
    strategy: str = "fedavg"
    weights: Weights | None = None
    sites: int = 4


def require_patches(name: str, plan: Plan) -> None:
    """Refuse jobs that the attacks are not written for.

    Raises:
        SpecError: the job does not train on patches of images, or needs a pack.
    """
    if plan.model.code:
        raise SpecError(
            f"{name}: it brings a pack, whose code runs in a sandbox alone; expected a job without model.code"
        )
    kind = plan.task.type
    task = plan.build_task()
    if (
        task.reads_slides
        or task.learns_from_teacher
        or plan.data.covariates
        or not isinstance(task.input("none"), Patches)
    ):
        raise SpecError(
            f"{name}: its task {kind} does not train on patches of images alone (slides, whole images, boxes, tables "
            "and teachers need other attacks). Expected a job such as hippocampus_segmentation"
        )


def measure(
    attacked: Attacked, sites: Mapping[str, Sequence[Case]], effort: Effort, seed: int, progress: Progress
) -> Exposure:
    """Attack a job.

    Args:
        attacked: the job.
        sites: training cases by site; the first one's patients are attacked.
        effort: of the attacks.
        seed: of all that is random in them.
        progress: of the attacks.

    Raises:
        DataError: there are too few patients.
        SpecError: see ``require_patches``.
    """
    require_patches(attacked.name, attacked.plan)
    started = time.monotonic()
    groups = deal(sites, attacked.sites, effort.patients, seed)
    attack = _Attack(attacked, groups, effort, seed, progress)
    views, private = attack.views(), attacked.plan.privacy.differential_privacy
    audited = audit(private, attacked.plan.total_steps, attack.key("audit")) if private else None
    notes = _notes(attacked, groups)
    if private and not audited:
        notes += (f"The one-run audit was left out: {attacked.plan.total_steps} steps take too long.",)
    return Exposure(
        job=attacked.name,
        title=attacked.title,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=oncofed.__version__,
        seed=seed,
        model="first round: the weights of the job's seed" if attacked.weights is None else "weights of --model",
        stand_ins=groups.stand_ins,
        patients=len(groups.inside[0]),
        steps=attack.steps,
        steps_per_round=attacked.plan.training.steps_per_round,
        iterations=effort.iterations,
        views=views,
        audit=audited,
        notes=notes,
        seconds=round(time.monotonic() - started, 1),
    )


def _notes(attacked: Attacked, groups: Groups) -> tuple[str, ...]:
    found = []
    if groups.stand_ins:
        found.append(
            "The other sites of the sum are other patients of the same dataset. Those of other hospitals and scanners "
            "may hide them better, or worse."
        )
    if attacked.strategy != "fedavg":
        found.append(f"Updates are of plain local training; what {attacked.strategy} adds was not attacked.")
    return tuple(found)


class _Attack:
    """The attacks on one job, step by step."""

    def __init__(self, attacked: Attacked, groups: Groups, effort: Effort, seed: int, progress: Progress) -> None:
        plan = attacked.plan
        self._groups, self._effort, self._seed, self._progress = groups, effort, seed, progress
        self._plans = {True: plan, False: Plan.model_validate({**plan.model_dump(), "privacy": {}})}
        self._secure = plan.privacy.secure_aggregation is not None
        self._weights = plan.initial_weights() if attacked.weights is None else attacked.weights
        self._device = training_device()
        self._model = KnownModel(plan, self._weights, self._device)
        self.private = plan.privacy.differential_privacy
        self._deviation = site_deviation(plan) if self.private else 0.0
        self.steps = min(plan.training.steps_per_round, effort.steps)

    def key(self, what: str) -> bytes:
        """Return the key of some random numbers, 32 bytes."""
        return hashlib.sha256(f"{self._seed} {what}".encode()).digest()

    def views(self) -> tuple[View, ...]:
        """Return what each view gave away."""
        noises = (False, True) if self.private else (False,)
        counts = (1, len(self._groups.inside))
        recognised = self._recognition(noises)
        drawn = self._reconstruction([(noise, count) for noise in noises for count in counts])
        found = [
            View(
                name=_name(count, noise),
                sites=count,
                noise=noise,
                as_configured=noise == bool(self.private) and (count > 1) == self._secure,
                recognition=recognised[noise, count],
                reconstruction=drawn[noise, count],
            )
            for noise in noises
            for count in counts
        ]
        control = View(
            name="no update, labels alone (control)",
            sites=0,
            noise=False,
            as_configured=False,
            recognition=None,
            reconstruction=drawn[None],
        )
        return (*found, control)

    # --- recognition

    def _recognition(self, noises: Sequence[bool]) -> dict[tuple[bool, int], Recognition]:
        updates = self._updates(noises)
        groups, count = self._groups, self._effort.patches
        most = max(2, _MOST_REFERENCE_BYTES // (4 * sum(v.numel() for v in self._model.parameters.values())))
        reference, inside, outside = (
            patches_of(self._plans[False], patients, count, self._seed, self._device)
            for patients in (groups.reference[:most], groups.inside[0], groups.outside)
        )
        total, done = len(reference) + len(inside) + len(outside), iter(range(1, 1 << 30))

        def gradient(batch: Batch) -> Tensor:
            self._progress("recognition: gradients", next(done), total)
            return self._model.gradient(batch).cpu()

        adaptive = self._plans[False].training.optimizer == "adamw"
        known = Reference(torch.stack([gradient(batch) for batch in reference]), adaptive)
        # Each candidate's gradient is computed once and compared with all updates.
        seen = {name: known.seen(update) for name, update in updates.items()}
        found: dict[tuple[bool, int], list[list[float]]] = {name: [[], []] for name in seen}
        for side, batch in chain(((0, b) for b in inside), ((1, b) for b in outside)):
            own = gradient(batch)
            for name, rest in seen.items():
                found[name][side].append(known.score(rest, own))
        return {
            name: recognition(torch.tensor(inner), torch.tensor(outer), self._seed)
            for name, (inner, outer) in found.items()
        }

    def _updates(self, noises: Sequence[bool]) -> dict[tuple[bool, int], Tensor]:
        """Return the update of the attacked site, and the mean of all sites', by (noise, sites)."""
        found: dict[tuple[bool, int], Tensor] = {}
        done = 0
        total = len(noises) * len(self._groups.inside)
        for noise in noises:
            updates = []
            for number in range(len(self._groups.inside)):
                updates.append(self._update(noise, number))
                self._progress("recognition: updates", done := done + 1, total)
            found[noise, 1] = updates[0]
            sizes = torch.tensor([float(sum(map(len, patients))) for patients in self._groups.inside])
            found[noise, len(updates)] = torch.einsum("s,sd->d", sizes / sizes.sum(), torch.stack(updates))
        return found

    def _update(self, noise: bool, number: int) -> Tensor:
        """Return a site's update, (weights,), on the CPU."""
        cases = Cases(tuple(chain.from_iterable(self._groups.inside[number])), (), ())
        trainer = Trainer(self._plans[noise], cases, f"site-{number}", self._device)
        try:
            trainer.load_weights(self._weights)
            source = trainer.prepare()
            if noise:  # the job's own draws are nobody's to repeat, those of an attack on trial are
                source.restore({"secret": SecretRandomness(self.key(f"site {number}")).state})
            trainer.train(self.steps)
            return self._model.flat(trainer.weights()) - self._model.flat(self._weights)
        finally:
            trainer.close()

    # --- reconstruction

    def _reconstruction(self, views: Sequence[tuple[bool, int]]) -> dict[tuple[bool, int] | None, Reconstruction]:
        """Return the reconstruction of one patient's patch, by (noise, sites); None: of nothing but labels."""
        effort = self._effort
        patients = [*self._groups.inside[0], *self._groups.outside, *chain.from_iterable(self._groups.inside[1:])]
        patches = patches_of(self._plans[False], patients, 1, self._seed + 1, self._device)
        candidates, others = patches[:_MOST_CANDIDATES], patches[: effort.targets - 1 : -1]
        images = [batch["image"] for batch in candidates]
        bounds = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
        targets = candidates[: effort.targets]
        drawings: dict[tuple[bool, int] | None, list[Tensor]] = {}
        total = len(targets) * (len(views) + 1) * effort.iterations
        done = iter(range(1, total + 1))
        for place, target in enumerate(targets):
            for view in (*views, None):
                seen = self._seen(view, target, others, place)
                drawn = draw_again(
                    self._model,
                    seen,
                    target,
                    bounds,
                    effort.iterations,
                    self._seed + place,
                    lambda: self._progress("reconstruction", next(done), total),
                )
                drawings.setdefault(view, []).append(drawn)
        return {view: reconstruction(drawn, images) for view, drawn in drawings.items()}

    def _seen(self, view: tuple[bool, int] | None, target: Batch, others: Sequence[Batch], place: int) -> Tensor:
        """Return what is seen of a target's gradient, (weights,)."""
        stream = SecretRandomness(self.key(f"noise {place} {view}")).step()
        if view is None:
            count = sum(value.numel() for value in self._model.parameters.values())
            return stream.normal(count, self._device).float()
        noise, sites = view
        total = torch.zeros(())
        first = place * (sites - 1)
        beside = [others[(first + number) % len(others)] for number in range(sites - 1)]
        for batch in (target, *beside):
            own = self._model.gradient(batch)
            if noise and self.private:
                own = with_noise(own, self.private.clip, self._deviation, stream)
            total = total.to(own.device) + own
        return total / sites


def _name(sites: int, noise: bool) -> str:
    what = "the update of one site" if sites == 1 else f"the sum of {sites} sites"
    return f"{what}, with the job's noise" if noise else what
