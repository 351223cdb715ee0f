"""A dataset of features is checked, shown, profiled, dealt to sites and decided about as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import feature_files as made
import slide_files
from commands import Outcome
from oncofed.data.cases import read_cases, usable_cases
from oncofed.data.contract import Report, check_dataset
from oncofed.data.feature_report import WantedFeatures
from oncofed.data.features import read_features
from oncofed.data.features.names import standard_name
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import FeatureFacts, read_manifest, write_manifest
from oncofed.data.partition import deal_to_sites
from oncofed.data.profile import make_profile
from oncofed.data.register import RegisterOptions, register
from oncofed.data.resolve import resolve
from oncofed.data.spec import DataSpec
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.encoders import catalogue, catalogue_name
from oncofed.models.weights import weights_of

Run = Callable[..., Outcome]
CLASSES = {0: "normal", 1: "tumour"}
DATA = DataSpec(
    dataset="slides", modality="microscopy", channels=("red", "green", "blue"), patch=(256, 256), spacing=None
)
DIGEST = "0123456789ab" + "0" * 52


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with twelve slides' features, a table of them, and one of the slides."""
    rows = []
    for number in range(12):
        made.trident(tmp_path / f"in/s{number}.h5", made.vectors(seed=number))
        rows.append(f"s{number},p{number // 2},{CLASSES[number // 2 % 2]}")
    (tmp_path / "in/slides.csv").write_text("\n".join(["image,patient,label", *rows]))
    slide_files.tiled(tmp_path / "in/s0.tif", slide_files.stained(2048, 2048), mpp=0.25)
    return tmp_path / "in"


@pytest.fixture
def dataset(folder: Path) -> Path:
    """Return it registered."""
    out = folder.parent / "slides"
    register(RegisterOptions(folder, "slides", out, workers=1, features=FeatureOptions(digest=DIGEST, mpp=0.5)))
    return out


def check(dataset: Path, *faults: str) -> Report:
    wanted = WantedFeatures("uni", lambda facts: faults if facts.encoder == "uni" else ())
    return check_dataset(dataset, DATA, Supervision("class", CLASSES), 1, wanted)


def test_features_that_are_not_the_jobs_do_not_fit(dataset: Path) -> None:
    report = check(dataset, "features have 8 numbers a vector, those of uni have 1024")
    (row,) = (row for row in report.rows if row.aspect == "features")
    assert (row.verdict, row.expected) == ("does not fit", "of uni")
    assert row.how == "12 slides: features have 8 numbers a vector, those of uni have 1024"
    assert not report.may_train
    images = check_dataset(dataset, DATA, Supervision("class", CLASSES), 1)
    assert not [row for row in images.rows if row.aspect == "features"], "whether they fit is not known"


def test_a_check_says_encoder_weights_and_counts(dataset: Path) -> None:
    report = check(dataset)
    assert report.may_train, report.why_not
    (row,) = (row for row in report.rows if row.aspect == "features")
    assert row.found == ("uni (weights 0123456789ab…), 8 numbers a tile: 12 slides, 144 tiles of 256 pixels at 0.5 µm")
    assert sum(report.cases.values()) == 12


