"""What leaves a site of a federated profile."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.statistics_spec import Bin, Histogram, HistogramType, StatisticConfig
from nvflare.app_common.app_constant import StatisticsConstants as StC
from nvflare.app_common.executors.statistics.statistics_task_handler import StatisticsTaskHandler
from nvflare.fuel.utils import fobs

from oncofed.audit import AuditLog
from oncofed.data.profile_plan import ProfilePlan
from oncofed.flare.security.outbound_filter import STOPPED, OutboundFilter
from oncofed.flare.statistics import CaseStatistics, SmallCounts, site_settings, statistic_configs
from oncofed.job.flare import export_job
from oncofed.job.spec import ProfileJobSpec

_PLAN = ProfilePlan(dataset="balls", classes={1: "shell"})
_DATASET = "cases"
_FIRST, _SECOND = StC.ordered_statistics
_DISGUISED = "pixels or text that are called statistics"


def _context(root: Path, config: dict[str, Any]) -> FLContext:
    folder = root / "config"
    folder.mkdir(exist_ok=True)
    (folder / "config_fed_client.json").write_text(json.dumps(config))
    fl_ctx = FLContext()
    workspace = SimpleNamespace(get_site_config_dir=lambda: str(root), get_root_dir=lambda: str(root))
    fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace, private=True)
    fl_ctx.set_prop(FLContextKey.APP_ROOT, str(root), private=True)
    return fl_ctx


def _send(fl_ctx: FLContext, reply: Shareable, task: str = StC.FED_STATS_TASK) -> Shareable:
    fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    OutboundFilter().handle_event(EventType.AFTER_TASK_RESULT_FILTER, fl_ctx)
    return reply


def _statistics(step: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a step's statistics of twenty patients, as FLARE's executor and the cleanser leave them."""
    site = CaseStatistics(_PLAN.model_dump(mode="json"))
    ranges = statistic_configs(_PLAN)["histogram"]
    monkeypatch.setattr(site, "_values", {n: np.linspace(*one["range"], 20) for n, one in ranges.items()})
    handler = StatisticsTaskHandler("statistics", 6)
    handler.stats_generator = site
    wanted = [StatisticConfig(n, c) for n, c in statistic_configs(_PLAN).items() if n in StC.ordered_statistics[step]]
    if step == _FIRST:  # as FLARE's controller does for a histogram
        wanted += [StatisticConfig(n, statistic_configs(_PLAN)["histogram"]) for n in (StC.STATS_MIN, StC.STATS_MAX)]
    ends = [{_DATASET: {n: one["range"][end] for n, one in ranges.items()}} for end in (0, 1)]
    means = {_DATASET: dict.fromkeys(ranges, 1.0)}
    request = Shareable(
        {
            StC.STATISTICS_TASK_KEY: step,
            StC.STATS_TARGET_STATISTICS: fobs.dumps(wanted),
            **dict(zip((StC.STATS_MIN, StC.STATS_MAX), ends, strict=True)),
            StC.STATS_GLOBAL_MEAN: means,
            StC.STATS_GLOBAL_COUNT: means,
        }
    )
    fl_ctx = FLContext()
    data = dict(handler.execute_task(StC.FED_STATS_TASK, request, fl_ctx, None))  # type: ignore[arg-type]
    data[step] = fobs.dumps(SmallCounts().apply(fobs.loads(data[step]), "west")[0])
    return data


def _message(data: dict[str, Any]) -> Shareable:
    return DXO(DataKind.STATISTICS, data=data).to_shareable()


@pytest.mark.parametrize("step", [_FIRST, _SECOND])
def test_a_profiles_statistics_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    data = _statistics(step, monkeypatch)
    job = ProfileJobSpec(schema=1, name="look", title="A look", profile=_PLAN)
    config = json.loads((export_job(job, tmp_path / "look") / "app/config/config_fed_client.json").read_text())
    reply = _send(_context(tmp_path, config), _message(dict(data)))
    assert reply.get_return_code() == ReturnCode.OK
    sent = from_shareable(reply).data
    assert fobs.loads(sent[step]) == fobs.loads(data[step])
    assert fobs.loads(sent[step])[StC.STATS_COUNT][_DATASET]
    assert sent.get(StC.STATS_FEATURES) == data.get(StC.STATS_FEATURES)
    entry = list(AuditLog(tmp_path).entries())[-1]
    assert entry["numbers"] == sum(len(by[_DATASET]) for by in fobs.loads(data[step]).values())


@pytest.mark.attack(_DISGUISED, by="the outbound filter", logged="the site's audit log: held back")
@pytest.mark.parametrize(
    ("config", "task"),
    [
        (site_settings(_PLAN), "train"),
        ({**site_settings(_PLAN), "task_result_filters": []}, StC.FED_STATS_TASK),
        ({**site_settings(_PLAN), "components": []}, StC.FED_STATS_TASK),
        ({"executors": [{"executor": {"args": {"plan": {}}}}]}, StC.FED_STATS_TASK),
    ],
)
def test_no_other_job_or_task_sends_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], task: str
) -> None:
    message = _message(_statistics(_FIRST, monkeypatch))
    reply = _send(_context(tmp_path, config), message, task)
    assert reply.get_return_code() != ReturnCode.OK
    assert STOPPED in str(reply)


@pytest.mark.attack(_DISGUISED, by="the outbound filter", logged="the site's audit log: held back")
def test_nothing_but_declared_numbers_leaves_as_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fl_ctx, step = _context(tmp_path, site_settings(_PLAN)), _SECOND
    good = _statistics(step, monkeypatch)
    name = "log2_size_right"
    bins = fobs.loads(good[step])[StC.STATS_HISTOGRAM][_DATASET][name].bins

    def sent(change: dict[str, Any]) -> Shareable:
        found = fobs.loads(good[step])
        for statistic, by_feature in change.items():
            found.setdefault(statistic, {_DATASET: {}})[_DATASET].update(by_feature)
        return _send(fl_ctx, _message({**good, step: fobs.dumps(found)}))

    def histogram(changed: list[Bin], told: str | None = None) -> dict[str, Any]:
        return {StC.STATS_HISTOGRAM: {name: Histogram(HistogramType.STANDARD, changed, told)}}

    assert sent({}).get_return_code() == ReturnCode.OK
    for change in (
        {StC.STATS_VAR: {name: "Jane Doe"}},
        {StC.STATS_VAR: {name: [1.0] * 1000}},
        {StC.STATS_VAR: {name: float("nan")}},
        {StC.STATS_VAR: {"Jane Doe": 1.0}},
        {StC.STATS_MAX: {name: 1.0}},
        {StC.STATS_COUNT: {name: 4}},
        {StC.STATS_FAILURE_COUNT: {name: 1234}},
        histogram(bins, "Jane Doe"),
        histogram([Bin(one.low_value + 0.01, one.high_value, one.sample_count) for one in bins]),
        histogram([Bin(one.low_value, one.high_value, 3) for one in bins]),
        histogram(bins * 2),
    ):
        assert sent(change).get_return_code() != ReturnCode.OK, change
    # What lies beside them stays.
    reply = _message({**good, "delta": torch.randn(8), "text": "Jane Doe"})
    reply["more"] = "Jane Doe"
    reply.set_header("note", "Jane Doe")
    assert _send(fl_ctx, reply).get_return_code() == ReturnCode.OK
    assert set(from_shareable(reply).data) == {StC.STATISTICS_TASK_KEY, step}
    assert "Jane Doe" not in str(reply)
