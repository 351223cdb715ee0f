from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load

from oncofed.data.cases import Case
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_image
from oncofed.models import ModelSpec, Request, build_network
from oncofed.models.bundle import BUNDLE_NAME, write_bundle
from synthetic import make_volume

DATA = DataSpec(dataset="balls", spacing=(1.5, 1.5, 1.5), patch=(16, 16, 16))
REQUEST = Request(ModelSpec(channels=(4, 8)), 1, 3, 3, DATA.patch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = build_network(REQUEST, seed=9).state_dict()
    return write_bundle(tmp_path, "Two balls", REQUEST, DATA, {1: "shell", 2: "core"}, weights)


@pytest.mark.filterwarnings("ignore")
def test_monai_loads_the_network_with_its_weights(bundle: Path) -> None:
    network = load(BUNDLE_NAME, bundle_dir=bundle.parent)
    expected = build_network(REQUEST, seed=9)
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network.eval()(image), expected.eval()(image))


def test_its_preprocessing_is_the_one_it_was_trained_with(bundle: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(make_volume(2)[0], np.diag([-1.0, 1, 2, 1]))
    nib.save(image, tmp_path / "image.nii.gz")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    theirs = parser.get_parsed_content("preprocessing")({"image": tmp_path / "image.nii.gz"})["image"]
    ours = load_image(DATA)(Case("a", "a", tmp_path / "image.nii.gz", tmp_path))["image"]
    torch.testing.assert_close(theirs.as_tensor(), ours.as_tensor(), atol=1e-5, rtol=0)


def test_no_configuration_holds_code(bundle: Path) -> None:
    for file in (bundle / "configs").glob("*.json"):
        values = json.loads(file.read_text())
        assert "$" not in json.dumps({k: v for k, v in values.items() if k != "schema"})
