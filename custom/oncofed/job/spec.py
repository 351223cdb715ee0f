"""The settings in ``job.yaml``, and its reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from oncofed.algorithms import algorithm_class
from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.plan import FederationPlan, StrategySection
from oncofed.algorithms.settings import EvaluationSpec, ExchangeSpec, PersonalizationSpec, RoundsSpec
from oncofed.algorithms.shared_noise import check_shared_noise
from oncofed.data.profile_plan import ProfilePlan
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.models import ModelSpec
from oncofed.models.foreign import read_bundle
from oncofed.models.weights import WeightLayout
from oncofed.packs.load import load_pack
from oncofed.packs.pack import find_pack
from oncofed.privacy.settings import NoiseKind, PrivacySpec, ScoresKind
from oncofed.settings import Lines, SettingError, StrictModel, read_yaml, validated
from oncofed.tasks import TaskSection, task_class
from oncofed.tasks.targets.section import drawn_alone, settings_of_target, task_of_targets
from oncofed.training import Plan, ResourcesSpec, TrainingSpec

JOB_FILE = "job.yaml"
# Sections that null switches off: nothing after their names may have been meant to switch them on.
_NEVER_EMPTY: dict[tuple[str, ...], str] = {
    ("personalization",): "write {} for its defaults, or leave the line out for none",
    ("privacy", "secure_aggregation"): "write {} for its defaults, or leave the line out for none",
    (
        "privacy",
        "differential_privacy",
    ): "write delta, sampling and epsilon, or leave the line out for none",
}

Spec = TypeVar("Spec", bound=StrictModel)


class JobSpec(StrictModel):
    """A job that trains a model."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="lower case, digits, _ and -")
    title: str = Field(min_length=1, max_length=120, description="one line for lists and reports")
    data: DataSpec
    task: TaskSection = Field(description="what is learned, by its type")
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    resources: ResourcesSpec = ResourcesSpec()
    rounds: RoundsSpec = RoundsSpec()
    strategy: StrategySection = Field(FedAvg.Settings(), description="the algorithm: its name, or name and settings")
    exchange: ExchangeSpec = ExchangeSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    personalization: PersonalizationSpec | None = Field(
        None, description="{}: each site keeps the best of several models for itself; null: the federated one"
    )
    privacy: PrivacySpec = PrivacySpec()
    seed: int = Field(1, ge=0, lt=2**31, description="of the initial weights, the splits and the order of patches")
    licence: str = Field("", max_length=80, description="of the model, for its card, such as CC-BY-NC-4.0")
    contact: str = Field("", max_length=120, description="who answers for the model, for its card")

    @model_validator(mode="before")
    @classmethod
    def _input_of_its_bundle(cls, values: Any) -> Any:
        """Fill in preprocessing from the job's bundle."""
        model = values.get("model") if isinstance(values, dict) else None
        data = values.get("data") if isinstance(values, dict) else None
        if not isinstance(model, dict) or not isinstance(data, dict) or not isinstance(model.get("bundle"), str):
            return values
        return {**values, "data": {**read_bundle(model["bundle"]).preprocessing, **data}}

    @model_validator(mode="before")
    @classmethod
    def _targets_are_a_task(cls, values: Any) -> Any:
        """Let a job name its targets alone: the section ``task`` follows from them."""
        if not isinstance(values, dict) or "targets" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "targets"}
        return {**rest, "task": task_of_targets(values["targets"], rest.get("task"), rest.get("model"))}

    @model_validator(mode="after")
    def _code_is_confined(self) -> JobSpec:
        among_sites = not self.federation().algorithm().schedule.reaches_server
        if self.model.code and self.resources.gpus > 1:
            raise SettingError(
                f"found {self.resources.gpus}, expected 1: a pack's code (model.code) runs in one process",
                "resources.gpus",
            )
        if self.model.code and among_sites:
            raise SettingError(
                f"found {self.strategy.name}, which sends updates from site to site: a pack's code (model.code) runs "
                "without network. Take another strategy",
                "strategy",
            )
        return self

    @model_validator(mode="after")
    def _is_a_plan(self) -> JobSpec:
        if not self.model.lacks_code:
            self.plan()
        self.federation()
        return self

    @model_validator(mode="after")
    def _models_can_be_compared(self) -> JobSpec:
        if self.personalization and not task_class(self.task.type).compares_patients:
            raise SettingError(
                f"found task {self.task.type}, whose metric has no paired difference over patients to choose a model "
                "by. Leave it out",
                "personalization",
            )
        return self

    @model_validator(mode="after")
    def _strategy_keeps_patients_apart(self) -> JobSpec:
        reason = self.federation().algorithm().why_not_private
        if self.privacy.differential_privacy and reason:
            raise SettingError(
                f"found {self.strategy.name} beside privacy.differential_privacy: it {reason}. Take another strategy, "
                "such as fedavg",
                "strategy",
                "privacy.differential_privacy",
            )
        check_shared_noise(self.privacy, self.federation())
        return self

    @model_validator(mode="after")
    def _strategy_follows_what_is_sent(self) -> JobSpec:
        if self.training.ema_decay and self.federation().algorithm().follows_last_step:
            raise SettingError(
                f"found {self.training.ema_decay:g} beside strategy {self.strategy.name}, whose term at a site follows "
                "the last step's weights, and at the server the mean that is sent. Leave it out, or take another "
                "strategy, such as scaffold",
                "training.ema_decay",
                "strategy",
            )
        return self

    def plan(self) -> Plan:
        """Return what one site needs to know.

        Raises:
            SpecError: it depends on the job's pack, which is not loaded.
        """
        if self.model.lacks_code:
            raise SpecError(
                f"the pack {str(self.model.code)[:12]}… is not loaded: read the job with its code (with_code=True)"
            )
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        return Plan(
            data=self.data,
            task=self.task,
            model=self.model,
            training=self.training,
            resources=self.resources,
            privacy=self.privacy,
            rounds=self.rounds.number,
            seed=self.seed,
        )

    def federation(self) -> FederationPlan:
        """Return how the sites work together."""
        return FederationPlan(
            rounds=self.rounds,
            strategy=self.strategy,
            exchange=self.exchange,
            evaluation=self.evaluation,
            personalization=self.personalization,
            secure_aggregation=self.privacy.secure_aggregation,
            lost=self.privacy.differential_privacy.lost if self.privacy.differential_privacy else 0,
        )

    @property
    def noise_multiplier(self) -> float | None:
        """Of steps with differential privacy, in clips; None: the job has none."""
        private = self.privacy.differential_privacy
        return private.event(self.rounds.number * self.training.steps_per_round).noise_multiplier if private else None

    @property
    def noise(self) -> NoiseKind | None:
        """Who makes the noise of steps with differential privacy; None: the job has none."""
        return self.privacy.differential_privacy.noise if self.privacy.differential_privacy else None

    @cached_property
    def layout(self) -> WeightLayout:
        """Of the network's weights; the network is built once."""
        return self.plan().layout()

    @property
    def scores(self) -> ScoresKind:
        """How the sites' scores leave them."""
        return "summed" if self.federation().sums_scores else "each"

    def with_rounds(self, rounds: int) -> JobSpec:
        """Return the same job with another number of rounds."""
        return self.changed({"rounds": {"number": rounds}})

    def with_seed(self, seed: int) -> JobSpec:
        """Return the same job with another seed."""
        return JobSpec.model_validate({**self.model_dump(by_alias=True), "seed": seed})

    def changed(self, sections: dict[str, dict[str, Any]]) -> JobSpec:
        """Return the job with changed settings, validated."""
        values = self.model_dump(by_alias=True)
        for section, settings in sections.items():
            # Another strategy has other settings: none of the old one's are kept.
            other = section == "strategy" and settings.get("name", values[section]["name"]) != values[section]["name"]
            values[section] = settings if other else {**(values[section] or {}), **settings}
        return _validate(JobSpec, values, "the changed job", {})

    def to_yaml(self) -> str:
        """Return the job as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


class ProfileJobSpec(StrictModel):
    """A job that profiles the sites' data without training."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="lower case, digits, _ and -")
    title: str = Field(min_length=1, max_length=120, description="one line for lists and reports")
    profile: ProfilePlan
    min_sites: int | None = Field(None, ge=1, le=1000, description="fewest sites that must answer; null: every one")

    def to_yaml(self) -> str:
        """Return the job as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


AnyJob = JobSpec | ProfileJobSpec


@dataclass(frozen=True)
class JobEntry:
    """A job that was found in a folder of jobs."""

    name: str
    file: Path


def read_job(job: str | Path, with_code: bool = False) -> JobSpec:
    """Read a training job by name, folder or file.

    Args:
        job: a name that ``oncofed job list`` shows, a folder with ``job.yaml``, or the file itself.
        with_code: also import the pack that the job names, which runs its code, and check the job against it. Without
            it such a job can be shown and changed, and nothing built from it.

    Raises:
        SpecError: there is no such job, or its file is not valid; the message names file, line, what was found and
            what is allowed.
    """
    return parse_job(find_job(job), with_code)


def read_any_job(job: str | Path, with_code: bool = False) -> AnyJob:
    """Read a job of any kind; see ``read_job``."""
    return parse_any_job(find_job(job), with_code)


def find_job(job: str | Path) -> Path:
    """Return a job's ``job.yaml`` by name, folder or file."""
    path = Path(job)
    if path.is_file():
        return path
    if (path / JOB_FILE).is_file():
        return path / JOB_FILE
    known = {entry.name: entry.file for entry in list_jobs()}
    if str(job) in known:
        return known[str(job)]
    raise SpecError(
        f"unknown job {str(job)!r}: no file, no folder with {JOB_FILE}, and no job of that name. "
        f"Known jobs: {', '.join(sorted(known)) or 'none'}. See: oncofed job list"
    )


