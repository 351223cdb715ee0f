from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.manifest import Entry, read_manifest
from oncofed.data.partition import deal_in_parts
from oncofed.data.register import RegisterOptions, register
from oncofed.data.skew import Skew, deal_skewed, parse_skew
from oncofed.errors import DataError, SpecError
from synthetic import make_site


def _groups(patients: int, kinds: int) -> dict[str, str]:
    return {f"p{number:03}": f"g{number % kinds}" for number in range(patients)}


@pytest.mark.parametrize(
    ("text", "skew"),
    [
        ("none", Skew("none")),
        ("size", Skew("size", 0.5)),
        ("size:0.8", Skew("size", 0.8)),
        ("dirichlet:0.3", Skew("dirichlet", 0.3)),
    ],
)
def test_a_skew_is_read_as_typed(text: str, skew: Skew) -> None:
    assert parse_skew(text) == skew


@pytest.mark.parametrize(
    "text",
    ["dirichlet", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "size:1.5", "size:x", "none:1", "dirichlet:inf"],
)
def test_a_mistyped_skew_is_answered_with_what_is_allowed(text: str) -> None:
    with pytest.raises(SpecError, match=r"expected none, size, size:RATIO .* or dirichlet:ALPHA"):
        parse_skew(text)


@settings(deadline=None, max_examples=60)
@given(
    patients=st.integers(12, 80),
    sites=st.integers(2, 4),
    skew=st.sampled_from([Skew("none"), Skew("size", 0.5), Skew("size", 0.05), Skew("dirichlet", 5.0)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_patient_is_at_one_site_and_the_deal_repeats(patients: int, sites: int, skew: Skew, seed: int) -> None:
    groups = _groups(patients, 3)
    parts = deal_skewed(groups, sites, skew, 2, seed)
    assert sorted(patient for part in parts for patient in part) == sorted(groups)
    assert min(map(len, parts)) >= 2
    assert parts == deal_skewed(groups, sites, skew, 2, seed)


def test_sizes_fall_by_the_ratio() -> None:
    sizes = [len(part) for part in deal_skewed(_groups(150, 3), 4, Skew("size", 0.5), 1, 1)]
    assert sizes == [80, 40, 20, 10]
    assert [len(part) for part in deal_skewed(_groups(10, 2), 4, Skew("none"), 1, 1)] == [3, 3, 2, 2]
    # The ratio holds down to the fewest patients of a site.
    assert [len(part) for part in deal_skewed(_groups(16, 2), 3, Skew("size", 0.5), 3, 1)] == [9, 4, 3]


def test_a_small_alpha_gathers_groups_and_a_large_one_spreads_them() -> None:
    groups = _groups(400, 4)

    def unevenness(alpha: float) -> float:
        found = []
        for seed in range(20):
            for part in deal_skewed(groups, 4, Skew("dirichlet", alpha), 1, seed):
                counts = Counter(groups[patient] for patient in part)
                found.append(max(counts.values()) / len(part))
        return float(np.mean(found))

    assert unevenness(0.1) > 0.65
    assert unevenness(0.1) > unevenness(1.0) + 0.1
    assert unevenness(1000.0) < 0.32


def test_a_vanishing_alpha_gives_each_group_to_one_site() -> None:
    groups = _groups(40, 8)
    parts = deal_skewed(groups, 2, Skew("dirichlet", 1e-6), 1, 3)
    homes = Counter(group for part in parts for group in {groups[patient] for patient in part})
    assert set(homes.values()) == {1}


def test_what_cannot_be_dealt_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        DataError, match=r"10 patients for training are too few for 4 sites of at least 3.*at least 12 patients"
    ):
        deal_skewed(_groups(10, 2), 4, Skew("none"), 3, 1)
    with pytest.raises(DataError, match=r"gave no 4 sites of at least 3 patients.*larger alpha"):
        deal_skewed(_groups(40, 2), 4, Skew("dirichlet", 1e-6), 3, 1)


@pytest.mark.parametrize("skew", [Skew("none"), Skew("size", 0.5), Skew("dirichlet", 1.0)])
def test_each_site_has_patients_for_training(skew: Skew) -> None:
    groups = _groups(40, 2)
    training = set(sorted(groups)[:10])
    for seed in range(5):
        for part in deal_skewed(groups, 3, skew, 2, seed, training):
            assert len(training & set(part)) >= 2
    with pytest.raises(DataError, match="10 patients for training are too few for 3 sites of at least 4"):
        deal_skewed(groups, 3, skew, 4, 1, training)


def test_masks_are_grouped_by_their_volume(tmp_path: Path) -> None:
    register(RegisterOptions(make_site(tmp_path / "source", 24), "demo", tmp_path / "set", workers=1))
    sites = deal_in_parts(tmp_path / "set", tmp_path / "sites", 2, Skew("dirichlet", 0.2), least=4, seed=2)
    assert list(sites) == ["site-1", "site-2"]
    manifests = {name: read_manifest(folder) for name, folder in sites.items()}
    patients = [entry.patient for manifest in manifests.values() for entry in manifest.entries]
    assert len(patients) == len(set(patients)) == 24

    def volume(entry: Entry) -> int:
        return sum(count for value, count in (entry.label_values or {}).items() if value != "0")

    bounds = np.quantile([volume(e) for m in manifests.values() for e in m.entries], (0.25, 0.5, 0.75))
    quarters = {n: Counter(int(np.searchsorted(bounds, volume(e))) for e in m.entries) for n, m in manifests.items()}
    shares = [quarters["site-1"][q] / (quarters["site-1"][q] + quarters["site-2"][q]) for q in range(4)]
    assert max(shares) - min(shares) > 0.5
    even = deal_in_parts(tmp_path / "set", tmp_path / "even", 2, Skew("none"), least=4, seed=2)
    assert [len(read_manifest(folder).entries) for folder in even.values()] == [12, 12]


def test_patients_of_one_group_cannot_be_skewed(tmp_path: Path) -> None:
    source = make_site(tmp_path / "source", 12)
    values = json.loads((source / "dataset.json").read_text())
    for entry in values["training"]:
        entry["tags"] = {"scanner": "A"}
    (source / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="all patients are of one group"):
        deal_in_parts(source, tmp_path / "sites", 2, Skew("dirichlet", 0.3), ["scanner"])
    with pytest.raises(DataError, match="no case has 'stain'"):
        deal_in_parts(source, tmp_path / "sites", 2, Skew("dirichlet", 0.3), ["stain"])
