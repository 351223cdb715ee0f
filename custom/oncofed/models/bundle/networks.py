"""A job's network made of MONAI's and PyTorch's own classes."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed.data.stain.columns import BUFFER
from oncofed.models.bundle.expressions import Config
from oncofed.models.bundle.heads import exported_head, is_head
from oncofed.models.networks import NetworkRequest, network_config

_OURS = "oncofed."
# MONAI's ResNet passes its argument norm on to its first layer only.
_REGROUPED = (
    "$([setattr(@batch_normed.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2], "
    "torch.nn.GroupNorm(8, layer.num_features)) for name, layer in list(@batch_normed.named_modules()) "
    "if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)], @batch_normed)[1]"
)
# The template from which images were changed in training comes with the weights, and nothing is computed with it.
_TEMPLATED = "$(@without_template.register_buffer('{}', torch.zeros({}, {})), @without_template)[1]"
_NUCLEI = (
    "$lambda images: (lambda maps: torch.cat([maps['nucleus_prediction'], maps['horizontal_vertical'][:, :1]], 1))"
    "(@network(images))"
)


@dataclass(frozen=True)
class Exported:
    """A network as a bundle defines it.

    Attributes:
        definition: entries of a configuration, ``network_def`` among them.
        predictor: entries that make a function of it, ``predictor`` among them.
        module: that it needs in addition to MONAI; empty: none.
        features: of a tile, of a head over tiles; 0 of others.
        imports: of the expressions.
    """

    definition: Config
    predictor: Config
    module: str = ""
    features: int = 0
    imports: tuple[str, ...] = ()


def runs_alone(request: NetworkRequest) -> bool:
    """Return whether a process with MONAI alone can run a job's network: any, and heads over tiles that are known."""
    return request.spec.kind != "bag" or is_head(str(network_config(request)["_target_"]))


def exported(request: NetworkRequest) -> Exported:
    """Return a job's network for a process with MONAI alone.

    Its weights have the same names.
    """
    config = network_config(request)
    target = str(config["_target_"])
    if is_head(target):
        head = exported_head(config)
        return Exported(head.definition, head.predictor, "", head.features, head.imports)
    entries: Config = {}
    if target == "oncofed.models.norms.without_batch_norm":
        config = config["network"]
        target = str(config["_target_"])
        entries["batch_normed"] = None
    predictor = "@network"
    if target == "oncofed.models.vit.ViTClassifier":
        out = config["out_channels"]
        config = {k: v for k, v in config.items() if k != "out_channels"}
        config |= {"_target_": "ViT", "classification": True, "num_classes": out, "post_activation": "none"}
        predictor = "$lambda images: @network(images)[0]"
    elif target == "oncofed.models.hovernet.HoVerNetMaps":
        config = {**config, "_target_": "HoVerNet", "mode": "fast", "decoder_padding": True}
        config["np_out_channels"] = config.pop("out_channels") - 1
        predictor = _NUCLEI
    if "batch_normed" in entries:
        entries = {"batch_normed": config, "network_def": _REGROUPED}
    else:
        entries = {"network_def": config}
    if request.template:
        entries["without_template"] = entries.pop("network_def")
        entries["network_def"] = _TEMPLATED.format(BUFFER, *request.template.moments.shape)
    package, _, rest = str(config["_target_"]).partition(".")
    return Exported(entries, {"predictor": predictor}, package if rest and package not in {"monai", "torch"} else "")
