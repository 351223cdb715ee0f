"""Settings of a job's network."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from oncofed.errors import SpecError
from oncofed.models.adapters import AdapterSpec
from oncofed.models.foreign import EXPRESSIONS
from oncofed.models.fusion import Fusion
from oncofed.models.known import find_network
from oncofed.models.weights import WeightLayout
from oncofed.plugins import NETWORKS, Kind, Network, is_loaded
from oncofed.settings import StrictModel

# Networks that a plan makes: a step and a kernel of each axis, and coarser outputs.
_PLANNED = ("dynunet", "residual_unet")
# Parts of argument names: those that make a network download weights, and those that make it open a file if the
# value is text (drop_path_rate is a number).
_FETCHES, _OPENS = ("pretrain", "url", "weights"), ("path", "file")


class DeclaredTensor(StrictModel):
    """A network's tensor, as a job declares it.

    Type, shape, whether training changes it, and whether by gradients.
    """

    dtype: str = Field(pattern=r"^(float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool)$", description="as torch names it")
    shape: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = Field(max_length=8, description="its sides")
    travels: bool = Field(description="it leaves the site with each update")
    trained: bool = Field(description="training changes it by gradients")


class Declared(StrictModel):
    """A pack's network, as a job declares it.

    For processes that do not run the pack: the server, and a site's outbound filter.
    """

    kind: Kind = Field(description="what goes in and comes out")
    divisor: int = Field(ge=0, le=4096, description="that divides each side of a patch; 0: any size")
    tensors: dict[str, DeclaredTensor] = Field(min_length=1, max_length=100_000, description="name -> tensor")

    @classmethod
    def of(cls, kind: Kind, divisor: int, layout: WeightLayout) -> Declared:
        """Return it of a network's layout."""
        tensors = {
            name: DeclaredTensor(
                dtype=str(value.dtype).removeprefix("torch."),
                shape=tuple(value.shape),
                travels=name in layout.travelling,
                trained=name in layout.trained,
            )
            for name, value in layout.weights.items()
        }
        return cls(kind=kind, divisor=divisor, tensors=tensors)

    def layout(self) -> WeightLayout:
        """Return it as a network's layout."""
        return WeightLayout(
            {n: torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for n, t in self.tensors.items()},
            frozenset(name for name, tensor in self.tensors.items() if tensor.travels),
            frozenset(name for name, tensor in self.tensors.items() if tensor.trained),
        )


_Stride = Annotated[tuple[Literal[1, 2], ...], Field(min_length=2, max_length=3)]
_Kernel = Annotated[tuple[Literal[1, 3], ...], Field(min_length=2, max_length=3)]


