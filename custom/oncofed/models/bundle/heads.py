"""Heads over a slide's tiles as a bundle defines them: torch's layers, and expressions over one bag (tile, feature)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oncofed.models.bundle.expressions import Config, literal

_HIDDEN = "$lambda bag: torch.relu(@network['embed']['1'](@network['embed']['0'](bag)))"
# Gated attention (Ilse et al., ICML 2018, equation 9).
_GATED = {
    "attention": "$lambda hidden: torch.softmax(@network['score'](torch.tanh(@network['tanh'](hidden)) "
    "* torch.sigmoid(@network['gate'](hidden)))[:, 0], 0)",
    "predictor": "$lambda bag: (lambda hidden: @network['classify']((@attention(hidden)[:, None] * hidden).sum(0)))"
    "(@hidden(bag))",
}
_WITHOUT_ATTENTION = "$lambda bag: @network['classify'](@hidden(bag).{})"
# Attention by likeness to the critical tile (Li, Li and Eliceiri, CVPR 2021), as ``mil.dsmil`` has it.
_DSMIL = {
    "alike": "$lambda queries, scores: torch.softmax(queries.matmul(queries[scores.argmax(0)].T) "
    "/ queries.shape[1] ** 0.5, 0)",
    "weighed": "$lambda hidden, scores: @alike(torch.tanh(@network['query']['0'](hidden)), scores).T"
    ".matmul(@network['information'](hidden)).flatten()",
    "predictor": "$lambda bag: (lambda hidden: (lambda scores: (scores.amax(0) "
    "+ @network['classify'](@weighed(hidden, scores))) / 2)(@network['score'](hidden)))(@hidden(bag))",
}
# Attention by landmarks (Xiong et al., AAAI 2021), as ``mil.nystrom`` has it, of one sequence (token, size).
_NYSTROM = {
    "segments": "$lambda tokens: (lambda marks: (lambda part: part / part.sum(1, keepdim=True))"
    "(torch.nn.functional.one_hot(torch.arange(len(tokens), device=tokens.device) * marks // len(tokens), marks)"
    ".T.float()))(min(@landmarks, len(tokens)))",
    "parts": "$lambda layer, tokens: (lambda parts: (parts[0] * parts.shape[-1] ** -0.5, parts[1], parts[2]))"
    "(layer['qkv'](tokens).view(len(tokens), 3, @heads, -1).permute(1, 2, 0, 3))",
    "closer": "$lambda matrix, found, one: (lambda product: found.matmul(13 * one - product.matmul(15 * one "
    "- product.matmul(7 * one - product))) / 4)(matrix.matmul(found))",
    "inverse": "$lambda matrix: functools.reduce(lambda found, _: @closer(matrix, found, "
    "torch.eye(matrix.shape[-1], device=matrix.device)), range(6), matrix.transpose(1, 2) "
    "/ (matrix.abs().sum(-1).amax(-1) * matrix.abs().sum(-2).amax(-1))[:, None, None])",
    "like": "$lambda queries, keys: torch.softmax(queries.matmul(keys.transpose(1, 2)), -1)",
    "mixed": "$lambda queries, keys, values, marks, marked: @like(queries, marked)"
    ".matmul(@inverse(@like(marks, marked)).matmul(@like(marks, keys).matmul(values)))",
    "attend": "$lambda layer, tokens: (lambda parts, segments: layer['out']['0']((@mixed(*parts, "
    "segments.matmul(parts[0]), segments.matmul(parts[1])) + layer['near'](parts[2][None])[0])"
    ".transpose(0, 1).flatten(1)))(@parts(layer, tokens), @segments(tokens))",
}
# Shao et al., NeurIPS 2021, as ``mil.transmil`` has it: a class token before a square of tiles.
_TRANSMIL = {
    **_NYSTROM,
    "square": "$lambda hidden, side: torch.cat([@network.token[0], "
    "hidden[torch.arange(side * side, device=hidden.device) % len(hidden)]])",
    "first_layer": "$lambda tokens: tokens + @attend(@network['first'], @network['norm_first'](tokens))",
    "neighbours": "$lambda tokens, side: (lambda image: torch.cat([tokens[:1], "
    "(image + sum(near(image) for near in @network['near'].values())).flatten(2)[0].T]))"
    "(tokens[1:].T.reshape(1, -1, side, side))",
    "second_layer": "$lambda tokens: tokens + @attend(@network['second'], @network['norm_second'](tokens))",
    "of_square": "$lambda hidden, side: @second_layer(@neighbours(@first_layer(@square(hidden, side)), side))",
    "predictor": "$lambda bag: (lambda hidden: @network['classify'](@network['norm'](@of_square(hidden, "
    "math.isqrt(len(hidden) - 1) + 1)[0])))(@hidden(bag))",
}
_NEAR_VALUES = 33
_KERNELS = (7, 5, 3)


@dataclass(frozen=True)
class _Head:
    """A head in torch's own words.

    Attributes:
        layers: beside the embedding, of features, hidden size, outputs and the network's further arguments.
        predictor: entries that make a function of one bag, ``predictor`` among them.
        hidden: size to which features are brought where the job says none.
    """

    layers: Callable[[int, int, Config], Config]
    predictor: Config
    hidden: int = 256


@dataclass(frozen=True)
class ExportedHead:
    """A head as a bundle defines it.

    Attributes:
        definition: entries of a configuration, ``network_def`` among them.
        predictor: entries that make a function of one bag, ``predictor`` among them.
        features: of a tile.
        imports: of the expressions.
    """

    definition: Config
    predictor: Config
    features: int
    imports: tuple[str, ...] = ()


def is_head(target: str) -> bool:
    """Return whether a network is a head over tiles."""
    return target in _HEADS


def exported_head(config: Config) -> ExportedHead:
    """Return a head for a process with MONAI alone; its weights have the same names."""
    target = str(config["_target_"])
    head = _HEADS[target]
    features, out, hidden = config["in_channels"], config["out_channels"], config.get("hidden", head.hidden)
    for value in config.values():
        if value != target and value is not None:
            literal(value)
    embed = {"0": _norm(features), "1": _linear(features, hidden)}
    layers = _modules({"embed": _modules(embed), **head.layers(hidden, out, config)})
    predictor = {"hidden": _HIDDEN, **head.predictor}
    if target != _TRANSMIL_CLASS:
        return ExportedHead({"network_def": layers}, predictor, features)
    token = f"torch.nn.Parameter(torch.zeros(1, 1, {literal(hidden)}))"
    named = {"layers": layers, "network_def": f"$(@layers.register_parameter('token', {token}), @layers)[1]"}
    sizes = {"heads": config.get("heads", 8), "landmarks": config.get("landmarks") or max(1, hidden // 2)}
    return ExportedHead(named, {**sizes, **predictor}, features, ("import functools", "import math"))


def _pooling(hidden: int, out: int, _: Config) -> Config:
    return {"classify": _linear(hidden, out)}


def _gated(hidden: int, out: int, config: Config) -> Config:
    size = config.get("attention", 128)
    layers = {"tanh": _linear(hidden, size), "gate": _linear(hidden, size), "score": _linear(size, 1)}
    # What CLAM learns from, and answers nothing.
    speaks = {"speaks": _linear(hidden, 2 * config["statements"])} if config.get("statements") else {}
    return {"classify": _linear(hidden, out), **layers, **speaks}


def _dsmil(hidden: int, out: int, config: Config) -> Config:
    return {
        "score": _linear(hidden, out),
        "query": _modules({"0": _linear(hidden, config.get("attention", 128))}),
        "information": _linear(hidden, hidden),
        "classify": _linear(out * hidden, out),
    }


def _transmil(hidden: int, out: int, config: Config) -> Config:
    heads = config.get("heads", 8)
    attention = {
        "qkv": {**_linear(hidden, 3 * hidden), "bias": False},
        "near": _convolution(heads, [_NEAR_VALUES, 1], bias=False),
        "out": _modules({"0": _linear(hidden, hidden)}),
    }
    return {
        "first": _modules(attention),
        "second": _modules(attention),
        **{name: _norm(hidden) for name in ("norm_first", "norm_second", "norm")},
        "near": _modules({str(n): _convolution(hidden, [size, size]) for n, size in enumerate(_KERNELS)}),
        "classify": _linear(hidden, out),
    }


def _modules(parts: dict[str, Any]) -> Config:
    return {"_target_": "torch.nn.ModuleDict", "modules": parts}


def _linear(inputs: int, outputs: int) -> Config:
    return {"_target_": "torch.nn.Linear", "in_features": inputs, "out_features": outputs}


def _norm(size: int) -> Config:
    return {"_target_": "torch.nn.LayerNorm", "normalized_shape": size}


def _convolution(channels: int, kernel: list[int], bias: bool = True) -> Config:
    """Return a convolution of each channel by itself that keeps the size."""
    return {
        "_target_": "torch.nn.Conv2d",
        "in_channels": channels,
        "out_channels": channels,
        "kernel_size": kernel,
        "padding": [side // 2 for side in kernel],
        "groups": channels,
        "bias": bias,
    }


_TRANSMIL_CLASS = "oncofed.models.mil.TransMIL"
_HEADS = {
    "oncofed.models.mil.AttentionMIL": _Head(_gated, _GATED),
    "oncofed.models.mil.ClamSB": _Head(_gated, _GATED),
    "oncofed.models.mil.MeanPooling": _Head(_pooling, {"predictor": _WITHOUT_ATTENTION.format("mean(0)")}),
    "oncofed.models.mil.MaxPooling": _Head(_pooling, {"predictor": _WITHOUT_ATTENTION.format("amax(0)")}),
    "oncofed.models.mil.DSMIL": _Head(_dsmil, _DSMIL),
    _TRANSMIL_CLASS: _Head(_transmil, _TRANSMIL, hidden=512),
}
