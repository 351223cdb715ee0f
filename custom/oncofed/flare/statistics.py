"""A federated profile: FLARE's statistics workflow over the sites' cases.

Only counts, sums and histograms with ranges that the job fixes leave a site: no smallest or largest value, and no
number of fewer than ``minimum_count`` patients.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.statistics_spec import Bin, DataType, Feature, Histogram, HistogramType, Statistics
from nvflare.app_common.app_constant import StatisticsConstants as StC
from nvflare.app_common.statistics.statistics_privacy_cleanser import StatisticsPrivacyCleanser
from nvflare.app_common.workflows.statistics_controller import StatisticsController

from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.data.profile import case_values, features
from oncofed.data.profile_plan import ProfilePlan
from oncofed.errors import OncofedError
from oncofed.flare.folders import hand_over, local_folder, state_folder
from oncofed.flare.security.admission import admit_job
from oncofed.privacy.small_counts import suppress_small_counts
from oncofed.rounds.events import EVENTS_FILE, Event, EventLog, Failed, ProfileFinished, ProfileStarted
from oncofed.suppression import LEAST_PATIENTS

DATASET = "cases"


def statistic_configs(plan: ProfilePlan) -> dict[str, Any]:
    """Return the statistics that FLARE's controller requests."""
    ranges = {name: (low, high) for name, low, high in features(plan.modality, plan.dimensions, plan.classes)}
    histogram = {name: {"bins": plan.bins, "range": list(pair)} for name, pair in ranges.items()}
    return {"count": {}, "sum": {}, "mean": {}, "var": {}, "stddev": {}, "histogram": histogram}


def site_settings(plan: ProfilePlan) -> dict[str, Any]:
    """Return what a profile runs at its sites, as FLARE's client configuration has it.

    A site's outbound filter lets statistics through for this configuration alone.
    """
    ranges = {name: [low, high] for name, low, high in features(plan.modality, plan.dimensions, plan.classes)}
    privacy = {"minimum_count": plan.minimum_count, "noise": plan.noise, "ranges": ranges}
    executor = {
        "path": "nvflare.app_common.executors.statistics.statistics_executor.StatisticsExecutor",
        "args": {"generator_id": "statistics", "precision": 6},
    }
    cleaned = {
        "path": "nvflare.app_common.filters.statistics_privacy_filter.StatisticsPrivacyFilter",
        "args": {"result_cleanser_ids": ["small_counts"]},
    }
    return {
        "executors": [{"tasks": [StC.FED_STATS_TASK], "executor": executor}],
        "components": [
            {
                "id": "statistics",
                "path": "oncofed.flare.statistics.CaseStatistics",
                "args": {"plan": plan.model_dump(mode="json")},
            },
            {"id": "small_counts", "path": "oncofed.flare.statistics.SmallCounts", "args": privacy},
        ],
        "task_result_filters": [{"tasks": [StC.FED_STATS_TASK], "filters": [cleaned]}],
    }


