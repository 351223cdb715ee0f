"""The interface of a kind of target.

``TargetSettings`` is what a job says of a target, and how a case's value becomes numbers. Its ``TargetHead`` turns the
network's outputs into a loss, an answer and figures. Unknown values are NaN; they count in neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor
from typing_extensions import Self

from oncofed.data.codes import Code, require_apart
from oncofed.data.targets import DatasetTarget, Encoded, TargetValue
from oncofed.models.answers import Step, TargetAnswer, Told, Verdict, applied, in_words, told_numbers, told_words
from oncofed.plugins import Registry, read_section
from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import PooledTarget

# Kinds of target, a module each; installed packages may bring others.
TARGET_KINDS: Registry[type[TargetHead[Any]]] = Registry(
    "kind of target", package=__package__, group="oncofed.target_kinds", packs=False
)


def _as_names(value: Any) -> Any:
    """Return whole numbers of a list as the texts that they are written as.

    Raises:
        ValueError: YAML read another entry as something else than text, such as yes, 1.10 or a date: how it was
            written is no longer known.
    """
    if not isinstance(value, list | tuple):
        return value
    strange = [name for name in value if isinstance(name, bool) or not isinstance(name, str | int)]
    if strange:
        raise ValueError(f'found {strange[0]!r}, expected names. Write each in quotes, such as "yes" or "1.10"')
    return tuple(str(name) for name in value)


# Of classes, findings or grades.
Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]


class TargetSettings(StrictModel):
    """A target, as a job declares it; ``kind`` names its kind."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", description="as the dataset calls it")
    kind: str = Field(
        description="decides which settings follow: class, labels, grade, value, survival, mask, objects, boxes"
    )
    weight: float = Field(1.0, gt=0, le=1000, description="of its loss among those of all targets")

    @property
    def width(self) -> int:
        """Numbers that encode a case's value."""
        return 1

    @property
    def question(self) -> dict[str, Any]:
        """The settings, without how much the target counts in training."""
        return self.model_dump(exclude={"weight", "code", "codes"})

    @property
    def names(self) -> tuple[str, ...]:
        """Classes, findings or grades; see ``data.targets.Target``."""
        return ()

    @property
    def meaning(self) -> str:
        """Code of what it is; see ``data.targets.Target``."""
        return ""

    @property
    def meanings(self) -> Mapping[str, str]:
        """Name -> code of what it means; see ``data.targets.Target``."""
        return {}

    @property
    def members(self) -> tuple[str, ...]:
        """Names of parts with a figure each, such as findings."""
        return ()

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the label values that it draws, from 1; of what is not drawn none."""
        return ()

    @property
    def least_batch(self) -> int:
        """Fewest samples that the loss needs at once; two where it compares them."""
        return 1

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return a case's value as ``width`` numbers; see ``data.targets.Target``."""
        raise NotImplementedError


class StatedTarget(TargetSettings):
    """A target that a dataset states of its cases, and does not draw."""

    code: Code = Field(
        "", description="what it is, as SCHEME:CODE: a dataset's target of the same code is it, whatever it is called"
    )

    @property
    def meaning(self) -> str:
        """Its code."""
        return self.code


class NamedTarget(StatedTarget):
    """A target of classes, findings or grades."""

    codes: dict[str, Code] = Field(
        {}, description="name -> what it means, as SCHEME:CODE; goes before names, as code does"
    )

    @model_validator(mode="after")
    def _codes_are_of_names(self) -> Self:
        require_apart(self.codes, self.names)
        return self

    @property
    def meanings(self) -> Mapping[str, str]:
        """The codes."""
        return self.codes


Target = TypeVar("Target", bound=TargetSettings)


@dataclass(frozen=True)
class TargetFigures:
    """A target's figures over patients.

    Attributes:
        primary: the figure that stands for the target, larger is better; None where the cases cannot tell it.
        members: the same of each member that the cases can judge.
        extra: further figures, by ``METRIC`` or ``METRIC.MEMBER``.
        behind: patients behind each: "" for the primary, ``MEMBER``, ``METRIC`` or ``METRIC.MEMBER``. Of a figure that
            compares two groups it is the smaller one.
    """

    primary: float | None
    members: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    behind: dict[str, set[str]] = field(default_factory=dict)


