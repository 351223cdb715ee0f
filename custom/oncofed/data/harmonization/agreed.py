"""What sites agreed on for ComBat, and a site's own part, applied to batches.

What is agreed travels with the weights as buffers that nobody trains. A number is kept as two of bfloat16, which add up
to 16 binary digits: weights may travel in that type, and all sites and who predicts later then see the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.combat import Common, Numbers, Shift, shift_of, sums_of
from oncofed.data.harmonization.spec import COLUMNS, FEATURES, HarmonizationSpec
from oncofed.data.label_names import name_key
from oncofed.errors import DataError
from oncofed.suppression import LEAST_PATIENTS

# Begins the buffers' names: one of each group, and the preserved covariates' means.
PREFIX = "harmonization_"
_PRESERVED = f"{PREFIX}preserved"


@dataclass(frozen=True, eq=False)
class PatientValues:
    """What ComBat knows of one site's patients.

    Attributes:
        patients: their keys.
        covariates: that are preserved, (patient, covariate) as ``Columns.covariates`` makes them; NaN where missing.
        values: group -> (patient, value); NaN where missing.
    """

    patients: tuple[str, ...]
    covariates: Numbers
    values: Mapping[str, Numbers]

    @property
    def complete(self) -> tuple[bool, ...]:
        """Whether nothing is missing, by patient."""
        parts = np.concatenate([self.covariates, *self.values.values()], axis=1)
        return tuple(bool(there) for there in np.isfinite(parts).all(axis=1))

    def of(self, chosen: Sequence[int]) -> PatientValues:
        """Return those of some patients, by number."""
        found = {name: values[list(chosen)] for name, values in self.values.items()}
        return PatientValues(tuple(self.patients[n] for n in chosen), self.covariates[list(chosen)], found)


class Columns:
    """The columns of a job's table, as ComBat takes them.

    Args:
        columns: of the job, ``data.covariates``.
        spec: of the job.
    """

    def __init__(self, columns: Sequence[Covariate], spec: HarmonizationSpec) -> None:
        self._columns = list(columns)
        names = [name_key(column.name) for column in columns]
        self._moved = [names.index(name_key(name)) for name in spec.columns]
        self._preserved = [names.index(name_key(name)) for name in spec.preserve]

    @property
    def moved(self) -> list[Covariate]:
        """The columns that are made alike."""
        return [self._columns[place] for place in self._moved]

    @property
    def names(self) -> list[str]:
        """Names of the columns that are made alike or preserved."""
        return [self._columns[place].name for place in (*self._moved, *self._preserved)]

    @property
    def preserved_names(self) -> list[str]:
        """The names of the columns behind each number of ``covariates``."""
        found = []
        for place in self._preserved:
            column = self._columns[place]
            found += [column.name] * max(1, len(column.categories) - 1)
        return found

    def covariates(self, rows: Tensor) -> Tensor:
        """Return what is preserved of rows (row, column), as (row, covariate) float64; NaN where missing.

        A number is counted from the middle of its plausible range, in widths of it; of categories, each but the first
        is 1 or 0.
        """
        found = []
        for place in self._preserved:
            column, values = self._columns[place], rows[:, place].double()
            if column.range:
                found.append(_scaled(values, column))
            others = range(1, len(column.categories))
            found += [torch.where(values.isnan(), values, (values == category).double()) for category in others]
        return torch.stack(found, dim=1) if found else rows.new_zeros(len(rows), 0, dtype=torch.float64)

    def values(self, rows: Tensor) -> Tensor:
        """Return the numbers that are made alike, (row, number) float64, in widths of their ranges."""
        found = [_scaled(rows[:, place].double(), self._columns[place]) for place in self._moved]
        return torch.stack(found, dim=1) if found else rows.new_zeros(len(rows), 0, dtype=torch.float64)

    def replaced(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return rows with other numbers, which ``values`` has as the method of that name."""
        found = rows.clone()
        for number, place in enumerate(self._moved):
            found[:, place] = _unscaled(values[:, number], self._columns[place]).to(rows.dtype)
        return found


