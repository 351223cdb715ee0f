"""How a network's outputs become an answer: a few operations, as plain values.

Tasks and bundles share them, so that a bundle answers with MONAI alone, whatever kind of target it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

Operation = Literal[
    "softmax", "sigmoid", "exp", "softplus", "cumulative_sum", "cumulative_product", "clip", "affine", "linear"
]
Rule = Literal["largest", "at_least", "median"]


@dataclass(frozen=True)
class Step:
    """An operation on some of a target's values, along their axis.

    Attributes:
        operation: ``affine`` is values * scale + offset; ``linear`` values @ matrix + offset, in which their number may
            change; ``clip`` keeps to ``bounds``; the others have no numbers.
        scale: of ``affine``: one, or one a value.
        offset: of ``affine`` and ``linear``: one, or one a value.
        matrix: of ``linear``, a row for each value.
        bounds: of ``clip``.
        first: number of the first value that it changes; those before it stay.
        last: number after the last one; None: all.
    """

    operation: Operation
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    matrix: tuple[tuple[float, ...], ...] = ()
    bounds: tuple[float, float] = (0.0, 1.0)
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class Told:
    """A number that people and files are told of an answer.

    It is ``scale`` times one of the answer's values, plus ``offset``.

    Attributes:
        name: of the number among those of its target, such as probability.present.
        title: what it is, in words.
        unit: of the number; empty: none.
        value: number of the answer's value.
        scale: see above.
        offset: see above.
        span: width of what the number may be, 1 of a probability; None: unbounded.
        detail: short tables leave it out.
    """

    name: str
    title: str
    unit: str = ""
    value: int = 0
    scale: float = 1.0
    offset: float = 0.0
    span: float | None = None
    detail: bool = False


@dataclass(frozen=True)
class Verdict:
    """What an answer says in words, such as the name of a class.

    Attributes:
        rule: ``largest``: the name of the largest value; ``at_least``: the names of all values of at least their
            threshold; ``median``: of ordered names the last one that, with those after it, has more than half.
        names: one a value, in order.
        thresholds: of ``at_least``, one a value.
    """

    rule: Rule
    names: tuple[str, ...]
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class TargetAnswer:
    """How the outputs of one target's head become its answer.

    Attributes:
        name: of the target.
        kind: of the target, such as ``class``.
        outputs: of the network that are the target's.
        steps: from outputs to the answer's values, in order.
        told: numbers that are told of them.
        verdict: words that are told; None: none.
    """

    name: str
    kind: str
    outputs: int
    steps: tuple[Step, ...]
    told: tuple[Told, ...]
    verdict: Verdict | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


_OPERATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "softplus": torch.nn.functional.softplus,
    "cumulative_sum": lambda x: torch.cumsum(x, -1),
    "cumulative_product": lambda x: torch.cumprod(x, -1),
}


def applied(steps: Sequence[Step], outputs: Tensor) -> Tensor:
    """Return the answer's values, (case, values).

    Args:
        steps: of a target.
        outputs: of its head, (case, outputs).
    """
    return reduce(_step, steps, outputs)


def _step(values: Tensor, step: Step) -> Tensor:
    last = values.shape[-1] if step.last is None else step.last
    part = values[..., step.first : last]
    return torch.cat([values[..., : step.first], _changed(part, step), values[..., last:]], -1)


def _changed(part: Tensor, step: Step) -> Tensor:
    def numbers(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=part.dtype, device=part.device)

    if step.operation == "affine":
        return part * numbers(step.scale) + numbers(step.offset)
    if step.operation == "clip":
        return part.clamp(*step.bounds)
    if step.operation == "linear":
        return part @ numbers(step.matrix) + numbers(step.offset)
    return _OPERATIONS[step.operation](part)


def in_words(answer: TargetAnswer) -> str:
    """Return what a target asks, such as "one of absent, present"."""
    verdict = answer.verdict
    if verdict is None:
        return ", ".join(
            f"{told.title} ({told.unit})" if told.unit else told.title for told in answer.told if not told.detail
        )
    return f"{'any' if verdict.rule == 'at_least' else 'one'} of {', '.join(verdict.names)}"


def told_numbers(answer: TargetAnswer, values: Sequence[float]) -> dict[str, float]:
    """Return the numbers that are told of one case's values, by name."""
    return {told.name: told.scale * float(values[told.value]) + told.offset for told in answer.told}


def told_probabilities(names: Sequence[str]) -> tuple[Told, ...]:
    """Return the probability of each name, one a value."""
    return tuple(
        Told(f"probability.{name}", f"probability of {name}", value=number, span=1.0)
        for number, name in enumerate(names)
    )


def told_words(verdict: Verdict | None, values: Sequence[float]) -> str:
    """Return what one case's values say in words; empty without a verdict."""
    if verdict is None:
        return ""
    if verdict.rule == "largest":
        return verdict.names[max(range(len(verdict.names)), key=lambda number: values[number])]
    if verdict.rule == "median":
        return verdict.names[sum(sum(values[number:]) > 0.5 for number in range(1, len(verdict.names)))]
    named = zip(verdict.names, values, verdict.thresholds, strict=True)
    return ", ".join(name for name, value, threshold in named if value >= threshold)
