"""Saliency maps by Grad-CAM or occlusion.

Grad-CAM (Selvaraju et al., ICCV 2017) for networks whose output follows from one feature map, as convolutional ones do.
For others, such as transformers, occlusion (Zeiler and Fergus, ECCV 2014): how much the class's probability falls when
a region is covered. Both by MONAI's visualisers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM, OcclusionSensitivity
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed.data.grids import resampled, transfer
from oncofed.devices import free_memory, is_out_of_memory
from oncofed.errors import DataError

Heat = NDArray[np.float32]
Affine = NDArray[np.float64]

GRAD_CAM, OCCLUSION = "Grad-CAM", "occlusion"

# Fewest positions along a feature map's longest side for it to be of use.
_FEWEST_PLACES = 4
# Feature maps that are tried, from the last one back.
_MOST_LAYERS = 12
# Occlusion masks along each side, by dimensions; they overlap by half.
_COVERS = {2: 5, 3: 3}
_IMAGES_AT_ONCE, _VALUES_AT_ONCE = 16, 1 << 22
_NEAR = 1e-3

# torch warns for every mask, since MONAI indexes with lists instead of tuples.
warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing", UserWarning)


@dataclass(frozen=True)
class SaliencyMap:
    """How much each image region supports a class.

    Attributes:
        heat: from 0 to 1, the strongest support; all 0 if there is none; (x, y[, z]) as the image.
        method: "Grad-CAM" or "occlusion".
    """

    heat: Heat
    method: str


class Explainer:
    """Computes saliency maps.

    Args:
        network: from (1, channel, x, y[, z]) to (1, class); its mode, gradients and hooks are not changed.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = _twin(network)
        self._device = next((p.device for p in network.parameters()), torch.device("cpu"))
        self._cam: GradCAM | None = None
        self._shape: torch.Size | None = None  # input shape that the layer was chosen for

    def explain(self, image: Tensor, value: int) -> SaliencyMap:
        """Return the saliency map of a class.

        Args:
            image: (channel, x, y[, z]) float32.
            value: label value of the class.

        Raises:
            DataError: out of memory.
        """
        batch = image[None].to(self._device)
        if batch.shape != self._shape:
            layer = feature_layer(self._network, batch)
            self._cam = None if layer is None else _cam(_twin(self._network), layer)
            self._shape = batch.shape
        heat = self._by_gradients(batch, value)
        method = OCCLUSION if heat is None else GRAD_CAM
        if heat is None:
            heat = self._by_occlusion(batch, value)
        found = heat.clamp_min(0).float().cpu().numpy()
        return SaliencyMap(found / max(float(found.max()), np.finfo(np.float32).tiny), method)

    def _by_gradients(self, batch: Tensor, value: int) -> Tensor | None:
        """Return the Grad-CAM map; None if not possible.

        Either no layer gives one, or memory is short.
        """
        cam = self._cam
        if cam is None:
            return None
        try:
            with torch.enable_grad():
                heat: Tensor = cam(x=batch, class_idx=value)[0, 0].detach()
        except RuntimeError:  # out of memory, or an in-place operation broke the gradients
            self._cam = None
        else:
            return heat
        finally:
            cam.nn_module.gradients.clear()
            cam.nn_module.activations.clear()
        free_memory()
        return None

    @torch.no_grad()
    def _by_occlusion(self, batch: Tensor, value: int) -> Tensor:
        likely = self._network(batch).softmax(1)[0, value]
        most = max(1, min(_IMAGES_AT_ONCE, _VALUES_AT_ONCE // batch.numel()))
        for at_once in dict.fromkeys((most, 1)):
            try:
                return torch.sub(likely, _covered(self._network, batch, at_once)[value])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()  # outside the except block: the traceback keeps the failed pass's tensors alive
        raise DataError(
            "which places speak for its class cannot be found: memory is too short. Free the GPU of other programs "
            "(nvidia-smi), or leave this output out"
        )


def _covered(network: nn.Module, batch: Tensor, at_once: int) -> Tensor:
    """Return class probabilities under occlusion, (class, x, y[, z])."""
    sides = batch.shape[2:]
    occlusion = OcclusionSensitivity(
        network,
        mask_size=[max(1, side // _COVERS[len(sides)]) for side in sides],
        n_batch=at_once,
        verbose=False,
        mode="mean_img",
        overlap=0.5,
        activate=lambda logits: logits.softmax(1),
    )
    covered: Tensor = torch.as_tensor(occlusion(batch)[0])[0]
    return covered


def _twin(network: nn.Module) -> nn.Module:
    """Return a frozen network with shared weights, safe to hook."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    shared |= {id(buffer): buffer for buffer in network.buffers()}
    twin = copy.deepcopy(network, shared)
    for module in twin.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
    return twin.eval()


def _cam(network: nn.Module, layer: str) -> GradCAM:
    """Return Grad-CAM at a layer.

    Gradients stop at that layer, which saves memory.
    """

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in inputs)

    network.get_submodule(layer).register_forward_pre_hook(begin)
    return GradCAM(network, layer, postprocessing=lambda heat: heat)


@torch.no_grad()
def feature_layer(network: nn.Module, like: Tensor) -> str | None:
    """Find the last feature map that determines the output.

    Found by running the network: the layer's output for one image replaces that for another image, and the answer must
    then be that of the first image.

    Args:
        network: in evaluation mode.
        like: an input, (1, channel, x, y[, z]).

    Returns:
        The name, or None: there is no such layer, or the network sees an image as a sequence of tokens.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(like.shape, generator=generator).to(like) for _ in range(2))
    names = _maps(network, one)
    if not names:
        return None
    answer = network(one)
    for name in names[:_MOST_LAYERS]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor, kept: list[Tensor] = kept) -> None:
            kept.append(output)

        with _hooked(network.get_submodule(name), keep):
            network(one)
        with _hooked(network.get_submodule(name), lambda module, inputs, output, kept=kept: kept[0]):
            replaced = network(other)
        if torch.allclose(replaced, answer, rtol=1e-4, atol=1e-5):
            return name
    return None


def _maps(network: nn.Module, image: Tensor) -> list[str]:
    """Return layers with feature maps, last first; none: token networks."""
    found: list[str] = []
    calls: dict[str, int] = {}
    tokens = False

    def look(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal tokens
            calls[name] = calls.get(name, 0) + 1
            is_map = isinstance(output, Tensor) and output.ndim == image.ndim and len(output) == 1
            if isinstance(module, nn.Linear) and output.ndim > 2:
                tokens = True
            elif is_map and max(output.shape[2:]) >= _FEWEST_PLACES and "Pad" not in type(module).__name__:
                found.append(name)

        return seen

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return [] if tokens else [name for name in reversed(found) if calls[name] == 1]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def resample_heat(heat: Heat, affine: Affine, target: Affine, shape: tuple[int, ...]) -> Heat:
    """Resample a map to another grid; 0 outside it.

    Args:
        heat: (x, y[, z]).
        affine: of its grid, (4, 4) from voxels to mm.
        target: affine of the other grid.
        shape: of the other grid.
    """
    values: Heat = resampled(torch.from_numpy(heat)[None], affine, target, shape)[0].numpy()
    dimensions = heat.ndim
    matrix = transfer(affine, target, dimensions)
    corners = np.array([[*corner, 1] for corner in product(*((0, side - 1) for side in shape))], np.float64)
    if _reached((matrix @ corners.T)[:-1], heat.shape).all():
        return values
    plane = np.indices(shape[1:]).reshape(dimensions - 1, -1)
    begun = matrix[:-1, 1:-1] @ plane + matrix[:-1, -1:]
    for first, values_there in enumerate(values):
        values_there[~_reached(begun + matrix[:-1, :1] * first, heat.shape).reshape(shape[1:])] = 0
    return values


def _reached(places: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which positions lie inside a grid."""
    ends = np.array(shape)[:, None] - 0.5 + _NEAR
    return np.asarray(((places >= -0.5 - _NEAR) & (places <= ends)).all(axis=0))
