"""The networks of the catalogue, from definitions of installed libraries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.errors import TrainingError
from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.encoders.torchvision_operators import declare_where_missing
from oncofed.models.model_spec import ModelSpec
from oncofed.models.networks import NetworkRequest
from oncofed.models.networks import build_network as build_job_network

_HISTOGRAM_BINS = 8


def build_network(entry: EncoderEntry, names: Collection[str] = ()) -> nn.Module:
    """Return an encoder's network with random weights.

    It maps images (batch, 3, y, x), normalised, to (batch, feature). Within ``torch.device("meta")`` it takes no
    memory.

    Args:
        entry: which one.
        names: of the weights that it will get; what a file holds decides on the normalisation of MONAI's ResNet.

    Raises:
        TrainingError: the library that defines it cannot be imported.
    """
    return _FAMILIES[entry.family](entry, names).eval()


def import_timm() -> Any:
    """Return timm.

    Raises:
        TrainingError: it is missing, or cannot be imported beside this torch.
    """
    declare_where_missing()
    try:
        import timm  # noqa: PLC0415 - takes seconds, and only some encoders need it
    except (ImportError, RuntimeError) as error:
        raise TrainingError(
            f"this encoder needs timm, which cannot be imported beside torch {torch.__version__} ({error}). "
            "pip install 'oncofed[encoders]'"
        ) from None
    return timm


class Colour(nn.Module):
    """Means, spreads, histograms and edge strength of colours."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (tile, feature) of (tile, 3, y, x), 0 to 1.

        Means, spreads and histograms of each colour, and its edge strength at three scales.
        """
        # Half the resolution costs a quarter, and the features say the same.
        images = functional.avg_pool2d(images, 2)
        parts = [images.mean((2, 3)), images.std((2, 3))]
        bins = (images * _HISTOGRAM_BINS).to(torch.uint8).clamp_max(_HISTOGRAM_BINS - 1)
        parts += [(bins == number).float().mean((2, 3)) for number in range(_HISTOGRAM_BINS)]
        for _ in range(3):
            across, down = images.diff(dim=2).abs().mean((2, 3)), images.diff(dim=3).abs().mean((2, 3))
            parts.append((across + down) * 4)
            images = functional.avg_pool2d(images, 2)
        return torch.cat(parts, dim=1)


class ClassAndMean(nn.Module):
    """The class token of a vision transformer beside the mean of its patches.

    Register tokens are left out, as in the cards of Virchow and Virchow2.

    Args:
        network: of timm.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, 2 * width) of (batch, 3, y, x)."""
        network: Any = self.network
        tokens = network.forward_features(images)
        return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(1)], dim=1)


class AttentionPool(nn.Module):
    """One query that attends to tokens (CoCa: Yu et al., TMLR 2022).

    Args:
        width: of its output.
        tokens: width of a token.
        heads: of the attention.
        packed: weights are stored as CONCH v1.5 has them: no biases, keys and values in one matrix; else as PyTorch's
            ``MultiheadAttention``, which CONCH uses.
    """

    def __init__(self, width: int, tokens: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(tokens)
        self._heads = heads
        self._packed = packed
        if packed:
            self.to_q = nn.Linear(width, width, bias=False)
            self.to_kv = nn.Linear(tokens, 2 * width, bias=False)
            self.to_out = nn.Linear(width, width, bias=False)
        else:
            self.attn = nn.MultiheadAttention(width, heads, kdim=tokens, vdim=tokens, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, width) of (batch, token, tokens)."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        if not self._packed:
            pooled: Tensor = self.attn(query, tokens, tokens, need_weights=False)[0]
            return pooled[:, 0]
        parts = (self.to_q(query), *self.to_kv(tokens).chunk(2, dim=-1))
        query, keys, values = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(query, keys, values)
        out: Tensor = self.to_out(found.transpose(1, 2).flatten(2))
        return out[:, 0]


class Conch(nn.Module):
    """CONCH's vision tower up to the normalised pooled token.

    Args:
        trunk: a vision transformer of timm.
        width: of the output.
        packed: as ``AttentionPool`` has it.
    """

    def __init__(self, trunk: nn.Module, width: int, packed: bool) -> None:
        super().__init__()
        network: Any = trunk
        self.trunk = network
        self.attn_pool_contrast = AttentionPool(width, network.embed_dim, 8, packed)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, width) of (batch, 3, y, x)."""
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))
        return pooled


class ConvStem(nn.Module):
    """Convolutions in place of Swin's patches (CTransPath).

    Takes the arguments that timm hands to a layer of patches.
    """

    def __init__(self, img_size: Sequence[int], embed_dim: int, norm_layer: Callable[..., nn.Module], **_: Any) -> None:
        super().__init__()
        self.img_size = tuple(img_size)
        self.patch_size = (4, 4)
        self.grid_size = tuple(side // 4 for side in img_size)
        layers: list[nn.Module] = []
        before = 3
        for width in (embed_dim // 8, embed_dim // 4):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.proj = nn.Sequential(*layers, nn.Conv2d(before, embed_dim, 1))
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, y, x, width) at a quarter of the resolution."""
        normed: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return normed


def _colour(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    return Colour()


def _monai_resnet(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    norm: Literal["batch", "group"] = "batch" if any("running_mean" in name for name in names) else "group"
    model = ModelSpec(network=entry.architecture, norm=norm, arguments={"feed_forward": False})
    return build_job_network(NetworkRequest(model, 3, 2, 2, (256, 256)), 0)


def _trunk(entry: EncoderEntry) -> nn.Module:
    """Return a vision transformer of timm without its head."""
    timm = import_timm()
    arguments = dict(entry.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    if "epsilon" in arguments:
        arguments["norm_layer"] = functools.partial(nn.LayerNorm, eps=arguments.pop("epsilon"))
    trunk: nn.Module = timm.create_model(entry.architecture, pretrained=False, num_classes=0, **arguments)
    return trunk


def _vit(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    return _trunk(entry) if entry.pooling == "class" else ClassAndMean(_trunk(entry))


def _resnet(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    network: Any = import_timm().create_model(entry.architecture, pretrained=False, num_classes=0)
    # Features are those of the third stage.
    network.layer4 = nn.Identity()
    return network  # type: ignore[no-any-return]


def _ctranspath(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    timm = import_timm()
    network: nn.Module = timm.create_model(entry.architecture, pretrained=False, num_classes=0, embed_layer=ConvStem)
    return network


def _conch(entry: EncoderEntry, names: Collection[str]) -> nn.Module:
    return Conch(_trunk(entry), entry.features, packed=entry.family == "conch_v1.5")


_FAMILIES: dict[str, Callable[[EncoderEntry, Collection[str]], nn.Module]] = {
    "colour": _colour,
    "monai_resnet": _monai_resnet,
    "resnet": _resnet,
    "vit": _vit,
    "ctranspath": _ctranspath,
    "conch": _conch,
    "conch_v1.5": _conch,
}