class FederatedProfile(StatisticsController):
    """Requests each site's statistics, and records their sum.

    Args:
        plan: the job's ``ProfilePlan`` as a dictionary.
        min_sites: fewest sites that must reply; None: all that the job started with.
    """

    def __init__(self, plan: dict[str, Any], min_sites: int | None = None) -> None:
        self._plan = ProfilePlan.model_validate(plan)
        super().__init__(
            statistic_configs(self._plan), "", precision=6, min_clients=min_sites, enable_pre_run_task=False
        )
        self._log: EventLog | None = None

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the run's record."""
        super().start_controller(fl_ctx)
        self._log = EventLog(state_folder(fl_ctx) / EVENTS_FILE)
        self._record(ProfileStarted(sites=sorted(c.name for c in fl_ctx.get_engine().get_clients())))

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> Any:
        """Run FLARE's workflow; record the reason of a failure.

        A failure ends the job.
        """
        result = super().control_flow(abort_signal, fl_ctx)
        if result is False and not abort_signal.triggered:
            self._fail("not every site answered; each site's own log says why", fl_ctx)
        return result

    def post_fn(self, task_name: str, fl_ctx: FLContext) -> None:
        """Record the combined statistics and the sites' patient counts."""
        counts = self.client_statistics.get(StC.STATS_COUNT, {})
        sites = {site: max(by.get(DATASET, {}).values(), default=0) for site, by in counts.items()}
        combined = {
            statistic: {name: _plain(value) for name, value in by.get(DATASET, {}).items()}
            for statistic, by in self.global_statistics.items()
            if statistic not in {StC.STATS_MIN, StC.STATS_MAX, StC.STATS_VAR, StC.STATS_FAILURE_COUNT}
        }
        if not any(sites.values()):
            self._fail(f"no site has {self._plan.minimum_count} patients, the fewest behind any number", fl_ctx)
            return
        self._record(ProfileFinished(statistics=combined, patients={s: round(n) for s, n in sites.items()}))

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Close the run's record."""
        if self._log:
            self._log.close()
        hand_over(fl_ctx)

    def _fail(self, reason: str, fl_ctx: FLContext) -> None:
        self._record(Failed(reason=reason))
        self.system_panic(reason, fl_ctx)

    def _record(self, event: Event) -> None:
        if self._log:
            self._log.write(event)


class CaseStatistics(Statistics):
    """Statistics of a site's registered dataset.

    Each patient has one value.

    Args:
        plan: the job's ``ProfilePlan`` as a dictionary.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self._plan = ProfilePlan.model_validate(plan)
        self._values: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}

    def initialize(self, fl_ctx: FLContext) -> None:
        """Read the site's dataset.

        Errors go to the site's local log; the reported ones name no path or case.
        """
        plan = self._plan
        try:
            admit_job(fl_ctx, plan.dataset)
            folder = dataset_folder(local_folder(fl_ctx) / DATASETS_FILE, fl_ctx.get_identity_name(), plan.dataset)
            found = case_values(folder, plan.modality, plan.dimensions, plan.classes)
        except OncofedError as error:
            self.log_error(fl_ctx, str(error), fire_event=False)
            found = {}
        for name, low, high in features(plan.modality, plan.dimensions, plan.classes):
            self._values[name] = np.clip(np.asarray(found.get(name, ()), dtype=np.float64), low, high)

    def features(self) -> dict[str, list[Feature]]:
        """Return all features that the job declares."""
        return {DATASET: [Feature(name, DataType.FLOAT) for name in self._values]}

    def count(self, dataset_name: str, feature_name: str) -> int:
        """Return the number of patients with the feature."""
        return len(self._values[feature_name])

    def failure_count(self, dataset_name: str, feature_name: str) -> int:
        """Return 0: unreadable cases were set aside before."""
        return 0

    def sum(self, dataset_name: str, feature_name: str) -> float:
        """Return the sum over patients."""
        return float(self._values[feature_name].sum())

    def mean(self, dataset_name: str, feature_name: str) -> float:
        """Return the mean over patients, 0 without any."""
        values = self._values[feature_name]
        return float(values.mean()) if len(values) else 0.0

    def stddev(self, dataset_name: str, feature_name: str) -> float:
        """Return the standard deviation over patients, 0 without any."""
        values = self._values[feature_name]
        return float(values.std()) if len(values) else 0.0

    def variance_with_mean(
        self, dataset_name: str, feature_name: str, global_mean: float, global_count: float
    ) -> float:
        """Return this site's part of the overall variance."""
        squares = float(((self._values[feature_name] - global_mean) ** 2).sum())
        return squares / max(global_count - 1, 1)

    def histogram(
        self, dataset_name: str, feature_name: str, num_of_bins: int, global_min_value: float, global_max_value: float
    ) -> Histogram:
        """Return a histogram over the job's fixed range."""
        counts, edges = np.histogram(self._values[feature_name], num_of_bins, (global_min_value, global_max_value))
        bins = [Bin(float(edges[n]), float(edges[n + 1]), int(count)) for n, count in enumerate(counts)]
        return Histogram(HistogramType.STANDARD, bins)

    def max_value(self, dataset_name: str, feature_name: str) -> float:
        """Refuse: the largest value is one patient's."""
        raise NotImplementedError("the largest value is one patient's and does not leave the site")

    def min_value(self, dataset_name: str, feature_name: str) -> float:
        """Refuse: the smallest value is one patient's."""
        raise NotImplementedError("the smallest value is one patient's and does not leave the site")


