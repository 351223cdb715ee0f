"""Events of a run as a whole: its start, rounds, scores and end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oncofed.rounds.events.base import Event, Incident, InDigest


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The server runs a job, perhaps after a restart.

    Attributes:
        sites: registered ones.
        rounds: planned; 0 where a model is only evaluated.
        steps_per_round: optimizer steps of a site in a round.
        metric: short name of the validation score.
        strategy: name of the federated algorithm.
    """

    kind = "started"
    in_digest = InDigest.START

    sites: list[str]
    rounds: int
    steps_per_round: int
    metric: str | None = None
    strategy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed(Incident):
    """A restarted server goes on with a round."""

    kind = "resumed"
    message = "the server was started again; the run goes on with round {round}"

    round: int


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """Enough sites have joined: the first round begins.

    Attributes:
        seconds: since the server began to wait.
        sites: ``Joined.cases`` by site.
    """

    kind = "ready"
    in_digest = InDigest.START

    seconds: float
    sites: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Standardised(Event):
    """The model has the mean and spread of the table's numbers.

    Attributes:
        columns: column -> mean and spread over the sites' training patients.
        sites: that told sums, by column; None in records of older versions.
    """

    kind = "standardised"
    in_digest = InDigest.START
    sparse = True

    columns: dict[str, list[float]]
    sites: dict[str, list[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class NotStandardised(Incident):
    """No site told the sums of some of the table's numbers."""

    kind = "not_standardised"
    message = (
        "no site told sums of {columns}: the middle and a quarter of the plausible range stand for mean and spread"
    )

    columns: str


@dataclass(frozen=True, kw_only=True)
class TemplateNotAgreed(Incident):
    """No site told the sums of some of the template's numbers."""

    kind = "template_not_agreed"
    message = "no site told sums of {columns}: published values stand for them in the template of stains"

    columns: str


@dataclass(frozen=True, kw_only=True)
class IntensitiesNotAgreed(Incident):
    """No site told the sums of its images' intensities."""

    kind = "intensities_not_agreed"
    message = "no site told sums of {columns}: there is no template of them, and images are only standardised"

    columns: str


@dataclass(frozen=True, kw_only=True)
class Harmonized(Event):
    """The sites agreed on what ComBat makes alike.

    Attributes:
        sites: that told sums -> group -> how far their means lie from the common one, in spreads, before and after, and
            the factor by which their spreads differ, before and after.
        patients: behind the sums, by site.
        constant: numbers of a group that never vary, and stay as they are.
    """

    kind = "harmonized"
    in_digest = InDigest.START
    sparse = True

    sites: dict[str, dict[str, list[float]]]
    patients: dict[str, int]
    constant: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class NotKept(Incident):
    """The server could not write a round's state or model."""

    kind = "not_kept"
    message = "the server could not keep round {round} ({reason}): free some space there"

    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The model after a round was scored on validation cases.

    Attributes:
        round: number of the round, 0 before the first.
        mean: over the sites that have a score; None where none has.
        sites: score by site.
        by_class: site -> class or target -> score, of those that at least five patients tell.
        summed: of a job whose scores are summed, ``SummedScores`` as plain values; no site's is known.
    """

    kind = "validation"

    round: int
    mean: float | None
    sites: dict[str, float | None]
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    summed: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RoundEnded(Event):
    """A round made a new model.

    Attributes:
        round: its number, from 1.
        seconds: wall time.
        slowest_site_s: seconds that the slowest site trained and validated.
        losses: mean training loss by site.
        cases: training cases by site.
        participation: what became of each site, as ``RoundState.participation`` returns it.
        loss: mean over the sites, where no site's is known.
        similarity: of each site's update to the others', where all sites agreed to it.
    """

    kind = "round"

    round: int
    seconds: float
    slowest_site_s: float
    losses: dict[str, float]
    cases: dict[str, int] | None = None
    participation: dict[str, Any] | None = None
    loss: float | None = None
    similarity: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Summed(Event):
    """Masked updates were added up, and the sum unmasked.

    Attributes:
        round: number of the round.
        attempt: of the round, from 1.
        sites: whose updates are in the sum.
        lost: sites of the roster whose updates are not.
        threshold: sites without whose shares no mask could be lifted.
        seconds: from the roster to the sum.
        split: of the cases whose scores were added up; empty: updates were.
        scored: number of sites whose scores are in the sum.
    """

    kind = "summed"

    round: int
    attempt: int
    sites: list[str]
    lost: list[str]
    threshold: int
    seconds: float
    split: str = ""
    scored: int = 0


@dataclass(frozen=True, kw_only=True)
class SumFailed(Incident):
    """What sites masked could not be added up; updates are asked for again."""

    kind = "sum_failed"
    message = "round {round}: what sites masked gave no sum ({reason})"

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Incident):
    """Scores have not improved for the job's patience."""

    kind = "early_stop"
    message = "no better score since round {best_round}: the run ends after round {round}"

    round: int
    best_round: int


@dataclass(frozen=True, kw_only=True)
class StepsSpent(Incident):
    """A job with differential privacy has no steps left for another round."""

    kind = "steps_spent"
    message = "the run ends after round {round}: {reason}"

    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CrossSite(Event):
    """A site's model was scored on all test cases.

    Attributes:
        model: site that trained it.
        scores: by site that tested it.
    """

    kind = "cross_site"

    model: str
    scores: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run has ended well.

    Attributes:
        best_round: whose model was kept.
        best_validation: its validation score, where finite.
        test: evaluation of that model on test cases by site; empty where they stay unseen.
        personal: the same of personal models.
        cross_site: test score by site of the model and site of the cases; None where the job asks for none.
        pooled: test over the patients of all sites; this and the next three as ``OverSites`` writes them.
        paired: comparison with another model.
        calibration: how sure the model should be.
        attention: whether it shows what answers rest on.
        summed: of a job whose scores are summed, ``SummedScores`` on test cases as plain values.
        gains: what each site's kept model gains, as ``privacy.gains.gain_numbers`` tells it.
    """

    kind = "finished"

    best_round: int
    best_validation: float | None
    test: dict[str, dict[str, Any]]
    personal: dict[str, dict[str, Any]] | None = None
    cross_site: dict[str, dict[str, float | None]] | None = None
    pooled: dict[str, Any] | None = None
    paired: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    attention: dict[str, Any] | None = None
    summed: dict[str, Any] | None = None
    gains: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Somebody aborted the job."""

    kind = "stopped"


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The job cannot go on."""

    kind = "failed"

    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfileStarted(Event):
    """The server gathers statistics of the sites' data."""

    kind = "started"

    sites: list[str]


@dataclass(frozen=True, kw_only=True)
class ProfileFinished(Event):
    """Statistics of all sites are there.

    Attributes:
        statistics: value by name of the statistic and of the feature.
        patients: by site.
    """

    kind = "finished"

    statistics: dict[str, dict[str, Any]]
    patients: dict[str, int]
