"""What a federated profile may send: the numbers that it declares."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_common.abstract.statistics_spec import DataType, Feature, Histogram, HistogramType
from nvflare.app_common.app_constant import StatisticsConstants as StC
from nvflare.fuel.utils import fobs

from oncofed.data.profile import features
from oncofed.data.profile_plan import ProfilePlan
from oncofed.errors import PolicyError
from oncofed.flare.statistics import DATASET, site_settings, statistic_configs

# For a histogram FLARE asks for its range, too, and has the declared one for an answer.
_ENDS = {StC.STATS_MIN: 0, StC.STATS_MAX: 1}


class StatisticsPolicy:
    """Checks a profile's statistics before they leave a site.

    Args:
        config: the job's client configuration, as the site received it.

    Raises:
        PolicyError: it is not the configuration of a profile.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._plan = plan = _plan_of(config)
        self._ranges = {name: (low, high) for name, low, high in features(plan.modality, plan.dimensions, plan.classes)}
        self._statistics = {*statistic_configs(plan), StC.STATS_FAILURE_COUNT, *_ENDS}

    def check(self, task: str, data: Mapping[str, Any]) -> tuple[DXO, int]:
        """Check statistics.

        Args:
            task: its name.
            data: of the message.

        Returns:
            A message of them and of nothing else, and how many numbers are in it.

        Raises:
            PolicyError: they are not those that the job declares.
        """
        step = str(data.get(StC.STATISTICS_TASK_KEY))
        if task != StC.FED_STATS_TASK or step not in StC.ordered_statistics:
            raise PolicyError(f"statistics for the task {task!r}, expected {StC.FED_STATS_TASK!r} of a profile")
        try:
            found = fobs.loads(data[step])
            numbers = sum(self._count(statistic, by_dataset) for statistic, by_dataset in found.items())
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise PolicyError(f"its statistics cannot be read ({type(error).__name__})") from None
        content = {StC.STATISTICS_TASK_KEY: step, step: fobs.dumps(found)}
        if step == StC.STATS_1st_STATISTICS:  # the declared ones, whatever the message named
            content[StC.STATS_FEATURES] = fobs.dumps({DATASET: [Feature(n, DataType.FLOAT) for n in self._ranges]})
        return DXO(DataKind.STATISTICS, data=content), numbers

    def _count(self, statistic: str, by_dataset: Mapping[str, Mapping[str, Any]]) -> int:
        """Check one statistic of all features; return how many numbers it has."""
        if statistic not in self._statistics or set(by_dataset) != {DATASET}:
            raise PolicyError("a statistic that no profile declares")
        if unknown := len(by_dataset[DATASET].keys() - self._ranges.keys()):
            raise PolicyError(f"statistics of {unknown} features that the profile does not declare")
        for name, value in by_dataset[DATASET].items():
            if statistic == StC.STATS_HISTOGRAM:
                self._check_histogram(name, value)
            elif type(value) not in {int, float} or not math.isfinite(value):
                raise PolicyError(f"{statistic} of {name} is {type(value).__name__}, expected a finite number")
            elif statistic in _ENDS and value != self._ranges[name][_ENDS[statistic]]:
                raise PolicyError(f"{statistic} of {name} is not the end of the range that the profile declares")
            elif statistic == StC.STATS_FAILURE_COUNT and value:
                raise PolicyError(f"{statistic} of {name}, expected 0: a profile sets unreadable cases aside before")
            elif statistic == StC.STATS_COUNT and value < self._plan.minimum_count and not self._plan.noise:
                raise PolicyError(f"{name} is of fewer than {self._plan.minimum_count} patients")
        return len(by_dataset[DATASET])

    def _check_histogram(self, name: str, found: Any) -> None:
        if not isinstance(found, Histogram) or found.hist_type != HistogramType.STANDARD or found.hist_name is not None:
            raise PolicyError(f"no plain histogram of {name}")
        edges = np.histogram_bin_edges((), self._plan.bins, self._ranges[name]).tolist()
        expected = list(itertools.pairwise(edges))
        if found.bins and [(one.low_value, one.high_value) for one in found.bins] != expected:
            raise PolicyError(f"the bins of {name} are not those that the profile declares")
        for count in (one.sample_count for one in found.bins):
            if type(count) is not int or 0 != count < self._plan.minimum_count:
                raise PolicyError(f"a bin of {name} is of fewer than {self._plan.minimum_count} patients")


def _plan_of(config: Mapping[str, Any]) -> ProfilePlan:
    """Return a profile's plan, if the configuration is the one that it is exported with."""
    try:
        plan = ProfilePlan.model_validate(config["components"][0]["args"]["plan"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise PolicyError("statistics of a job that is no profile") from None
    expected = json.loads(json.dumps(site_settings(plan)))
    if any(config.get(name) != value for name, value in expected.items()):
        raise PolicyError("statistics of a job whose configuration is not a profile's")
    return plan