class SmallCounts(FLComponent, StatisticsPrivacyCleanser):
    """Removes statistics of too few patients, and can add noise.

    A feature of too few patients is removed as a whole; for bins see ``suppress_small_counts``.

    Args:
        minimum_count: fewest patients; at least ``LEAST_PATIENTS``, whatever the job says.
        noise: scale of Laplace noise in units of one patient's largest contribution (1/epsilon for each number).
        ranges: feature -> [low, high].
        seed: for tests; None draws from the system.
    """

    def __init__(
        self,
        minimum_count: int = LEAST_PATIENTS,
        noise: float = 0.0,
        ranges: dict[str, list[float]] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._least = max(minimum_count, LEAST_PATIENTS)
        self._noise = noise
        self._ranges = ranges or {}
        self._random = np.random.default_rng(seed)

    def apply(self, statistics: dict[str, Any], client_name: str) -> tuple[dict[str, Any], bool]:
        """Clean one site's statistics in place and return them."""
        counts = dict(statistics.get(StC.STATS_COUNT, {}).get(DATASET, {}))
        for statistic, by_dataset in statistics.items():
            by_feature = by_dataset.get(DATASET, {})
            for name in list(by_feature):
                if counts.get(name, 0) < self._least or by_feature[name] is None:
                    del by_feature[name]
                elif statistic == StC.STATS_HISTOGRAM:
                    by_feature[name] = self._clean(by_feature[name])
                elif statistic in {StC.STATS_COUNT, StC.STATS_SUM, StC.STATS_MEAN, StC.STATS_VAR, StC.STATS_STDDEV}:
                    by_feature[name] = self._noisy(statistic, name, by_feature[name], counts[name])
        return statistics, True

    def _clean(self, histogram: Histogram) -> Histogram:
        counts = np.array([bucket.sample_count for bucket in histogram.bins], dtype=np.int64)
        if self._noise:
            counts = np.rint(counts + self._random.laplace(0, self._noise, len(counts))).astype(np.int64)
        counts = suppress_small_counts(counts, self._least)
        bins = [Bin(b.low_value, b.high_value, int(count)) for b, count in zip(histogram.bins, counts, strict=True)]
        return Histogram(histogram.hist_type, bins)

    def _noisy(self, statistic: str, name: str, value: float, count: int) -> float:
        if not self._noise:
            return value
        low, high = self._ranges.get(name, [0.0, 1.0])
        largest = max(abs(low), abs(high))
        # The most by which one patient can change a number.
        sensitivity = {
            StC.STATS_COUNT: 1.0,
            StC.STATS_SUM: largest,
            StC.STATS_MEAN: (high - low) / count,
            StC.STATS_VAR: (high - low) ** 2 / count,
            StC.STATS_STDDEV: (high - low) / count,
        }[statistic]
        noisy = value + float(self._random.laplace(0, self._noise * sensitivity))
        return max(noisy, 1.0 if statistic == StC.STATS_COUNT else noisy if statistic != StC.STATS_VAR else 0.0)


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return [[bucket.low_value, bucket.high_value, bucket.sample_count] for bucket in value.bins]
    return json.loads(json.dumps(value))