def test_features_of_two_encoders_do_not_train_together(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    first = manifest.training[0]
    assert isinstance(first.features, FeatureFacts)
    other = first.model_copy(update={"features": first.features.model_copy(update={"encoder": "conch"})})
    write_manifest(dataset, manifest.model_copy(update={"training": [other, *manifest.training[1:]]}))
    assert any("features of several encoders" in why for why in check(dataset).why_not)


def test_a_case_reads_its_features(dataset: Path) -> None:
    cases = usable_cases(dataset, DATA, Supervision("class", CLASSES), 1, "here").cases
    assert len(list(cases)) == 12
    for case in cases:
        assert case.features is not None
        number = int(case.name[1:])
        assert (read_features(case.features).features == made.vectors(seed=number)).all()


def test_changed_features_are_set_aside(dataset: Path, folder: Path) -> None:
    made.trident(folder / "s3.h5", made.vectors(5))
    report = check(dataset)
    assert [(problem.case, problem.what) for problem in report.set_aside] == [
        ("s3", "its features are missing or have changed; register the dataset again")
    ]


def test_a_store_that_is_rewritten_in_place_has_changed(tmp_path: Path) -> None:
    for number in range(2):
        made.lazyslide(tmp_path / f"in/s{number}.zarr", {"uni": made.vectors(seed=number)})
    (tmp_path / "in/slides.csv").write_text("image,patient,label\ns0.zarr,p0,normal\ns1.zarr,p1,tumour")
    out = tmp_path / "slides"
    register(RegisterOptions(tmp_path / "in", "slides", out, workers=1, features=FeatureOptions(digest=DIGEST)))
    assert [problem.case for problem in check(out).set_aside] == []
    zarr.open_group(tmp_path / "in/s1.zarr", mode="r+")["tables/uni_tiles/X"][:] = made.vectors(seed=5)  # type: ignore[index]
    assert [(problem.case, problem.what) for problem in check(out).set_aside] == [
        ("s1", "its features are missing or have changed; register the dataset again")
    ]


def test_copies_of_a_slides_features_are_found_and_settled(dataset: Path, folder: Path) -> None:
    (folder / "s8.h5").write_bytes((folder / "s0.h5").read_bytes())
    options = FeatureOptions(digest=DIGEST, mpp=0.5)
    register(RegisterOptions(folder, "slides", dataset, workers=1, features=options))
    (finding,) = check(dataset).findings
    assert "same file as that of another patient's s0" in finding.what
    resolve(dataset, {"copies": "keep-one"})
    assert check(dataset).may_train


def test_sites_of_a_split_read_their_features(dataset: Path, tmp_path: Path) -> None:
    sites = deal_to_sites(dataset, tmp_path / "sites", [1, 1], 0)
    counts = []
    for site in sites.values():
        cases = list(read_cases(site, DATA.split, 1, Supervision("class", CLASSES)))
        counts.append(len(cases))
        assert all(case.features and read_features(case.features).features.shape == (12, 8) for case in cases)
        assert check(site).set_aside == []
    assert sum(counts) == 12


def test_a_profile_counts_features(dataset: Path) -> None:
    profile = make_profile(dataset)[0]
    assert profile.cases == 12
    assert profile.features == {"uni (weights 0123456789ab…), 8 numbers a tile": 12}
    assert profile.shapes["right"].maximum == 2048


def test_a_look_shows_slides_with_their_tiles_and_tiles_alone(run: Run, dataset: Path) -> None:
    assert run("data", "look", dataset).status == 0
    page = (dataset / "look.html").read_text()
    assert page.count("tiles with features of uni") == 12
    assert page.count("its slide is not there") == 11
    assert "12 × 8 features of uni, 2048 × 2048 pixels, 0.25 × 0.25 µm" in page
    assert "cannot be read" not in page


def test_commands_from_weights_to_a_check(run: Run, folder: Path, tmp_path: Path) -> None:
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 9, 2, (64, 64)), 1)
    torch.save(dict(weights_of(network)), tmp_path / "model.bin")
    stated = ("--features", "--encoder", "resnet18", "--encoder-weights", tmp_path / "model.bin")
    for number in range(12):
        made.clam(folder / f"s{number}.h5", made.vectors(size=512, seed=number))
    at = ("--workspace", tmp_path / "workspace", "--dataset", "slides", "--workers", "1")
    asked = run("data", "register", folder, *stated, *at)
    assert asked.status == 3
    assert "how many pixels a side their tiles have (--tile)" in asked.text
    made_of = json.loads(
        run("data", "register", folder, *stated, *at, "--tile", "256", "--mpp", "0.5", "--json").output
    )
    shown = run("data", "register", folder, *stated, *at, "--tile", "256", "--mpp", "0.5")
    assert "0.0005 (of tiles)" in shown.text
    assert not made_of["notes"]
    facts = made_of["entries"][0]["features"]
    digest = json.loads(run("data", "encoders", "check", "resnet18", tmp_path / "model.bin", "--json").output)["digest"]
    assert (facts["encoder"], facts["size"], facts["digest"]) == ("resnet18", 512, digest)
    shown = run("data", "check", "slide_classification", "slides", "--workspace", tmp_path / "workspace")
    assert f"resnet18 (weights {digest[:12]}…), 512 numbers a tile: 12 slides, 144 tiles" in shown.text
    told = json.loads(run("data", "check", "slide_classification", "slides", *at[:2], "--json").output)
    (row,) = (row for row in told["rows"] if row["aspect"] == "features")
    assert (row["verdict"], row["expected"]) == ("does not fit", "of colour")
    assert "features are of the encoder resnet18, the job's is colour" in row["how"]


