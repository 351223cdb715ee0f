"""Names of a transformer's weights, from other libraries to timm's."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from oncofed.models.weights import Weights

# Patterns of Hugging Face's transformers (ViT, DINOv2 with and without registers), and timm's names.
_TRANSFORMERS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(?:norm1|layernorm_before)\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:norm2|layernorm_after)\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
_ATTENTION = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)")
# The same of DINOv2's own code, where blocks may lie in chunks.
_DINOV2 = (
    (r"register_tokens", "reg_token"),
    (r"blocks\.\d+\.(\d+)\.(.+)", r"blocks.\1.\2"),
    (r"blocks\.(\d+)\.mlp\.w12\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)


def timm_names(stored: Weights, expected: Weights) -> tuple[Weights, str]:
    """Return weights under timm's names, and whose names they had.

    Args:
        stored: without a prefix.
        expected: of the network, whose shapes count alone.

    Returns:
        Weights, of which some may still be unknown to the network; and the naming in words, empty where it is timm's.
    """
    found, naming = stored, ""
    if any(name.startswith("embeddings.") for name in stored):
        found, naming = _renamed(_joined_attention(stored), _TRANSFORMERS), "transformers"
    elif "mask_token" in stored or "register_tokens" in stored:
        found, naming = _renamed(_renamed(stored, _DINOV2[:2]), _DINOV2[2:]), "DINOv2"
    elif "layers.0.downsample.reduction.weight" in stored:
        # Swin's own code ends a stage with what makes the image smaller; timm's begins the next one with it.
        found, naming = _substituted(stored, r"layers\.(\d+)\.downsample\.", _next_stage), "Swin"
    return (_class_token_placed(found, expected) if naming in {"transformers", "DINOv2"} else found), naming


def _renamed(weights: Weights, patterns: tuple[tuple[str, str], ...]) -> Weights:
    renamed = {}
    for name, value in weights.items():
        matches = (re.compile(pattern).fullmatch(name) for pattern, _ in patterns)
        new = next((match.expand(to) for match, (_, to) in zip(matches, patterns, strict=True) if match), name)
        renamed[new] = value
    return renamed


def _substituted(weights: Weights, pattern: str, to: Callable[[re.Match[str]], str]) -> Weights:
    return {re.sub(pattern, to, name): value for name, value in weights.items()}


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match.group(1)) + 1}.downsample."


def _joined_attention(weights: Weights) -> Weights:
    """Return weights with one matrix for queries, keys and values."""
    joined = {name: value for name, value in weights.items() if not _ATTENTION.fullmatch(name)}
    parts: dict[str, Weights] = {}
    for name, value in weights.items():
        if match := _ATTENTION.fullmatch(name):
            block, part, kind = match.groups()
            parts.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[part] = value
    for name, found in parts.items():
        # A part that is missing is told by the shape that results.
        joined[name] = torch.cat([found[part] for part in ("query", "key", "value") if part in found])
    return joined


def _class_token_placed(weights: Weights, expected: Weights) -> Weights:
    """Return weights with the class token's position where timm has it.

    With registers, timm's position embedding is of the patches alone, and the class token's own is part of the token.
    """
    if "reg_token" not in expected or not {"cls_token", "pos_embed"} <= weights.keys():
        return weights
    token, positions = weights["cls_token"], weights["pos_embed"]
    return {
        **weights,
        "cls_token": (token.float() + positions[:, :1].float()).to(token.dtype),
        "pos_embed": positions[:, 1:].contiguous(),
    }
