"""Class probabilities and evidence maps.

Tables, positions in the image, and networks that stay unchanged.
"""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from made import COLOURS, made_model, made_predictions, made_source
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from oncofed.models import ModelSpec
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs.classes import class_rows, saliency_map, write_classes, write_saliency
from oncofed.prediction.outputs.heatmap import overlay_heatmap, to_rgb
from oncofed.prediction.outputs.saliency import GRAD_CAM, OCCLUSION, Explainer, feature_layer, resample_heat
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.inferred import ClassScores
from synthetic import make_textures

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # of torch about MONAI

CLASSES = "{type: classification, classes: {0: stripes, 1: waves}}"
RESNET = "{network: resnet18}"


class Bright(nn.Module):
    """Scores class 1 by bright pixels in the first quarter."""

    def __init__(self, dimensions: int, channels: int = 1, everywhere: bool = False) -> None:
        super().__init__()
        self.features = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(channels, 2, 1, bias=False)
        nn.init.constant_(self.features.weight, 1.0)
        self.relu = nn.ReLU(inplace=True)
        self.classify = nn.Linear(2, 2, bias=False)
        self.classify.weight.data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        self.everywhere = everywhere

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        mask[(..., *(slice(side if self.everywhere else side // 2) for side in x.shape[2:]))] = 1
        maps = self.relu(self.features(x * mask))
        return self.classify(maps.flatten(2).mean(2) * 30)


class Tokens(nn.Module):
    """The same for a network of tokens, 8 pixels square."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 2, 8, 8)
        self.mix = nn.Linear(2, 2)
        nn.init.constant_(self.embed.weight, 1 / 64)
        self.mix.weight.data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        tokens = self.embed(x[..., :half, :half]).flatten(2).transpose(1, 2)
        return self.mix(tokens).mean(1)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_evidence_lies_in_the_quarter_that_the_answer_depends_on(dimensions: int) -> None:
    image = torch.rand((1, *(16,) * dimensions), generator=torch.Generator().manual_seed(0))
    found = Explainer(Bright(dimensions).eval()).explain(image, 1)
    assert found.method == GRAD_CAM
    assert found.heat.shape == (16,) * dimensions
    assert found.heat.max() == 1
    quarter = found.heat[(slice(8),) * dimensions]
    assert found.heat.sum() == pytest.approx(quarter.sum())
    assert (quarter > 0).all()


def test_a_network_of_tokens_is_explained_by_occlusion() -> None:
    image = torch.rand((1, 32, 32), generator=torch.Generator().manual_seed(0))
    found = Explainer(Tokens().eval()).explain(image, 1)
    assert found.method == OCCLUSION
    assert found.heat.max() == 1
    assert found.heat[:16, :16].mean() > 10 * found.heat[20:, 20:].mean()
    again = Explainer(Tokens().eval()).explain(image, 1)
    assert again.method == OCCLUSION


def test_a_class_without_support_has_no_evidence() -> None:
    found = Explainer(Bright(2).eval()).explain(torch.rand(1, 16, 16), 0)
    assert not found.heat.any()


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("densenet121", "class_layers.relu"), ("efficientnet-b0", "_bn1"), ("vit", None)],
)
def test_the_last_map_of_features_is_found_in_each_network(name: str, layer: str | None) -> None:
    arguments = {"hidden_size": 24, "mlp_dim": 24, "num_layers": 2, "num_heads": 2} if name == "vit" else {}
    spec = ModelSpec(network=name, arguments=arguments)
    network = build_network(NetworkRequest(spec, 1, 2, 2, (128, 128)), 0).eval()
    assert feature_layer(network, torch.zeros(1, 1, 128, 128)) == layer


def test_a_feature_map_that_the_image_bypasses_is_not_used() -> None:
    class Branches(Bright):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.flatten(1).mean(1, keepdim=True)

    assert feature_layer(Branches(2).eval(), torch.zeros(1, 1, 16, 16)) is None


def test_a_network_is_left_as_it_was() -> None:
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (64, 64)), 0).eval()
    before = copy.deepcopy(network.state_dict())
    places = [getattr(module, "inplace", None) for module in network.modules()]
    image = torch.rand(3, 64, 64)
    answer = network(image[None])
    first = Explainer(network).explain(image, 0)
    second = Explainer(network).explain(image, 0)
    assert (first.heat == second.heat).all()
    assert torch.equal(network(image[None]), answer)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [getattr(module, "inplace", None) for module in network.modules()] == places
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in network.modules() for name in hooks)
    assert not network.training


def test_without_memory_for_gradients_occlusion_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("monai.visualize.GradCAM.__call__", refuse)
    image = torch.full((1, 16, 16), 0.02)
    image[:, :8, :8] = 0.1  # brighter, the network would be so sure that no covered place changes it
    found = Explainer(Bright(2).eval()).explain(image, 1)
    assert found.method == OCCLUSION
    assert found.heat[:8, :8].mean() > found.heat[12:, 12:].mean()
    monkeypatch.setattr("monai.visualize.OcclusionSensitivity.__call__", refuse)
    with pytest.raises(DataError, match="memory is too short"):
        Explainer(Bright(2).eval()).explain(torch.rand(1, 16, 16), 1)


def _spot(tmp_path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    pixels = np.full((size[1], size[0]), 20, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 250
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    return tmp_path / "spot.png"


@pytest.mark.parametrize("size", [(150, 61), (41, 97), (64, 64), (333, 200)])
def test_evidence_of_an_image_of_any_size_lies_on_its_own_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    box = (width // 2, height // 4, width // 2 + width // 5, height // 4 + height // 5)
    source = made_source(_spot(tmp_path, size, box))
    data = DataSpec(dataset="d", modality="microscopy", patch=(64, 64))
    image = source.case.read_image()
    heat = saliency_map(Explainer(Bright(2, everywhere=True).eval()), source.case, image, data, 1).heat
    assert heat.shape == size
    x, y = np.nonzero(heat > 0.5)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(found - box).max() <= max(1, max(size) / 64)


def test_cropped_parts_of_the_image_have_no_evidence(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 100)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    source = made_source(tmp_path / "wide.png", spacing=[0.001, 0.001])
    data = DataSpec(dataset="d", modality="microscopy", patch=(64, 64), spacing=(0.001, 0.001))
    explainer = Explainer(Bright(2, everywhere=True).eval())
    heat = saliency_map(explainer, source.case, source.case.read_image(), data, 1).heat
    bright = pixels.mean() < pixels.T
    bright[:18] = bright[82:] = False
    assert ((heat > 0) == bright).all()


def test_a_map_keeps_its_place_on_a_turned_grid_and_is_zero_beyond_its_own() -> None:
    heat = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32) + 1
    affine = np.array([[0, -2, 0, 3], [2, 0, 0, -1], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    # The first axis of the other grid is the second one reversed, and it has a layer more at either end of the third.
    to_heat = np.array([[0, 1, 0, 0], [-1, 0, 0, 4], [0, 0, 1, -1], [0, 0, 0, 1.0]])
    moved = resample_heat(heat, affine, affine @ to_heat, (5, 6, 6))
    assert moved[..., 1:5] == pytest.approx(heat[:, ::-1].swapaxes(0, 1))
    assert not moved[..., [0, 5]].any()


def test_a_volume_of_three_channels_has_a_map_on_its_own_grid(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", CLASSES, RESNET, "channels: [a, b, c], patch: [32, 32, 32]")
    affine = np.array([[0, 0, 3.0, 10], [-1.5, 0, 0, 4], [0, 2.0, 0, -7], [0, 0, 0, 1]])
    values = np.zeros((24, 18, 9), np.float32)
    values[14:20, 4:8, 5:8] = 9
    paths = []
    for channel in "abc":
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{channel}.nii.gz")
        paths.append(tmp_path / f"{channel}.nii.gz")
    source = made_source(paths[0])
    source = replace(source, case=replace(source.case, more_images=tuple(paths[1:])))
    network = Bright(3, 3, everywhere=True).eval()
    predicted = CasePrediction(source, ClassScores(np.zeros(2)), np.array([0.2, 0.8]), network=network)
    written = write_saliency(predicted, model, tmp_path)
    read = nib.load(written[0])
    assert read.shape == values.shape
    assert read.affine == pytest.approx(affine)
    heat = np.asarray(read.dataobj)
    assert heat[values > 0].min() > 0.3
    assert heat[values == 0].mean() < 0.1 * heat[values > 0].mean()
    said = json.loads(written[1].read_text())
    assert (said["method"], said["name"]) == (GRAD_CAM, "waves")


def test_pictures_keep_colours_and_shade_other_values() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    assert (to_rgb(colours) == colours.swapaxes(0, 1)).all()
    deep = np.linspace(0, 60_000, 20).reshape(4, 5, 1).astype(np.uint16)
    shades = to_rgb(deep)
    assert shades.shape == (5, 4, 3)
    assert (shades[0, 0, 0], shades[-1, -1, 0]) == (0, 255)
    broken = deep.astype(np.float32)
    broken[0, 0] = np.nan
    assert to_rgb(broken)[0, 0, 0] == 0
    pixels = to_rgb(colours)
    heat = np.zeros((5, 4), np.float32)
    assert (overlay_heatmap(pixels, heat) == pixels).all()
    heat[2, 3] = 1
    assert (overlay_heatmap(pixels, heat) != pixels).any(axis=-1).nonzero() == (np.array([2]), np.array([3]))


def test_probabilities_say_whether_they_are_calibrated(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", CLASSES, RESNET)
    scores = ClassScores(np.array([2.0, -1.0]))
    source = made_source(tmp_path / "a.png")
    for temperature in (None, 2.5):
        shares = scores.probabilities(temperature or 1.0)
        (path,) = write_classes(CasePrediction(source, scores, shares, temperature=temperature), model, tmp_path)
        said = json.loads(path.read_text())
        assert said["name"] == "stripes"
        assert said["probability.stripes"] == pytest.approx(1 / (1 + np.exp(-3 / (temperature or 1))))
        assert said["probability.stripes"] + said["probability.waves"] == pytest.approx(1)
        assert (said["calibrated"], said["temperature"]) == (temperature is not None, temperature)


def test_the_table_has_a_row_for_each_case_that_has_a_class() -> None:
    figures = [{"value": n, "name": name, "probability": p} for n, (name, p) in enumerate((("a", 0.3), ("b", 0.7)))]
    records = [{"name": "one", "figures": figures}, {"name": "two", "figures": [{"value": 1, "name": "x"}]}]
    (row,) = class_rows(records)
    assert row == {
        "case": "one",
        "value": 1,
        "name": "b",
        "probability": 0.7,
        "probability.a": 0.3,
        "probability.b": 0.7,
        "calibrated": False,
    }


def test_a_model_that_keeps_its_temperature_predicts_by_it(tmp_path: Path) -> None:
    images = make_textures(tmp_path / "in", ["stripes", "waves"], 1, 64)
    shares = {}
    for name, temperature in (("plain", None), ("calibrated", 0.5)):
        made_model(tmp_path / name, CLASSES, RESNET, f"{COLOURS}, patch: [64, 64]")
        if temperature:
            said = {"temperature": temperature, "patients": 9, "sites": ["a"], "log_loss": (0.9, 0.7)}
            Calibration.model_validate({"schema": 1, **said}).write(tmp_path / name / "model")
        made_predictions(load_model(tmp_path / name), images, tmp_path / f"{name}-out", less=("evidence",))
        rows = list(csv.DictReader((tmp_path / f"{name}-out" / "classes.csv").open()))
        assert {row["calibrated"] for row in rows} == {str(temperature is not None)}
        shares[name] = np.array([float(row["probability.stripes"]) for row in rows])
    odds = {name: np.log(share / (1 - share)) for name, share in shares.items()}
    assert odds["calibrated"] == pytest.approx(2 * odds["plain"])


def test_images_of_a_folder_have_probabilities_and_evidence(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", CLASSES, RESNET, f"{COLOURS}, patch: [64, 64]")
    found = made_predictions(model, make_textures(tmp_path / "in", ["stripes", "waves"], 2, 100), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert sorted(row["case"] for row in rows) == sorted(found.made)
    for row in rows:
        folder = tmp_path / "out" / "cases" / row["case"]
        said = json.loads((folder / f"{row['case']}_classes.json").read_text())
        assert float(row["probability.stripes"]) == said["probability.stripes"]
        assert row["calibrated"] == "False"
        shown = Image.open(folder / f"{row['case']}_evidence.png")
        assert shown.size == (100, 100)
        assert json.loads((folder / f"{row['case']}_evidence.json").read_text())["method"] == GRAD_CAM
