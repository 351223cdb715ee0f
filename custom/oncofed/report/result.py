"""``result.json``: a run's result, for other programs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.data.slides.tile_quality import FLAGS
from oncofed.errors import DataError
from oncofed.privacy.statement import PrivacyStatement
from oncofed.report.gains import SiteGain
from oncofed.report.preparation import EncoderUse, HarmonizationUse, StainUse
from oncofed.report.sums import ScoresOfAll, SumsUsed
from oncofed.settings import first_problem
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.deletion import Deletion
from oncofed.tasks.differences import Difference
from oncofed.tasks.over_sites import PooledTest
from oncofed.tasks.targets import TargetDetails

Backend = Literal["federation", "simulate"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class SiteTiles(_Part):
    """Tiles of a site's training slides, where five patients or more stand behind them."""

    patients: int
    tiles: int = Field(description="with tissue")
    pen: int | None = Field(None, description="tiles with it; null: on the slides of one to four patients")
    fold: int | None = None
    blur: int | None = None
    bubble: int | None = None

    @property
    def shares(self) -> dict[str, float | None]:
        """Flag -> share of the tiles that have it."""
        found = {name: getattr(self, name) for name in FLAGS}
        return {name: None if count is None else count / max(self.tiles, 1) for name, count in found.items()}


class SiteResult(_Part):
    """Scores of each model on a site's held-out patients."""

    train_cases: int
    validation_cases: int
    test_cases: int
    skipped_cases: int = 0
    alone: float | None = None
    federated: float | None = None
    pooled: float | None = None
    table: float | None = Field(None, description="of the covariates alone, trained on all sites' patients")
    mean_pooling: float | None = Field(None, description="of the mean of a slide's tiles, of all sites' patients")
    max_pooling: float | None = Field(None, description="of the greatest of each feature over its tiles, likewise")
    personal: float | None = Field(None, description="of the site's own model, where the strategy trains one (Ditto)")
    in_mean: list[str] | None = Field(
        None, description="targets whose figures each mean here is of, those that all models have; null: no targets"
    )
    by_class: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="model -> class -> mean over test patients"
    )
    more: dict[str, dict[str, float]] = Field(default_factory=dict, description="model -> further figures by name")
    patients: dict[str, int] = Field(
        default_factory=dict, description="train, validation, test -> patients, where they are known"
    )
    patients_behind: dict[str, int] = Field(
        default_factory=dict, description="class or further figure of the federated model -> patients, where known"
    )
    interval: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="model -> 95 % interval of the metric, bootstrap over test patients"
    )
    tiles: SiteTiles | None = Field(None, description="of training slides; null: not told, or no slides")


class Means(_Part):
    """Means over the sites."""

    alone: float | None = None
    federated: float | None = None
    pooled: float | None = None
    table: float | None = None
    mean_pooling: float | None = None
    max_pooling: float | None = None

    @property
    def known(self) -> dict[str, float]:
        """Those that are known, by model, in the order in which people read them."""
        return {name: value for name, value in self if value is not None}


class Fairness(_Part):
    """How evenly the federated model serves the sites."""

    worst_site: str
    worst: float
    spread: float = Field(description="standard deviation over the sites")


class Timing(_Part):
    """Wall times in seconds."""

    total_s: float = 0
    startup_s: float = Field(0, description="until all sites had loaded their data")
    federation_s: float = 0
    baselines_s: float = 0
    rounds_s: list[float] = []
    train_s_max_per_round: list[float] = Field([], description="slowest site's training and validation")
    overhead_s_per_round: float | None = Field(None, description="mean of rounds_s less train_s_max_per_round")


class Bytes(_Part):
    """Tensor bytes of a round, without framing and TLS."""

    to_sites_per_round: int = 0
    to_server_per_round: int = 0


