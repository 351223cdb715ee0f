"""A site that brings slides and one that brings features of the same encoder train together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.tiles import read_tiles
from oncofed.errors import DataError, EncodersDifferError
from oncofed.job.spec import JobSpec, parse_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.rounds.events import EncoderUnknown, Event, Finished, Joined
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from synthetic import make_slides

pytest.importorskip("h5py")
pytest.importorskip("openslide")

CUT = TileSpec(64, 1.0, 0.25)
JOB = """\
schema: 1
name: both
title: Slides and features
data: {{dataset: slides, modality: microscopy, channels: [red, green, blue], patch: [64, 64], spacing: [0.001, 0.001],
  split: {{validation: 0.2, test: 0.4}}}}
task: {{type: slide_classification, classes: {{0: normal, 1: tumour}}, bag: patient,
  encoder: {{network: resnet18, weights: {weights}}}}}
model: {{network: attention_mil, arguments: {{hidden: 8, attention: 4}}}}
training: {{steps_per_round: 2, batch_size: 2, augmentation: none}}
rounds: {{number: 1}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of MONAI's ResNet-18."""
    model = ModelSpec(network="resnet18", norm="batch", arguments={"feed_forward": False})
    network = build_network(NetworkRequest(model, 3, 2, 2, (64, 64)), 0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with eight slides of six patients."""
    folder = tmp_path_factory.mktemp("slides")
    make_slides(folder / "in", 8, side=512)
    table = folder / "in" / "labels.csv"
    # Slides of one patient state the same.
    table.write_text(table.read_text().replace(",P2", ",P0").replace(",P3", ",P1"))
    register(RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=table, tiles=CUT, workers=1))
    return folder


def extracted(slides: Path, out: Path, weights: Path, digest: str | None = "") -> Path:
    """Extract a site's slides, and register their features with the digest of the weights, another or none."""
    encoder = Encoder(EncoderSpec(network="resnet18", weights=str(weights)), torch.device("cpu"))
    stated = encoder.digest.partition(" ")[2] if digest == "" else digest
    paths = sorted((slides / "in").glob("*.tif"))
    tiles = [read_tiles(path, slides / "set" / "tiles" / f"{path.stem}.npz") for path in paths]
    (out / "in").mkdir(parents=True)
    for number, features in extract(tiles, encoder):
        with TileReader(paths[number], CUT) as reader:
            step = reader.step
        places = np.stack([tiles[number].x, tiles[number].y], axis=1)
        values = features.float().numpy()
        bag = FeatureBag(values, places, step, CUT.size, CUT.mpp, "resnet18", stated)
        write_features(out / "in" / f"{paths[number].stem}.h5", bag)
    rows = (slides / "in" / "labels.csv").read_text().replace(".tif", ".h5").split("\n")
    (out / "in" / "labels.csv").write_text("\n".join(rows))
    table = out / "in" / "labels.csv"
    stating = FeatureOptions()
    register(RegisterOptions(out / "in", "slides", out / "set", "slides", table=table, workers=1, features=stating))
    return out / "set"


def site(spec: JobSpec, name: str, data: Path, folder: Path) -> InProcessSite:
    """Return a site that trains in this process."""
    context = SiteContext(site=name, data=data, state=folder / name)
    return InProcessSite(spec.plan(), spec.federation(), context)


def run(spec: JobSpec, sites: dict[str, Path], folder: Path) -> list[Event]:
    """Run a job's server and sites, and return what was recorded."""
    events: list[Event] = []
    running = {name: site(spec, name, data, folder) for name, data in sites.items()}
    train_in_memory(spec.plan(), spec.federation(), running, folder, events.append)
    return events


@pytest.fixture
def spec(weights: Path, tmp_path: Path) -> JobSpec:
    (tmp_path / "job.yaml").write_text(JOB.format(weights=weights))
    return parse_job(tmp_path / "job.yaml")


def test_slides_and_features_of_the_same_weights_train_together(
    spec: JobSpec, slides: Path, weights: Path, tmp_path: Path
) -> None:
    sites = {"east": slides / "set", "west": extracted(slides, tmp_path / "west", weights)}
    events = run(spec, sites, tmp_path / "run")
    joined = {event.site: event.cases for event in events if isinstance(event, Joined)}
    assert joined["east"]["encoder"] == joined["west"]["encoder"] != ""
    # Patients, not slides.
    assert sum(joined["west"][split] for split in ("train", "validation", "test")) == 6
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert set(finished.test) == {"east", "west"}


def test_features_of_unknown_weights_count_where_the_job_allows_it(
    spec: JobSpec, slides: Path, weights: Path, tmp_path: Path
) -> None:
    west = extracted(slides, tmp_path / "west", weights, digest=None)
    sites = {"east": slides / "set", "west": west}
    with pytest.raises(EncodersDifferError, match=r"west unknown\. .*task\.encoder\.unknown: allow"):
        run(spec, sites, tmp_path / "strict")
    encoder = {"network": "resnet18", "weights": str(weights), "unknown": "allow"}
    events = run(spec.changed({"task": {"encoder": encoder}}), sites, tmp_path / "run")
    assert [event.site for event in events if isinstance(event, EncoderUnknown)] == ["west"]
    encoder |= {"digest": "ab" * 32}
    pinned: dict[str, Any] = {"task": {"encoder": encoder}}
    with pytest.raises(DataError, match=r"8 slides: features do not say which weights made them, the job pins abab"):
        site(spec.changed(pinned), "west", west, tmp_path / "pinned").training.prepare()


def test_features_of_other_weights_end_the_run_before_it_trains(
    spec: JobSpec, slides: Path, weights: Path, tmp_path: Path
) -> None:
    west = extracted(slides, tmp_path / "west", weights, digest="cd" * 32)
    with pytest.raises(EncodersDifferError, match="west cdcdcdcdcdcd…"):
        run(spec, {"east": slides / "set", "west": west}, tmp_path / "run")