class TargetHead(ABC, Generic[Target]):
    """One target: outputs, loss, answer and figures.

    Args:
        settings: of the target.

    Attributes:
        Settings: of the target in a job.
        primary: the figure that stands for the target.
        metrics: further figures; ``per_class`` ones are of members.
        chooses_thresholds: members have thresholds, chosen by sums over validation patients.
        known_thresholds: member -> threshold of its probability, if known.
        known_temperatures: member, or "" of the target -> temperature of its logits, if known.
        learns_temperatures: ``temperature_sums`` may tell temperatures.
    """

    Settings: ClassVar[type[TargetSettings]]
    primary: ClassVar[Metric]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    chooses_thresholds: ClassVar[bool] = False
    known_thresholds: Mapping[str, float] = MappingProxyType({})
    known_temperatures: Mapping[str, float] = MappingProxyType({})
    learns_temperatures: ClassVar[bool] = False
    makes_mean: ClassVar[bool] = True
    has_own_figure: ClassVar[bool] = False

    def __init__(self, settings: Target) -> None:
        self.settings = settings

    @property
    def members(self) -> tuple[str, ...]:
        """Names of parts with a figure each, such as findings."""
        members: tuple[str, ...] = self.settings.members
        return members

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Outputs of the network that are this target's."""

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Further figures with the unit and bounds that this target gives them."""
        return self.metrics

    @abstractmethod
    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of each sample, (batch,); zero where unknown.

        Args:
            output: (batch, outputs) float32.
            truth: (batch, width) float32, NaN where unknown.
        """

    def statements(self, truth: Tensor) -> Tensor:
        """Return whether what each output says holds of each sample, (batch, outputs).

        1 where it holds, 0 where not, NaN where unknown or where an output states nothing that holds or not, such as a
        number. A network with a loss of its own asks for it: ``models.mil.own_loss``.

        Args:
            truth: as for ``loss``.
        """
        return truth.new_full((len(truth), self.outputs), float("nan"))

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """How outputs become an answer's values, such as probabilities."""

    @property
    @abstractmethod
    def told(self) -> tuple[Told, ...]:
        """The numbers that people and files are told of an answer."""

    @property
    def verdict(self) -> Verdict | None:
        """What an answer says in words; None: nothing."""
        return None

    @property
    def target_answer(self) -> TargetAnswer:
        """How outputs become what is told, as plain values."""
        settings = self.settings
        return TargetAnswer(settings.name, settings.kind, self.outputs, self.steps, self.told, self.verdict)

    @property
    def asks(self) -> str:
        """What it answers, in words with its unit."""
        return in_words(self.target_answer)

    def answer(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return answers, (case, values).

        Args:
            outputs: (case, outputs).
        """
        found: NDArray[np.float64] = applied(self.steps, torch.from_numpy(outputs)).numpy()
        return found

    @abstractmethod
    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return figures over patients.

        Args:
            answers: (case, values), as ``answer`` returns them; of cases whose target is known.
            truths: (case, width), partly NaN.
            patients: key of each case's patient.
        """

    def kinds(self, truths: NDArray[np.float64], patients: Sequence[str]) -> dict[str, set[str]]:
        """Return groups of patients that ``site_sums`` may distinguish.

        Args:
            truths: (case, width), of cases whose target is known.
            patients: key of each case's patient.
        """
        del truths
        return {"": set(patients)}

    def primary_figure(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> float | None:
        """Return the primary one of ``figures``, which an interval needs of hundreds of draws."""
        return self.figures(answers, truths, patients).primary

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return counts and sums for figures over all sites; None for too few.

        Each rests on at least five patients; ``patients`` says how many of the site state the target. See ``figures``
        for the arguments.
        """
        del answers, truths, patients
        return None

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value is one that ``site_sums`` may make, and may leave a site.

        Args:
            value: as sent.
            most: cases that the site has at most.
        """
        del value, most
        return False

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return sums without what rests on too few patients; None: nothing is left.

        Args:
            sums: of ``site_sums``.
            minimum: fewest patients behind a number, by a site's policy.
        """
        return dict(sums) if minimum <= LEAST_PATIENTS else None

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return figures over the patients of all sites; None: they cannot be told.

        Args:
            of_sites: what ``site_sums`` made at each.
        """
        del of_sites
        return None

    def thresholds(self, of_sites: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the threshold of each member; see ``chooses_thresholds``.

        Args:
            of_sites: what ``site_sums`` made of the validation patients of each.
        """
        del of_sites
        return {}

    def use_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Use thresholds of probabilities.

        Args:
            thresholds: by member; empty: none are known.
        """
        self.known_thresholds = dict(thresholds)

    @property
    def tempered(self) -> tuple[str, ...]:
        """Parts with a temperature of their own; see ``known_temperatures``."""
        return ()

    def temperature_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return what ``calibration.temperature_sums`` makes of each part that enough patients state.

        See ``figures`` for the arguments; answers are without temperature.
        """
        del answers, truths, patients
        return {}

    def use_temperatures(self, temperatures: Mapping[str, float]) -> None:
        """Divide logits by temperatures.

        Args:
            temperatures: by part; empty: none are known.
        """
        self.known_temperatures = dict(temperatures)

    def described(self, answer: NDArray[np.float64]) -> dict[str, float | str]:
        """Return one case's answer by name, for people; ``answer`` is what it says in words."""
        words = {"answer": self.said(answer)} if self.verdict else {}
        return {**words, **told_numbers(self.target_answer, answer.tolist())}

    def shares(self, answer: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bounded numbers of one case's answer as shares of what they may span, (number,)."""
        numbers = told_numbers(self.target_answer, answer.tolist())
        return np.array([numbers[told.name] / told.span for told in self.told if told.span], np.float64)

    def said(self, answer: NDArray[np.float64]) -> str:
        """Return what one case's answer says in words; empty without a verdict."""
        return told_words(self.verdict, answer.tolist())

    def in_short(self, answer: NDArray[np.float64]) -> str:
        """Return one case's answer in a few words: what it says, or its first number."""
        if self.verdict:
            return self.said(answer) or "none"
        first = self.told[0]
        return f"{first.title} {self.described(answer)[first.name]:.3g} {first.unit}".strip()

    def members_told(self, truth: Encoded) -> set[str]:
        """Return the members that one case has, such as findings that hold.

        Args:
            truth: one number a member, 1 where the case has it.
        """
        return {member for member, value in zip(self.settings.members, truth, strict=False) if value == 1}

    def described_truth(self, truth: Encoded) -> str:
        """Return one case's stated value in words; empty where unknown."""
        return ", ".join(f"{value:g}" for value in truth if not np.isnan(value))


def head_of(settings: TargetSettings) -> TargetHead[Any]:
    """Return the head of a target."""
    return TARGET_KINDS.find(settings.kind)(settings)


def _settings_by_kind(value: Any) -> TargetSettings:
    """Return a section as the settings of the kind that it names."""
    if isinstance(value, TargetSettings):
        return value
    settings: TargetSettings = read_section(TARGET_KINDS, "kind", value)
    return settings


TargetSection = Annotated[SerializeAsAny[TargetSettings], BeforeValidator(_settings_by_kind)]


def known_rows(truths: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cases state any number of a target, (case,)."""
    return np.asarray(~np.isnan(truths).all(axis=1))


def patients_where(which: NDArray[np.bool_], patients: Sequence[str]) -> set[str]:
    """Return the patients of some cases.

    Args:
        which: (case,).
        patients: key of each case's patient.
    """
    return {patients[int(index)] for index in np.flatnonzero(which)}


def figure_name(target: str, name: str) -> str:
    """Return ``METRIC.TARGET[.MEMBER]`` of ``METRIC[.MEMBER]``."""
    metric, _, member = name.partition(".")
    return ".".join(filter(None, (metric, target, member)))