class Result(_Part):
    """A run."""

    schema_: Literal[1] = Field(1, alias="schema")
    job: str
    title: str = ""
    status: Literal["completed", "failed", "stopped"]
    error: str | None = None
    backend: Backend
    rounds: int
    best_round: int | None = None
    select: str = Field("mean", description="how that round was chosen: the job's evaluation.select")
    metric: str = "dice"
    metric_name: str = Field("Dice", description="name of the metric for people")
    classes: list[str] = []
    targets: dict[str, TargetDetails] = Field({}, description="of a job with named targets, by name")
    seed: int
    data_note: str = ""
    sites: dict[str, SiteResult] = {}
    mean: Means = Means()
    strategy: str = "fedavg"
    fairness: Fairness | None = None
    cross_site: dict[str, dict[str, float | None]] | None = Field(
        None, description="site whose last model it is -> site whose test cases they are -> score"
    )
    gains: dict[str, SiteGain] | None = Field(
        None, description="site -> model that it keeps, worst first; null: the job has no personalization"
    )
    contributions: dict[str, float] | None = Field(
        None,
        description="site -> likeness of its updates to the others', weighted by what rounds gained, least first; "
        "null: the job does not ask",
    )
    calibration: Calibration | None = Field(None, description="how sure the model should be; null: not known")
    pooled_test: PooledTest | None = Field(None, description="the test patients of all sites together")
    paired_test: Difference | None = Field(None, description="this model less the one that it was compared with")
    attention: Deletion | None = Field(None, description="whether slides' attention shows what answers rest on")
    attention_left_out: str = Field("", description="why that was not tested, of a model of slides")
    encoder: EncoderUse | None = Field(None, description="of slides' tiles; null: the job has none")
    stain: StainUse | None = Field(None, description="what was done about stains; null: nothing")
    harmonization: HarmonizationUse | None = Field(
        None, description="what was done about sites that measure differently; null: nothing"
    )
    privacy: PrivacyStatement | None = Field(None, description="what it promises each patient; null: nothing")
    baselines_have_noise: bool = Field(
        False,
        description="the models to compare with, such as alone and pooled, were trained with the job's noise, too",
    )
    sums: SumsUsed | None = Field(None, description="of masked updates; null: the server was given each update")
    scores_of_all: ScoresOfAll | None = Field(
        None, description="test scores over all sites, where no single site's are known; null: they are"
    )
    lost_sites: dict[str, str] = {}
    participation: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="round -> sites asked, in time, late, refused, lost and missing"
    )
    incidents: list[dict[str, Any]] = Field(default_factory=list, description="events for users, in order")
    curves: dict[str, Any] = Field(default_factory=dict, description="validation and training loss by round")
    timing: Timing = Timing()
    bytes: Bytes = Bytes()
    environment: dict[str, str] = {}

    @property
    def models(self) -> list[str]:
        """The models to show scores of, in the order in which people read them.

        The federated one is shown without a score, too: a column that is gone says nothing.
        """
        known = self.mean.known
        return [name for name in Means.model_fields if name in known or (name == "federated" and self.sites)]

    @property
    def is_of_same_targets(self) -> bool:
        """Whether the federated scores of all sites are means over the same targets, and can be compared."""
        return len({tuple(site.in_mean or ()) for site in self.sites.values() if site.federated is not None}) < 2

    @property
    def preparation(self) -> list[tuple[str, str]]:
        """What images and values went through before the network, for people: what and how."""
        return [line for used in (self.encoder, self.stain, self.harmonization) if used for line in used.said()]

    def write(self, folder: Path) -> Path:
        """Write ``folder/result.json`` atomically, and return it."""
        path = folder / "result.json"
        write_whole(path, self.model_dump_json(indent=2, by_alias=True) + "\n")
        return path


def read_result(folder: Path) -> Result:
    """Read ``folder/result.json``.

    Raises:
        DataError: it is not a result.
        OSError: it cannot be read.
    """
    path = folder / "result.json"
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: no result of oncofed ({first_problem(error)}). Delete the folder, or repair it."
        ) from None
