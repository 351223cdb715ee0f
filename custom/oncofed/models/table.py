"""Networks over a table's row: numbers, categories, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.covariates import Covariate
from oncofed.models.weights import Weights

# Last parts of the names of the buffers that hold the numbers' mean and spread.
_MEAN, _SPREAD = "numbers_mean", "numbers_spread"
MOMENTS = frozenset({_MEAN, _SPREAD})


def column_settings(columns: Sequence[Covariate]) -> list[Any]:
    """Return a job's columns as networks take them.

    A number is its usual [mean, spread], categories are how many they are.
    """
    return [len(column.categories) if column.categories else list(column.usual) for column in columns]


class RowEncoder(nn.Module):
    """A row as inputs of a linear layer.

    Numbers are standardised by a mean and a spread that travel with the weights and are not trained; categories are
    one-hot. Each column has one more input that is 1 where its value is missing, and the others 0: a missing number is
    taken for the mean.

    Args:
        columns: see ``column_settings``.

    Attributes:
        width: inputs.

    Example:
        >>> encoder = RowEncoder([[60.0, 10.0], 2])
        >>> encoder(torch.tensor([[70.0, 1.0], [float("nan"), float("nan")]])).tolist()
        [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]]
    """

    numbers_mean: Tensor
    numbers_spread: Tensor

    def __init__(self, columns: Sequence[Any]) -> None:
        super().__init__()
        self._categories = [column if isinstance(column, int) else 0 for column in columns]
        numbers = [column for column in columns if not isinstance(column, int)]
        self.register_buffer(_MEAN, torch.tensor([mean for mean, _ in numbers], dtype=torch.float32))
        self.register_buffer(_SPREAD, torch.tensor([spread for _, spread in numbers], dtype=torch.float32))
        self.width = sum((count or 1) + 1 for count in self._categories)

    def forward(self, table: Tensor) -> Tensor:
        """Return inputs (batch, width) of rows (batch, column), NaN where missing."""
        found, number = [], 0
        for place, count in enumerate(self._categories):
            values = table[:, place].float()
            missing = values.isnan()
            values = values.nan_to_num(0.0)
            if count:
                one_hot = functional.one_hot(values.long(), count).float() * ~missing[:, None]
            else:
                scaled = (values - self.numbers_mean[number]) / self.numbers_spread[number]
                one_hot = torch.where(missing, 0.0, scaled)[:, None]
                number += 1
            found += [one_hot, missing[:, None].float()]
        return torch.cat(found, dim=1)


class RowFeatures(nn.Sequential):
    """Features of a row: its inputs and one hidden layer.

    Args:
        columns: see ``column_settings``.
        hidden: features.
    """

    def __init__(self, columns: Sequence[Any], hidden: int) -> None:
        encoder = RowEncoder(columns)
        super().__init__(encoder, nn.Linear(encoder.width, hidden), nn.ReLU())


class TableNetwork(nn.Module):
    """A network over rows alone.

    Args:
        columns: see ``column_settings``.
        out_channels: values.
        hidden: size of its hidden layer; 0: it is linear, as logistic and Cox regression are.
    """

    def __init__(self, columns: Sequence[Any], out_channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.row: nn.Module = RowFeatures(columns, hidden) if hidden else RowEncoder(columns)
        inputs = hidden or sum((column if isinstance(column, int) else 1) + 1 for column in columns)
        self.head = nn.Linear(inputs, out_channels)

    def forward(self, table: Tensor) -> Tensor:
        """Return values (batch, out) of rows (batch, column)."""
        values: Tensor = self.head(self.row(table))
        return values


def standardised(weights: Weights, columns: Sequence[Covariate], moments: Mapping[str, tuple[float, float]]) -> Weights:
    """Return a network's weights with the mean and spread of its numbers.

    Args:
        weights: of a network over the columns; others stay as they are.
        columns: of the job.
        moments: column -> mean and spread; one left out keeps its usual ones.
    """
    numbers = [column for column in columns if column.range]
    known = [moments.get(column.name, column.usual) for column in numbers]
    values = {_MEAN: [mean for mean, _ in known], _SPREAD: [spread for _, spread in known]}
    return {
        name: torch.tensor(values[last], dtype=torch.float32) if (last := name.rpartition(".")[2]) in values else value
        for name, value in weights.items()
    }