@dataclass(frozen=True, eq=False)
class Agreed:
    """What sites agreed on.

    Attributes:
        common: of each group.
    """

    common: Mapping[str, Common]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], groups: Sequence[str]) -> Agreed | None:
        """Return what comes with a model's weights; None: nothing was agreed on yet.

        Args:
            weights: of the job's network.
            groups: of the job.
        """
        if not groups or any(f"{PREFIX}{group}" not in weights for group in groups):
            return None
        known = {group: _whole(weights[f"{PREFIX}{group}"]) for group in groups}
        if not all(rows[1].any() for rows in known.values()):
            return None
        preserved = _whole(weights[_PRESERVED]) if _PRESERVED in weights else np.zeros(0)
        return cls({group: Common(rows[0], rows[1], rows[2:], preserved) for group, rows in known.items()})

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Weights, by name."""
        found = {
            f"{PREFIX}{group}": _parts(np.stack([one.mean, one.spread, *one.effects]))
            for group, one in self.common.items()
        }
        preserved = next(iter(self.common.values())).covariates
        return found | ({_PRESERVED: _parts(preserved)} if len(preserved) else {})

    @cached_property
    def key(self) -> str:
        """A text that differs where what is agreed on does."""
        return str({name: value.tolist() for name, value in self.buffers.items()})


def empty_buffers(sizes: Mapping[str, int], covariates: int) -> dict[str, Tensor]:
    """Return the buffers of a new network, before anything is agreed on.

    Args:
        sizes: numbers of each group.
        covariates: numbers that are preserved.
    """
    found = {f"{PREFIX}{group}": torch.zeros(2, 2 + covariates, size) for group, size in sizes.items()}
    return found | ({_PRESERVED: torch.zeros(2, covariates)} if sizes and covariates else {})


class Harmonizer:
    """Makes a site's batches what the average site would have measured.

    Args:
        agreed: by all sites.
        patients: of this site, of which its own shift is told.
        columns: of the job's table.

    Raises:
        DataError: of fewer than five patients everything is known.
    """

    def __init__(self, agreed: Agreed, patients: PatientValues, columns: Columns) -> None:
        self._common, self._columns = agreed.common, columns
        known = enough_patients(patients)
        self.shifts: dict[str, Shift] = {
            group: shift_of(sums_of(known.values[group], known.covariates), common)
            for group, common in agreed.common.items()
        }
        self._lines: dict[tuple[str, torch.device], tuple[Tensor, ...]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of the site's own part."""
        own = {group: [shift.shift.tolist(), shift.scale.tolist()] for group, shift in self.shifts.items()}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    def table(self, rows: Tensor) -> Tensor:
        """Return rows (row, column) with their numbers made alike; missing ones stay missing."""
        if COLUMNS not in self._common:
            return rows
        return self._columns.replaced(rows, self._moved(COLUMNS, self._columns.values(rows), rows))

    def bags(self, bags: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return tiles' features (bag, tile, feature) float32 made alike.

        Args:
            bags: float32, of one site.
            rows: of the table, (bag, column), before ``table``; None: nothing is preserved.
        """
        if FEATURES not in self._common:
            return bags
        return self._moved(FEATURES, bags, bags.new_zeros(len(bags), 0) if rows is None else rows)

    def _moved(self, group: str, values: Tensor, rows: Tensor) -> Tensor:
        """Return values (row, …, value) as ``combat.harmonized`` does, on their device and in their type."""
        means, effects, stretch, offset, centre = (part.to(values.dtype) for part in self._line(group, values.device))
        x = (self._columns.covariates(rows).to(values.dtype) - centre).nan_to_num(0.0)
        expected = means + x @ effects
        if values.ndim > 2:
            expected = expected[:, None]
        return expected + (values - expected) * stretch - offset

    def _line(self, group: str, device: torch.device) -> tuple[Tensor, ...]:
        if (group, device) not in self._lines:
            common, own = self._common[group], self.shifts[group]
            stretch = 1 / np.sqrt(own.scale)
            parts = (common.mean, common.effects, stretch, own.shift * common.spread * stretch, common.covariates)
            self._lines[group, device] = tuple(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in parts)
        return self._lines[group, device]


def enough_patients(patients: PatientValues) -> PatientValues:
    """Return the patients of whom everything is known.

    Raises:
        DataError: they are fewer than five.
    """
    known = patients.of([number for number, there in enumerate(patients.complete) if there])
    if len(known.patients) < LEAST_PATIENTS:
        raise DataError(
            f"a scanner's shift (data.harmonization) is told from {LEAST_PATIENTS} patients at least of whom all its "
            "columns are known, found fewer: register more, or leave data.harmonization out of the job"
        )
    return known


def _scaled(values: Tensor, column: Covariate) -> Tensor:
    assert column.range
    low, high = column.range
    return (values - (low + high) / 2) / (high - low)


def _unscaled(values: Tensor, column: Covariate) -> Tensor:
    assert column.range
    low, high = column.range
    return values * (high - low) + (low + high) / 2


def _parts(values: Numbers) -> Tensor:
    whole = torch.from_numpy(np.ascontiguousarray(values)).double()
    first = whole.bfloat16().double()
    return torch.stack([first, (whole - first).bfloat16().double()]).float()


def _whole(parts: Tensor) -> Numbers:
    found: Numbers = parts.detach().double().cpu().sum(dim=0).numpy()
    return found
