"""The patients of each step, drawn at random.

A shuffled epoch reported as such draws leaks up to four times what is said (Annamalai et al., NDSS 2026).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from oncofed.data.augment import Batch
from oncofed.data.batches import BatchBuilder
from oncofed.privacy.noise import SecretRandomness, SecretStream


class PatientDraw(Iterator[Batch]):
    """One step's patients: a batch for each, which is built when it is wanted.

    Args:
        batches: build them.
        stream: of the step's random numbers, from which its noise is taken too.
    """

    def __init__(self, batches: Sequence[partial[Batch]], stream: SecretStream) -> None:
        self.patients = len(batches)
        self.stream = stream
        self._batches = iter(batches)

    def __next__(self) -> Batch:
        return next(self._batches)()


class PatientDraws(Iterator[PatientDraw]):
    """Draws each patient by itself with the same chance (Poisson sampling).

    Nothing of it comes from the job's seed, which others know.

    Args:
        patients: whose case each prepared case is.
        builder: of batches.
        sampling: the chance.
        patches: samples of a patient, spread evenly over the patient's cases.
        randomness: of draws, samples and noise.
        rank: of this process in its group, each of which has patients of its own.
        size: of the group.
    """

    def __init__(
        self,
        patients: Sequence[str],
        builder: BatchBuilder,
        *,
        sampling: float,
        patches: int,
        randomness: SecretRandomness,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        cases: dict[str, list[int]] = {}
        for number, patient in enumerate(patients):
            cases.setdefault(patient, []).append(number)
        self._cases = [cases[patient] for patient in sorted(cases)[rank::size]]
        self._builder, self._sampling, self._patches = builder, sampling, patches
        self._randomness = randomness

    def __next__(self) -> PatientDraw:
        stream = self._randomness.step()
        drawn = stream.draws(len(self._cases), self._sampling)
        generator = Generator().manual_seed(stream.seed())
        indices = [self._samples(self._cases[number], generator) for number in drawn]
        after: list[list[int]] = [*indices[1:], []]
        batches = [partial(self._builder.build, now, generator, after[place]) for place, now in enumerate(indices)]
        return PatientDraw(batches, stream)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the coming draws, which is the site's secret."""
        return {"secret": self._randomness.state}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self._randomness.restore(state["secret"])

    def begin_round(self) -> None:
        """Take a new secret.

        A restored one may be of a copy of the site, from before another model got its noise: the difference of both
        updates would have none.
        """
        self._randomness.renew()

    def _samples(self, cases: Sequence[int], generator: Generator) -> list[int]:
        """Return the cases of a patient's samples: each as often as another, but for the rest."""
        order = torch.randperm(len(cases), generator=generator).tolist()
        return [cases[order[number % len(cases)]] for number in range(self._patches)]