def test_vectors_of_another_length_than_the_encoders_are_noted(run: Run, folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        made.clam(folder / f"s{number}.h5", made.vectors(size=768, seed=number))
    stated = ("--features", "--encoder", "uni", "--tile", "256", "--mpp", "0.5", "--workers", "1")
    at = ("--workspace", tmp_path / "workspace", "--dataset", "slides")
    note = "vectors of uni have 768 numbers, expected 1,024 as oncofed makes them"
    assert note in run("data", "register", folder, *stated, *at).text
    assert note in json.loads(run("data", "register", folder, *stated, *at, "--json").output)["notes"][0]


def test_options_of_features_need_each_other(run: Run, folder: Path, tmp_path: Path) -> None:
    assert "Add --features" in run("data", "register", folder, "--encoder", "uni").text
    both = ("--features", "--encoder-digest", DIGEST, "--encoder-weights", tmp_path / "x")
    assert "say the same" in run("data", "register", folder, *both).text
    assert "expected 64 digits" in run("data", "register", folder, "--features", "--encoder-digest", "1234").text
    alone = run("data", "register", folder, "--features", "--encoder-weights", tmp_path / "x")
    assert "Say it: --encoder NAME" in alone.text


def test_the_catalogue_and_files_call_encoders_alike() -> None:
    for name in catalogue():
        assert standard_name(name) == name
    theirs = (
        "uni_v1 uni2 uni_v2 conch_v1 conch_v15 conch_v1_5 conch1_5 conch-1.5 virchow_v2 hoptimus0 h_optimus_1 h0mini"
    )
    theirs += " prov-gigapath phikonv2 chief_ctranspath hibou_b lunit-dino8 resnet50_trunc"
    for name in theirs.split():
        assert standard_name(name) in catalogue()
        assert catalogue_name(name) == standard_name(name)
    for name, entry in catalogue().items():
        assert standard_name(name, entry.features) == name


def test_tridents_resnet_is_not_monais(tmp_path: Path) -> None:
    for number in range(2):
        made.trident(tmp_path / f"in/s{number}.h5", made.vectors(size=1024, seed=number), encoder="resnet50")
    for encoder in (None, "resnet50"):
        options = FeatureOptions(encoder=encoder, mpp=0.5)
        found = register(RegisterOptions(tmp_path / "in", "slides", tmp_path / "set", workers=1, features=options))
        facts = [entry.features for entry in found.entries]
        assert [one and (one.encoder, one.size) for one in facts] == [("resnet50-imagenet", 1024)] * 2


def test_places_and_vectors_stay_together(dataset: Path) -> None:
    case = next(iter(read_cases(dataset, DATA.split, 1, Supervision("class", CLASSES))))
    assert case.features is not None
    assert np.array_equal(read_features(case.features).places, made.grid())
