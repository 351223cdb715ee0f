from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oncofed.models.known import find_network
from oncofed.models.model_spec import ModelSpec
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.plugins import NETWORKS
from oncofed.tasks.losses import dice_ce
from oncofed.tasks.segmentation import deep_supervision
from oncofed.training.determinism import alerts_told, make_repeatable, use_deterministic_forms

# What torch's documentation of ``use_deterministic_algorithms`` lists as without a deterministic form on CUDA, and what
# these are called where they run.
_WITHOUT = {
    "torch.nn.AvgPool3d": {"avg_pool3d_backward"},
    "torch.nn.AdaptiveAvgPool2d": {"_adaptive_avg_pool2d_backward"},
    "torch.nn.AdaptiveAvgPool3d": {"_adaptive_avg_pool3d_backward"},
    "torch.nn.AdaptiveMaxPool2d": {"adaptive_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool2d": {"fractional_max_pool2d_backward"},
    "torch.nn.FractionalMaxPool3d": {"fractional_max_pool3d_backward"},
    "torch.nn.MaxUnpool1d": {"max_unpool2d"},
    "torch.nn.MaxUnpool2d": {"max_unpool2d"},
    "torch.nn.MaxUnpool3d": {"max_unpool3d"},
    "torch.nn.functional.interpolate": {
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward",
        "_upsample_bicubic2d_aa_backward",
        "upsample_trilinear3d_backward",
    },
    "torch.nn.ReflectionPad1d": {"reflection_pad1d_backward"},
    "torch.nn.ReflectionPad2d": {"reflection_pad2d_backward"},
    "torch.nn.ReflectionPad3d": {"reflection_pad3d_backward"},
    "torch.nn.NLLLoss": {"nll_loss2d_forward"},
    "torch.nn.CTCLoss": {"_ctc_loss_backward", "_cudnn_ctc_loss"},
    "torch.nn.EmbeddingBag": {"_embedding_bag_dense_backward", "_embedding_bag_backward"},
    "torch.Tensor.put_": {"put_", "put"},
    "torch.histc": {"histc"},
    "torch.bincount": {"bincount"},
    "torch.median": {"median"},
    "torch.nn.functional.grid_sample": {"grid_sampler_2d_backward", "grid_sampler_3d_backward"},
    "torch.cumsum": {"cumsum", "cumsum_"},
    "torch.Tensor.scatter_reduce": {"scatter_reduce", "scatter_reduce_"},
    "torch.Tensor.resize_": {"_empty_affine_quantized"},
}
_NAMES = frozenset().union(*_WITHOUT.values())


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    # Where another test left deterministic forms on, torch takes interpolation apart into other operations.
    make_repeatable(1, False)
    yield
    make_repeatable(1, False)
    torch.backends.cudnn.benchmark = False


class _Log(TorchDispatchMode):
    """Notes operations without a deterministic form on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        each = name == "nll_loss2d_forward" and args[3] == 0  # without a sum there is no order
        if name in _NAMES and not each:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_list_of_operations_is_that_of_this_torch() -> None:
    text = torch.use_deterministic_algorithms.__doc__ or ""
    listed = text.split(":class:`RuntimeError` when ``mode=True``:")[1].split("In addition, several")[0]
    assert set(re.findall(r"^ +\* :\w+:`([\w.]+)`", listed, re.MULTILINE)) == set(_WITHOUT)


def _cases() -> Iterator[tuple[str, int, int]]:
    for name, network in ((name, find_network(name)) for name in sorted(NETWORKS.names())):
        # A bundle brings any network: what has no deterministic form is reported as it runs. A table's has no grid,
        # and RetinaNet's anchors need values, which device "meta" has not.
        if name not in ("bundle", "table", "retinanet"):
            for dimensions in network.dimensions:
                yield name, dimensions, 0
    yield "dynunet", 3, 2


def _operations(network: nn.Module, name: str, dimensions: int, side: int) -> list[str]:
    """Return a step's nondeterministic operations on device "meta"."""
    with torch.device("meta"), _Log() as log:
        if find_network(name).kind == "bag":
            output = network(torch.randn(2, 9, 62), torch.ones(2, 9, dtype=torch.bool))
        else:
            output = network(torch.randn(2, 1, *([side] * dimensions)))
        if find_network(name).kind == "dense":
            label = torch.zeros(2, 1, *([side] * dimensions), dtype=torch.uint8)
            loss = deep_supervision(lambda logits: dice_ce(logits, label), output, label)
        else:
            loss = nn.functional.cross_entropy(output, torch.zeros(2, dtype=torch.long))
        loss.backward()
    return log.found


_SIDES = {"hovernet": 256, "swinunetr": 64}
# The same layers in fewer blocks.
_FEWER = {"densenet121": {"init_features": 16, "growth_rate": 16, "block_config": [1, 1, 1, 1]}}
_REPLACED = {
    ("segresnet", 2): 3,
    ("segresnet", 3): 3,
    ("hovernet", 2): 5,
    ("densenet121", 3): 3,
    ("residual_unet", 3): 4,
}


@pytest.mark.parametrize(("name", "dimensions", "heads"), list(_cases()))
def test_every_network_has_a_deterministic_form_with_equal_weights(name: str, dimensions: int, heads: int) -> None:
    side = _SIDES.get(name, 32)
    channels = 62 if find_network(name).kind == "bag" else 1
    spec = ModelSpec.model_validate({"network": name, "deep_supervision": heads, "arguments": _FEWER.get(name, {})})
    request = NetworkRequest(spec, channels, 3, dimensions, (side,) * dimensions)
    network = build_network(request, 1).to("meta").train()
    names = list(network.state_dict())
    replaced = _REPLACED.get((name, dimensions), 0)
    if replaced:  # the log sees what is not replaced
        assert len(_operations(network, name, dimensions, side)) == replaced
    layers = use_deterministic_forms(network)
    assert (layers > 0) == (replaced > 0)
    assert list(network.state_dict()) == names
    assert _operations(network, name, dimensions, side) == []


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Upsample(scale_factor=2, mode="linear"), (2, 3, 5)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 5, 4)),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 3, 5, 4)),
        (nn.Upsample(scale_factor=(1.5, 3), mode="bilinear"), (1, 2, 6, 4)),
        (nn.Upsample(scale_factor=2, mode="trilinear"), (2, 3, 5, 4, 3)),
        (nn.Upsample(size=(7, 9, 4), mode="trilinear", align_corners=True), (2, 3, 5, 4, 3)),
        (nn.Upsample(size=9, mode="trilinear"), (1, 1, 5, 4, 3)),
        (nn.AvgPool3d(2), (2, 3, 6, 4, 8)),
        (nn.AvgPool3d(2, 2), (2, 3, 5, 4, 7)),
        (nn.AvgPool3d((1, 2, 3)), (1, 2, 3, 4, 7)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_form_has_the_values_and_the_gradient_of_what_it_replaces(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    network = nn.Sequential(copy.deepcopy(layer))
    assert use_deterministic_forms(network) == 1
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if len(shape) == 5:
        values = values.contiguous(memory_format=torch.channels_last_3d)
    one, other = (values.clone().requires_grad_() for _ in range(2))
    expected = layer(one.float()).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = network(other)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    for output in (expected, found):
        (output * weights).sum().backward()
    torch.testing.assert_close(other.grad, one.grad)


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool3d(3, 2),
        nn.AvgPool3d(2, padding=1),
        nn.AvgPool3d(2, ceil_mode=True),
        nn.AvgPool3d(2, divisor_override=3),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.AvgPool2d(2),
    ],
)
def test_modules_without_or_not_needing_an_equal_form_stay(layer: nn.Module) -> None:
    assert use_deterministic_forms(nn.Sequential(layer)) == 0


def test_the_switches_follow_the_job_and_cost_no_filling_of_memory() -> None:
    make_repeatable(7, True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.backends.cudnn.deterministic
    make_repeatable(7, False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_a_nondeterministic_operation_is_named_once_and_still_runs(caplog: pytest.LogCaptureFixture) -> None:
    make_repeatable(1, True)
    with warnings.catch_warnings(record=True) as others, alerts_told():
        for _ in range(2):
            values = torch.zeros(5).put_(torch.tensor([1]), torch.tensor([2.0]))
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert values[1] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].count("put_") == 1
    assert [str(warning.message) for warning in others] == ["something else"]
    caplog.clear()
    with alerts_told():
        torch.zeros(5).add_(1)
    assert not caplog.messages
