"""The settings of a search, checked against the job's schema."""

from __future__ import annotations

import pytest

from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.job.tune.space import Setting, read_space, short_names


def _prox(spec: JobSpec) -> JobSpec:
    return spec.changed({"strategy": {"name": "fedprox"}})


def test_ranges_and_lists_are_read(spec: JobSpec) -> None:
    text = "learning_rate=1e-4..1e-2:log, strategy.mu=0|0.01|0.1, steps_per_round=2..8, training.optimizer, momentum"
    assert read_space(text, _prox(spec)).settings == (
        Setting("training.learning_rate", low=1e-4, high=1e-2, is_log=True),
        Setting("strategy.mu", choices=(0.0, 0.01, 0.1)),
        Setting("training.steps_per_round", low=2, high=8, is_integer=True),
        Setting("training.optimizer", choices=("adamw", "sgd")),
        Setting("training.momentum", low=0.8, high=0.99),
    )


def test_a_setting_alone_has_a_range_around_the_jobs_value(spec: JobSpec) -> None:
    rate, steps = read_space("learning_rate,steps_per_round", spec).settings
    assert (rate.low, rate.high, rate.is_log) == pytest.approx((0.001, 0.1, True))
    assert steps == Setting("training.steps_per_round", low=1, high=16, is_log=True, is_integer=True)
    fast = spec.changed({"training": {"learning_rate": 0.5}})
    (bounded,) = read_space("learning_rate", fast).settings
    assert 0.5 < bounded.high <= 1, "the schema allows no more than 1"


def test_all_strategies_that_fit_are_tried(spec: JobSpec) -> None:
    (setting,) = read_space("strategy", spec).settings
    assert {"fedavg", "fedprox", "scaffold"} <= set(setting.choices)
    space = read_space("strategy=fedprox|fedadam", _prox(spec))
    changed = space.changed(spec, {"strategy": "fedadam"})
    assert changed.strategy.name == "fedadam"
    assert space.own_values(_prox(spec)) == {"strategy": "fedprox"}
    assert space.own_values(spec) is None, "its own is not among them"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat", r"learning_rat is not known; is training.learning_rate meant\? expected one of"),
        ("training.lr", "expected one of training.steps_per_round, training.batch_size"),
        ("strategy.mu", "is no setting of the job's strategy, fedavg; expected one of strategy"),
        ("data.patch", "cannot be searched: it changes what scores mean"),
        ("rounds.number", "cannot be searched"),
        ("learning_rate=5", "found 5.0; Input should be less than or equal to 1"),
        ("learning_rate=0..1:log", "a range by logarithm begins above 0"),
        ("learning_rate=1e-2..1e-4", "expected the smaller number first"),
        ("learning_rate=a..b", "expected a range such as 1e-4..1e-2"),
        ("learning_rate=", "expected settings such as learning_rate=1e-4"),
        ("learning_rate,,momentum", "found 'nothing'"),
        ("learning_rate,training.learning_rate", "training.learning_rate is given twice"),
        ("steps_per_round=1.5..4", "expected whole numbers"),
        ("optimizer=adamw..sgd", "expected a range"),
        ("optimizer=adamw|adagrad", "found 'adagrad'; Input should be 'adamw' or 'sgd'"),
        ("norm=instance|layer", "found 'layer'"),
        ("training.loss", "there is no usual range"),
        ("warmup_steps=0..20000", "less than or equal to 10000"),
        ("strategy,strategy.name", "cannot be searched"),
    ],
)
def test_a_typo_is_told_with_what_is_allowed(spec: JobSpec, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_space(text, spec)


def test_a_strategy_and_its_settings_are_two_searches(spec: JobSpec) -> None:
    with pytest.raises(SpecError, match="Search the strategy first"):
        read_space("strategy,strategy.mu", _prox(spec))


def test_combinations_are_counted(spec: JobSpec) -> None:
    space = read_space("optimizer,batch_size=1|2|4", spec)
    assert space.size == len(list(space.combinations())) == 6
    assert read_space("optimizer,learning_rate", spec).size == float("inf")


def test_headings_are_short_where_they_are_unlike() -> None:
    assert short_names(["training.momentum", "strategy.momentum", "strategy.mu"]) == {
        "training.momentum": "training.momentum",
        "strategy.momentum": "strategy.momentum",
        "strategy.mu": "mu",
    }
