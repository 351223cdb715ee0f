"""A job's network made of MONAI's and PyTorch's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oncofed.models.bundle.expressions import Config, literal
from oncofed.models.networks import NetworkRequest, network_config

_OURS = "oncofed."
# MONAI's ResNet passes its argument norm on to its first layer only.
_REGROUPED = (
    "$([setattr(@batch_normed.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2], "
    "torch.nn.GroupNorm(8, layer.num_features)) for name, layer in list(@batch_normed.named_modules()) "
    "if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)], @batch_normed)[1]"
)
_NUCLEI = (
    "$lambda images: (lambda maps: torch.cat([maps['nucleus_prediction'], maps['horizontal_vertical'][:, :1]], 1))"
    "(@network(images))"
)
# Heads over one bag (tile, feature): first the layers that all have, then what a bag becomes of its tiles.
_HIDDEN = "$lambda bag: torch.relu(@network['embed']['1'](@network['embed']['0'](bag)))"
# Gated attention (Ilse et al., ICML 2018, equation 9).
_ATTENTION = (
    "$lambda hidden: torch.softmax(@network['score'](torch.tanh(@network['tanh'](hidden)) "
    "* torch.sigmoid(@network['gate'](hidden)))[:, 0], 0)"
)
_POOLED = (
    "$lambda bag: (lambda hidden: @network['classify']((@attention(hidden)[:, None] * hidden).sum(0)))(@hidden(bag))"
)
_WITHOUT_ATTENTION = "$lambda bag: @network['classify'](@hidden(bag).{})"
# What a head does in torch's own words, and what layers it has beside the common ones.
_GATED = {"attention": _ATTENTION, "predictor": _POOLED}
_HEADS: dict[str, Config] = {
    "oncofed.models.mil.AttentionMIL": _GATED,
    "oncofed.models.mil.ClamSB": _GATED,
    "oncofed.models.mil.MeanPooling": {"predictor": _WITHOUT_ATTENTION.format("mean(0)")},
    "oncofed.models.mil.MaxPooling": {"predictor": _WITHOUT_ATTENTION.format("amax(0)")},
}


@dataclass(frozen=True)
class Exported:
    """A network as a bundle defines it.

    Attributes:
        definition: entries of a configuration, ``network_def`` among them.
        predictor: entries that make a function of it, ``predictor`` among them.
        module: that it needs in addition to MONAI; empty: none.
    """

    definition: Config
    predictor: Config
    module: str = ""


def runs_alone(request: NetworkRequest) -> bool:
    """Return whether a process with MONAI alone can run a job's network."""
    target = str(network_config(request)["_target_"])
    return target in _HEADS or not target.startswith(("oncofed.models.mil.", "oncofed.models.shared_encoder."))


def exported(request: NetworkRequest) -> Exported:
    """Return a job's network for a process with MONAI alone.

    Its weights have the same names.
    """
    config = network_config(request)
    target = str(config["_target_"])
    if target in _HEADS:
        return Exported({"network_def": _head(config)}, {"hidden": _HIDDEN, **_HEADS[target]})
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
    package, _, rest = str(config["_target_"]).partition(".")
    return Exported(entries, {"predictor": predictor}, package if rest and package not in {"monai", "torch"} else "")


def _head(config: Config) -> Config:
    features, classes = config["in_channels"], config["out_channels"]
    hidden, attention = config.get("hidden", 256), config.get("attention", 128)
    statements = config.get("statements", 0)
    for number in (features, classes, hidden, attention, statements):
        literal(number)
    embed = {"0": {"_target_": "torch.nn.LayerNorm", "normalized_shape": features}, "1": _linear(features, hidden)}
    layers = {"embed": _modules(embed), "classify": _linear(hidden, classes)}
    if "attention" in _HEADS[config["_target_"]]:
        gated = {"tanh": _linear(hidden, attention), "gate": _linear(hidden, attention), "score": _linear(attention, 1)}
        layers |= gated
    if statements:  # which CLAM learns from, and answers nothing
        layers["speaks"] = _linear(hidden, 2 * statements)
    return _modules(layers)


def _modules(parts: dict[str, Any]) -> Config:
    return {"_target_": "torch.nn.ModuleDict", "modules": parts}


def _linear(inputs: int, outputs: int) -> Config:
    return {"_target_": "torch.nn.Linear", "in_features": inputs, "out_features": outputs}