def list_jobs() -> list[JobEntry]:
    """Return the jobs in all jobs folders.

    Of a name in several folders the first counts.
    """
    found: dict[str, JobEntry] = {}
    for folder in jobs_folders():
        for file in sorted(folder.glob(f"*/{JOB_FILE}")):
            found.setdefault(file.parent.name, JobEntry(file.parent.name, file))
    return sorted(found.values(), key=lambda entry: entry.name)


def jobs_folders() -> list[Path]:
    """Return the folders searched for jobs.

    The working folder's, the checkout's, the installed package's.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [Path.cwd() / "jobs", package.parents[1] / "jobs", package / "_jobs"]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def parse_job(file: Path, with_code: bool = False) -> JobSpec:
    """Read one ``job.yaml`` of a job that trains a model.

    Args:
        file: to read.
        with_code: see ``read_job``.

    Raises:
        SpecError: the file is not valid, or the job trains nothing.
    """
    spec = parse_any_job(file, with_code)
    if isinstance(spec, ProfileJobSpec):
        raise SpecError(f"{file}: the job {spec.name} has a section profile and trains nothing; name one that trains.")
    return spec


def parse_any_job(file: Path, with_code: bool = False) -> AnyJob:
    """Read one ``job.yaml`` of either kind.

    A section ``profile`` makes it a job that does not train.

    Args:
        file: to read.
        with_code: see ``read_job``.

    Raises:
        SpecError: the file is not valid, or its pack is missing or cannot be imported.
    """
    values, lines = read_yaml(file, "name: my_job", _NEVER_EMPTY)
    if "profile" in values:
        return _validate(ProfileJobSpec, values, str(file), lines)
    if with_code:
        _load_code(values, file)
    return _validate(JobSpec, values, str(file), lines)


def packs_folder() -> Path:
    """Return the packs folder of the workspace.

    Packs next to the job come first.
    """
    return Path(os.environ.get("ONCOFED_WORKSPACE", "workspace")) / "code"


def _load_code(values: dict[str, Any], file: Path) -> None:
    """Import a job's pack, to register its plug-ins."""
    model = values.get("model")
    digest = model.get("code") if isinstance(model, dict) and not model.get("declared") else None
    if isinstance(digest, str):
        load_pack(find_pack(digest, (file.parent, packs_folder())))


