"""Networks that a job may name.

Normalisation is by instance, or by groups of channels where a network ends in single pixels: batch statistics differ
between scanners, and averaging them over sites makes a model that fits none. A job can still choose them by
``norm: batch``, and keep them at each site (``strategy: {name: fedbn}``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.agreed import empty_buffers
from oncofed.data.harmonization.landmarks import INTENSITY
from oncofed.data.stain.columns import BUFFER, Template
from oncofed.errors import SpecError
from oncofed.models.foreign import Bundle, load_bundle_weights, read_bundle
from oncofed.models.fusion import IMAGE_FEATURES
from oncofed.models.known import find_network
from oncofed.models.model_spec import ModelSpec
from oncofed.models.shared_encoder import POOLED, SHARED
from oncofed.models.table import column_settings
from oncofed.plugins import NETWORKS, Network

_GROUPS = 8
_BROKEN_WALK, _MOST_WALKS = "dictionary changed size during iteration", 10
_NORMS: dict[str, Any] = {
    "instance": ["instance", {"affine": True}],
    "group": ["group", {"num_groups": _GROUPS}],
    "batch": "batch",
}


@dataclass(frozen=True)
class NetworkRequest:
    """The arguments of ``build_network``.

    Attributes:
        spec: the job's choice.
        in_channels: image channels, or features of a bag.
        out_channels: values for each voxel, image or bag.
        dimensions: 3 for volumes, 2 for flat images.
        patch: sides of the input.
        columns: of the job's table.
        answers: values that the job asks for, where the network's features are joined with a row; None: its values.
        template: stain that slides are normalised to until the sites agree on another, (2, column); None: none.
        pooled: values of the whole image beside those of each voxel.
        harmonized: numbers of each group that ComBat makes alike.
        preserved: numbers of covariates whose effect it keeps.
        landmarks: of the template of intensities; 0: images keep their own.
    """

    spec: ModelSpec
    in_channels: int
    out_channels: int
    dimensions: int
    patch: tuple[int, ...]
    columns: tuple[Covariate, ...] = ()
    answers: int | None = None
    template: Template | None = None
    pooled: int = 0
    harmonized: Mapping[str, int] = field(default_factory=dict)
    preserved: int = 0
    landmarks: int = 0

    @property
    def norm(self) -> Any:
        """The normalisation as MONAI writes it."""
        return _NORMS[self.spec.norm or find_network(self.spec.network, self.spec.code or "").norm]


def network_config(request: NetworkRequest) -> dict[str, Any]:
    """Return a network as a bundle's configuration.

    ``_target_`` and arguments.

    Raises:
        SpecError: the network cannot have that many axes.
    """
    network = find_network(request.spec.network, request.spec.code or "")
    if request.dimensions not in network.dimensions:
        axes = " or ".join(map(str, network.dimensions))
        raise SpecError(
            f"{network.name} is for images of {axes} axes, the job's have {request.dimensions} (data.patch)"
        )
    if request.pooled:
        return _with_head(request, _with_arguments(network.config(request), request))
    if not request.columns or network.kind == "table":
        return _with_arguments(network.config(request), request)
    features = replace(request, out_channels=IMAGE_FEATURES, answers=request.out_channels)
    return _fused(request, _with_arguments(network.config(features), request), request.out_channels)


def _fused(request: NetworkRequest, network: dict[str, Any], out_channels: int) -> dict[str, Any]:
    return {
        "_target_": "oncofed.models.fusion.FusedNetwork",
        "network": network,
        "columns": column_settings(request.columns),
        "out_channels": out_channels,
        "fusion": request.spec.fusion,
    }


def _with_head(request: NetworkRequest, network: dict[str, Any]) -> dict[str, Any]:
    """Return a network for each voxel with a head on its encoder.

    Raises:
        SpecError: nothing is known of its encoder.
    """
    if request.spec.network not in SHARED:
        raise SpecError(
            f"{request.spec.network} shares its encoder with no other target; expected one of {', '.join(SHARED)}, or "
            "a job of its own for the mask"
        )
    features = POOLED * request.spec.feature_maps[-1]
    linear = {"_target_": "torch.nn.Linear", "in_features": features}
    if request.columns:
        head = _fused(request, {**linear, "out_features": IMAGE_FEATURES}, request.pooled)
    else:
        head = {**linear, "out_features": request.pooled}
    return {"_target_": "oncofed.models.shared_encoder.SharedEncoder", "network": network, "head": head}


def _with_arguments(config: dict[str, Any], request: NetworkRequest) -> dict[str, Any]:
    return config if "network" in config else {**config, **request.spec.arguments}


def build_network(request: NetworkRequest, seed: int) -> nn.Module:
    """Return a network with initial weights by ``seed``.

    Args:
        request: which network, and for what.
        seed: of the initial weights; the caller's random state is left as it was.

    Returns:
        On the CPU, float32: of the kind "dense" from (batch, channel, x, y[, z]) to (batch, out, x, y[, z]), "image"
        from the same to (batch, out), "bag" from (batch, tile, feature) and a mask (batch, tile) to (batch, out),
        "table" from (batch, column) to (batch, out), "boxes" from an image to (batch, out, anchor), as
        ``RetinaNetBoxes`` has them. With columns, "image" and "bag" take (batch, column) as well.

    Raises:
        SpecError: it cannot be built so.
    """
    config = network_config(request)
    with torch.random.fork_rng(devices=[]):
        try:
            network = _instantiated(config, seed)
        except Exception as error:  # noqa: BLE001 - MONAI's networks raise many types for arguments that do not fit
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise SpecError(f"{request.spec.network} cannot be built: {str(cause).splitlines()[0]}") from None
    assert isinstance(network, nn.Module)
    if request.template:
        network.register_buffer(BUFFER, request.template.moments.clone())
    for name, values in empty_buffers(request.harmonized, request.preserved).items():
        network.register_buffer(name, values)
    if request.landmarks:
        network.register_buffer(INTENSITY, torch.zeros(request.landmarks))
    if request.spec.bundle:
        load_bundle_weights(_bundle_of(request.spec), network)
    return network


def _instantiated(config: dict[str, Any], seed: int) -> Any:
    """Return what a configuration describes.

    MONAI finds a class by its name among the loaded modules. It walks them without a lock, so an import in another
    thread, such as a tracker's, breaks a walk off and says nothing about the network: it is walked again.
    """
    for left in reversed(range(_MOST_WALKS)):
        torch.manual_seed(seed)
        try:
            return ConfigParser({"network": config}).get_parsed_content("network")
        except RuntimeError as error:
            if not left or _BROKEN_WALK not in str(error):
                raise
    raise AssertionError("unreachable")


def _bundle_of(spec: ModelSpec) -> Bundle:
    bundle = read_bundle(str(spec.bundle))
    if spec.bundle_digest and bundle.digest != spec.bundle_digest:
        raise SpecError(f"{bundle.folder}: its digest is {bundle.digest}, the job expects {spec.bundle_digest}")
    return bundle


def _normed(request: NetworkRequest, config: dict[str, Any]) -> dict[str, Any]:
    """Return a network with the job's normalisation.

    For networks that MONAI builds with batch normalisation only.
    """
    if request.spec.norm == "batch":
        return config
    network = {**config, **request.spec.arguments}
    return {"_target_": "oncofed.models.norms.without_batch_norm", "network": network}


def _channels(request: NetworkRequest) -> dict[str, int]:
    return {"in_channels": request.in_channels, "out_channels": request.out_channels}


# --- values for each voxel


def _unet(request: NetworkRequest) -> dict[str, Any]:
    channels = request.spec.feature_maps
    return {
        "_target_": "UNet",
        **_channels(request),
        "spatial_dims": request.dimensions,
        "channels": list(channels),
        "strides": [2] * (len(channels) - 1),
        "num_res_units": request.spec.residual_units,
        # Without learned scale and shift, like MONAI's default.
        "norm": "instance" if request.spec.norm in {None, "instance"} else request.norm,
    }


def _dynunet(request: NetworkRequest) -> dict[str, Any]:
    spec, levels = request.spec, len(request.spec.feature_maps)
    strides = [list(stride) for stride in spec.strides] if spec.strides else [1] + [2] * (levels - 1)
    config = {
        "_target_": "DynUNet",
        **_channels(request),
        "spatial_dims": request.dimensions,
        "filters": list(spec.feature_maps),
        "kernel_size": [list(kernel) for kernel in spec.kernel_size] if spec.kernel_size else [3] * levels,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "norm_name": request.norm,
    }
    if spec.deep_supervision:
        config |= {"deep_supervision": True, "deep_supr_num": spec.deep_supervision}
    return config


def _residual_unet(request: NetworkRequest) -> dict[str, Any]:
    spec = request.spec
    return {
        "_target_": "oncofed.models.residual_unet.ResidualUNet",
        **_channels(request),
        "spatial_dims": request.dimensions,
        "channels": list(spec.feature_maps),
        "strides": [list(stride) for stride in spec.strides] if spec.strides else None,
        "kernel_size": [list(kernel) for kernel in spec.kernel_size] if spec.kernel_size else None,
        "deep_supervision": spec.deep_supervision,
        "norm": request.norm,
    }


def _segresnet(request: NetworkRequest) -> dict[str, Any]:
    levels = len(request.spec.feature_maps)
    return {
        "_target_": "SegResNet",
        **_channels(request),
        "spatial_dims": request.dimensions,
        "init_filters": request.spec.feature_maps[0],
        "blocks_down": [1] + [2] * (levels - 1),
        "blocks_up": [1] * (levels - 1),
        "norm": request.norm,
    }


def _swin_unetr(request: NetworkRequest) -> dict[str, Any]:
    norm = {"norm_name": request.norm}
    return {"_target_": "SwinUNETR", **_channels(request), "spatial_dims": request.dimensions, **norm}


def _hovernet(request: NetworkRequest) -> dict[str, Any]:
    return _normed(request, {"_target_": "oncofed.models.hovernet.HoVerNetMaps", **_channels(request)})


def _bundle(request: NetworkRequest) -> dict[str, Any]:
    network = _bundle_of(request.spec).network
    # A bundle's network has other classes than the job's.
    names = {"in_channels": request.in_channels, "out_channels": request.out_channels}
    return {**network, **{name: value for name, value in names.items() if name in network}}


# --- values for an image as a whole


def _densenet(request: NetworkRequest) -> dict[str, Any]:
    norm = {"norm": request.norm}
    return {"_target_": "DenseNet121", **_channels(request), "spatial_dims": request.dimensions, **norm}


def _efficientnet(request: NetworkRequest) -> dict[str, Any]:
    return {
        "_target_": "EfficientNetBN",
        "model_name": "efficientnet-b0",
        "pretrained": False,
        "spatial_dims": request.dimensions,
        "in_channels": request.in_channels,
        "num_classes": request.out_channels,
        "norm": request.norm,
    }


def _resnet(layers: int) -> Callable[[NetworkRequest], dict[str, Any]]:
    def config(request: NetworkRequest) -> dict[str, Any]:
        # A first stride of two, as the network was published with (He et al., CVPR 2016); MONAI's own default is one.
        shape = {"spatial_dims": request.dimensions, "n_input_channels": request.in_channels, "conv1_t_stride": 2}
        target = {"_target_": f"resnet{layers}", **shape, "num_classes": request.out_channels}
        return _normed(request, target)

    return config


def _vit(request: NetworkRequest) -> dict[str, Any]:
    return {
        "_target_": "oncofed.models.vit.ViTClassifier",
        **_channels(request),
        "spatial_dims": request.dimensions,
        "img_size": list(request.patch),
        "patch_size": 16,
    }


# --- values for a bag


def _bag_head(name: str) -> Callable[[NetworkRequest], dict[str, Any]]:
    return lambda request: {"_target_": f"oncofed.models.mil.{name}", **_channels(request)}


def _clam_sb(request: NetworkRequest) -> dict[str, Any]:
    return {**_bag_head("ClamSB")(request), "statements": request.answers or request.out_channels}


# --- values for a table's row


def _table(request: NetworkRequest) -> dict[str, Any]:
    if not request.columns:
        raise SpecError(f"{request.spec.network} learns from columns of a table: name them in data.covariates")
    columns, values = column_settings(request.columns), request.out_channels
    return {"_target_": "oncofed.models.table.TableNetwork", "columns": columns, "out_channels": values}


# --- boxes


def _retinanet(request: NetworkRequest) -> dict[str, Any]:
    own = {"channels": list(request.spec.feature_maps), "norm": request.norm}
    target = {"_target_": "oncofed.models.retinanet.RetinaNetBoxes", **_channels(request)}
    return {**target, "spatial_dims": request.dimensions, **own}


for _network in (
    Network("unet", "dense", _unet, (16, 32, 64, 128), "instance"),
    Network("dynunet", "dense", _dynunet, (32, 64, 128, 256, 320), "instance"),
    Network("residual_unet", "dense", _residual_unet, (32, 64, 128, 256, 320), "instance"),
    Network("segresnet", "dense", _segresnet, (16, 32, 64, 128)),
    Network("swinunetr", "dense", _swin_unetr, norm="instance", divisor=32),
    Network("hovernet", "dense", _hovernet, divisor=256, dimensions=(2,)),
    Network("bundle", "dense", _bundle, divisor=1),
    Network("densenet121", "image", _densenet, divisor=32),
    Network("efficientnet-b0", "image", _efficientnet, divisor=32),
    Network("resnet18", "image", _resnet(18), divisor=32),
    Network("resnet50", "image", _resnet(50), divisor=32),
    Network("vit", "image", _vit, divisor=16),
    Network("attention_mil", "bag", _bag_head("AttentionMIL"), divisor=1),
    Network("clam_sb", "bag", _clam_sb, divisor=1, adds_loss=True),
    Network("transmil", "bag", _bag_head("TransMIL"), divisor=1),
    Network("dsmil", "bag", _bag_head("DSMIL"), divisor=1),
    Network("mean_pooling", "bag", _bag_head("MeanPooling"), divisor=1),
    Network("max_pooling", "bag", _bag_head("MaxPooling"), divisor=1),
    Network("table", "table", _table, divisor=1),
    Network("retinanet", "boxes", _retinanet, (16, 32, 64, 128)),
):
    NETWORKS.register(_network.name)(_network)
