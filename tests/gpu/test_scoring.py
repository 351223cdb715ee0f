from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.inputs import Prepared
from oncofed.data.spec import DataSpec
from oncofed.tasks import Segmentation, SegmentationSpec

pytestmark = pytest.mark.gpu

_GPU = torch.device("cuda")


class _Levels(nn.Module):
    """Tells three classes by intensity, by values that half precision holds exactly or nearly."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([0.5 - image, 0.5 - (image - 1).abs(), image - 1.5], 1)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("spacing", [None, (1.2, 1.2, 1.7)])
def test_figures_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, spacing: tuple[float, ...] | None, mirror: bool) -> None:
    label = np.zeros((60, 50, 40), np.uint8)
    label[10:40, 10:35, 5:30], label[20:30, 15:25, 10:20] = 1, 2
    for name, values in (("image", label.astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1, 1.5, 1])), tmp_path / f"{name}.nii.gz")
    case = Case("a", "a", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    spec = SegmentationSpec(classes={1: "shell", 2: "core"}, mirror=mirror, keep_largest=(1,))
    task = Segmentation(spec, DataSpec(dataset="any", patch=(32, 32, 32), spacing=spacing))
    there = task.evaluate(_Levels().to(_GPU), [case], _GPU, detailed=True)
    here = task.evaluate(_Levels(), [case], torch.device("cpu"), detailed=True)
    assert there.by_class == pytest.approx(here.by_class, abs=1e-3)
    assert there.extra_metrics == pytest.approx(here.extra_metrics, abs=1e-2)


class _Wide(Segmentation):
    """Scores a case of 512×512×400 that lies in memory."""

    given: Prepared

    def prepared(self, case: Case) -> Prepared:
        return self.given


def test_a_hundred_and_five_classes_fit_into_twelve_gigabytes() -> None:
    names = {n: f"class {n}" for n in range(1, 106)}
    task = _Wide(SegmentationSpec(classes=names), DataSpec(dataset="any", patch=(96, 96, 96)))
    affine = torch.eye(4, dtype=torch.float64)
    label = torch.zeros(512, 512, 400, dtype=torch.uint8)
    label[100:300] = 7
    task.given = {
        "image": torch.randn(1, 512, 512, 400),
        "label": label,
        "image.affine": affine,
        "label.affine": affine,
    }
    network = nn.Conv3d(1, 106, 1).to(_GPU).eval()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(_GPU)
    figures = task.evaluate_case(network, None, _GPU, False)  # type: ignore[arg-type]
    assert torch.cuda.max_memory_allocated(_GPU) < 12e9
    assert 0 <= figures["dice.class 7"] <= 1