def _validate(kind: type[Spec], values: dict[str, Any], where: str, lines: Lines) -> Spec:
    return validated(kind, values, where, lines, "job", partial(_placed, values), partial(_explained, values))


def _placed(
    values: Mapping[str, Any], kind: type[StrictModel], loc: tuple[str, ...]
) -> tuple[type[StrictModel], tuple[str, ...]]:
    """Return the settings class and path of a problem.

    Without the task's type, which pydantic adds to the path.
    """
    if loc[:1] == ("task",) and loc[1:2] and loc[1] in drawn_alone(values.get("targets")):
        return kind, ("targets", "0", *loc[1:])
    if loc[:2] == ("task", "targets") and "targets" in values:
        # A mask's own settings stand beside its name; see ``task_of_targets``.
        return kind, (*loc[1:3], *(loc[4:] if loc[3:4] == ("mask",) else loc[3:]))
    if loc[:1] == ("task",) and loc[1:2]:
        return task_class(_task_section(values)["type"]).Settings, loc
    if loc[:1] == ("strategy",) and loc[1:2]:
        strategy = values["strategy"]
        return algorithm_class(strategy if isinstance(strategy, str) else strategy["name"]).Settings, loc
    return kind, loc


def _task_section(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``task``, as the job has it or as its targets make it."""
    task = values.get("task")
    return task_of_targets(values["targets"], task, values.get("model")) if "targets" in values else dict(task or {})


def _explained(values: Mapping[str, Any], problem: Any, loc: tuple[str, ...]) -> str | None:
    """Return a better message for a problem, or None."""
    if problem["type"] == "unknown_plugin":
        return f"{'.'.join(loc)}: {problem['msg']}"
    if problem["type"] != "extra_forbidden" or "targets" not in values:
        return None
    if loc[:1] == ("targets",):
        beside = ", ".join(settings_of_target(values["targets"], loc[1:]))
        return f"unknown setting {'.'.join(loc)}" + (f"; allowed here: {beside}" if beside else "")
    if loc[:1] != ("task",):
        return None
    masks = [target for target in _task_section(values)["targets"] if "mask" in target]
    if masks and loc[1] in task_class(masks[0]["mask"]["type"]).Settings.model_fields:
        return (
            f"unknown setting {'.'.join(loc)}: it is one of the mask {masks[0].get('name')}, which stands beside other "
            f"targets. Say it there, under targets: {{kind: mask, {loc[1]}: …}}"
        )
    return None