class ModelSpec(StrictModel):
    """Which network a job trains.

    Checking it imports no pack. If the pack is not loaded, ``lacks_code`` is true, and methods that need the network
    raise ``SpecError``.
    """

    code: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="digest of the pack that brings the network (oncofed job pack)"
    )
    declared: Declared | None = Field(None, description="what the pack's network is like; filled in on export")
    network: str = Field("unet", description="a name that `oncofed job networks` lists, or that the pack registers")
    channels: tuple[Annotated[int, Field(ge=4, le=2048)], ...] | None = Field(
        None,
        min_length=2,
        max_length=10,
        description="feature maps at each resolution, finest first; null: the network's own",
    )
    strides: tuple[_Stride, ...] | None = Field(
        None,
        description="step of each resolution along each axis, finest first, as the job's plan proposes for grids whose "
        "axes differ (dynunet, residual_unet); null: 1, then 2 for each further one",
    )
    kernel_size: tuple[_Kernel, ...] | None = Field(
        None,
        description="side of the convolutions of each resolution along each axis, 1 or 3 (dynunet, residual_unet); "
        "null: 3",
    )
    bundle: str | None = Field(
        None, description="network bundle: folder of a MONAI bundle that server and sites have under this path"
    )
    bundle_digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of definition and weights; a bundle with another one is refused"
    )
    residual_units: int = Field(2, ge=0, le=4, description="convolutions with a skip at each resolution (unet)")
    norm: Literal["instance", "group", "batch"] | None = Field(None, description="null: the network's own, never batch")
    deep_supervision: int = Field(
        0, ge=0, le=4, description="coarser outputs that are learned from too (dynunet, residual_unet)"
    )
    fusion: Fusion = Field(
        "concat",
        description="how the table's columns (data.covariates) join the image's features; film: they scale and shift "
        "them; none: they are left out",
    )
    adapter: AdapterSpec | None = Field(
        None,
        description="of transformers: small matrices are trained and travel, with the output layer and what "
        "training.trainable names; the other weights stay as they are. A published model to start from: --model",
    )
    arguments: dict[str, float | int | str | bool | list[int]] = Field(
        default_factory=dict, description="further arguments of the network, as MONAI names them"
    )

    @field_validator("network")
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        code = info.data.get("code") or ""
        if not info.data.get("declared") and (not code or is_loaded(code)):
            try:
                find_network(name, code)
            except SpecError as error:
                raise ValueError(str(error)) from None
        return name

    @field_validator("arguments")
    @classmethod
    def _are_values(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Refuse expressions, references and instructions to MONAI's bundle parser."""
        for name, value in arguments.items():
            if not name.isidentifier() or name.startswith("_"):
                raise ValueError(f"found {name!r}, expected the name of an argument, which begins with a letter")
            if isinstance(value, str) and value[:1] in EXPRESSIONS:
                raise ValueError(f"{name}: found {value!r}, expected a plain value: expressions are code")
            parts = (*_FETCHES, *(_OPENS if isinstance(value, str) else ()))
            if value and any(part in name.lower() for part in parts):
                raise ValueError(f"{name}: weights come with the job, as safetensors (--model): no site downloads any")
        return arguments

    @model_validator(mode="after")
    def _fits_the_network(self) -> ModelSpec:
        if self.declared and not self.code:
            raise ValueError("declared goes with code")
        if self.declared or self.lacks_code:
            return self
        network = self._network
        of_pack = self.code is not None and self.network in NETWORKS.names(self.code)
        if of_pack and (self.bundle or self.channels or self.norm or self.deep_supervision or self.adapter):
            raise ValueError(
                "a pack's network takes model.arguments alone, no bundle, channels, norm, deep_supervision, adapter"
            )
        if self.channels and not network.channels:
            raise ValueError(f"{self.network} has no channels to set; see its arguments")
        channels = self.feature_maps
        doubled = tuple(channels[0] * 2**i for i in range(len(channels))) if channels else ()
        if self.network == "segresnet" and channels != doubled:
            raise ValueError(f"segresnet doubles its channels at each resolution: expected {list(doubled)}")
        if (self.network == "bundle") != (self.bundle is not None):
            raise ValueError("network: bundle and bundle: FOLDER go together")
        if self.norm == "instance" and self.network in {"resnet18", "resnet50", "hovernet"}:
            raise ValueError(f"{self.network} is normalised by group or batch")
        if self.deep_supervision and self.network not in _PLANNED:
            raise ValueError(f"deep_supervision is of {' and '.join(_PLANNED)}; leave it at 0")
        self._require_resolutions(len(channels))
        if self.deep_supervision > max(len(channels) - 2, 0):
            raise ValueError(f"deep_supervision is {self.deep_supervision}, expected at most {len(channels) - 2}")
        return self

    def _require_resolutions(self, levels: int) -> None:
        """Require that strides and kernels are stated for each resolution.

        Raises:
            ValueError: they are not.
        """
        for name in ("strides", "kernel_size"):
            stated = getattr(self, name)
            if stated is None:
                continue
            if self.network not in _PLANNED:
                raise ValueError(f"{name} is of {' and '.join(_PLANNED)}; leave it out")
            if len(stated) != levels or len({len(axes) for axes in stated}) > 1:
                raise ValueError(
                    f"{name} has {len(stated)} entries, expected {levels}, one for each of channels, each with a "
                    "number an axis"
                )

    @property
    def lacks_code(self) -> bool:
        """Whether the network's pack is not loaded."""
        return self.code is not None and self.declared is None and not is_loaded(self.code)

    @property
    def kind(self) -> Kind:
        """The kind of the network's output."""
        return self.declared.kind if self.declared else self._network.kind

    @property
    def adds_loss(self) -> bool:
        """Whether the network has a loss of its own."""
        return not self.declared and self._network.adds_loss

    @property
    def feature_maps(self) -> tuple[int, ...]:
        """Channels at each resolution: the job's, or the network's own."""
        return self.channels or (() if self.declared else self._network.channels)

    def divisors(self, dimensions: int) -> tuple[int, ...]:
        """Return what divides each side of the input, in voxels."""
        if self.strides is None:
            return (self.divisor,) * dimensions
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))

    @property
    def divisor(self) -> int:
        """Divisor of each axis of the input, in voxels, where all axes are alike."""
        divisor = self.declared.divisor if self.declared else self._network.divisor
        return divisor or int(2 ** (len(self.feature_maps) - 1))

    @property
    def _network(self) -> Network:
        return find_network(self.network, self.code or "")
