"""Files that are not the weights that an encoder takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oncofed.errors import TrainingError
from oncofed.models.encoders import load_encoder
from oncofed.models.encoders.files import read_tensors
from timm_networks import need_timm, random_weights, small, write

_FLOAT8 = torch.float8_e4m3fn


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what leaves weights out whose names contain a text."""
    return lambda weights: {key: value for key, value in weights.items() if name not in key}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("ls1"), r"2 of its 34 tensors are missing \(blocks\.0\.ls1\.gamma, blocks\.1\.ls1\.gamma\)"),
        (lambda w: {**w, "adapter.weight": torch.ones(1)}, r"1 tensor is none of its \(adapter\.weight\)"),
        (without("patch_embed"), r"expected a tensor patch_embed\.proj\.weight, found 32 others"),
        (lambda w: {**w, "norm.bias": torch.ones(64)}, r"norm\.bias has \(64,\), expected \(48,\)"),
        (
            lambda w: random_weights(small(arguments={"embed_dim": 96})),
            r"of its 34 tensors have another shape as of a larger or smaller architecture",
        ),
        (lambda w: {**w, "norm.bias": torch.full((48,), float("nan"))}, r"NaN or infinity \(norm\.bias\)"),
        (
            lambda w: {**w, "norm.bias": w["norm.bias"].to(torch.int8), "norm.weight": w["norm.weight"].to(_FLOAT8)},
            r"2 tensors of float8_e4m3fn, int8 \(norm\.bias, norm\.weight\), .* these weights are quantised",
        ),
        (lambda w: {**w, "pos_embed": torch.ones(1, 37 * 37 + 1, 48)}, "for 37 x 37 patches, expected 14 x 14"),
    ],
)
def test_other_weights_are_told_by_what_differs(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str, tmp_path: Path
) -> None:
    need_timm()
    entry = small()
    path = write(change(random_weights(entry)), tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=told):
        load_encoder(entry, path)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (sys.exit, (9,))


def test_files_that_are_no_weights_are_told(tmp_path: Path) -> None:
    need_timm()
    entry = small()
    whole = write(random_weights(entry), tmp_path / "whole.safetensors").read_bytes()
    torch.save(random_weights(entry), tmp_path / "whole.bin")
    torch.save({"model": Evil()}, tmp_path / "evil.bin")
    pickled = (tmp_path / "whole.bin").read_bytes()
    contents = {
        "short.safetensors": (whole[: len(whole) // 2], "short.safetensors: cut short or damaged"),
        "short.bin": (
            pickled[: len(pickled) // 2],
            "short.bin: neither safetensors nor PyTorch's format, or cut short",
        ),
        "start.safetensors": (whole[:5], "start.safetensors: cut short or damaged"),
        "header.safetensors": (whole[:100], "header.safetensors: cut short or damaged"),
        "index.json": (b'{"weight_map": {}}', "index.json: a text in JSON, which may tell of the weights"),
        "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(90), r"PyTorch's format \(it looks like an HDF5 file\)"),
        "empty.bin": (b"", "empty.bin: the file is empty"),
        "lfs.bin": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS instead of the weights"),
        "page.bin": (b"<!DOCTYPE html><html>", "a web page instead of weights"),
        "text.bin": (b"hello, I am no weights at all", "neither safetensors nor PyTorch's format"),
        "evil.bin": ((tmp_path / "evil.bin").read_bytes(), "it holds sys.exit, expected tensors alone"),
    }
    for name, (content, told) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError, match=told) as caught:
            load_encoder(entry, tmp_path / name, may_be_pickle=True)
        assert "miniz" not in str(caught.value)
    for contents_of_none in ([1, 2], {}, {"epoch": 3}, torch.ones(2)):
        torch.save(contents_of_none, tmp_path / "none.pt")
        with pytest.raises(TrainingError, match=r"none\.pt: it names no tensor, expected a state_dict"):
            load_encoder(entry, tmp_path / "none.pt", may_be_pickle=True)
    with pytest.raises(TrainingError, match="a folder, expected the file"):
        load_encoder(entry, tmp_path, may_be_pickle=True)
    with pytest.raises(TrainingError, match="Convert it once: oncofed data encoders add uni FILE"):
        load_encoder(entry, tmp_path / "whole.bin")


def test_a_header_whose_length_reads_like_a_page_is_no_page(tmp_path: Path) -> None:
    """The length precedes the header: 15,392 bytes are a space and a less-than sign."""
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, {"note": "n" * (0x3C20 - 100)})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_file({"a": torch.ones(2)}, path, {"note": "n" * (0x3C20 - 100 + 0x3C20 - length)})
    assert path.read_bytes()[:2] == b" <"
    assert list(read_tensors(path, "uni", may_be_pickle=False)) == ["a"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "jit.pt")
    with pytest.raises(TrainingError, match=r"jit\.pt: a compiled model, which is code"):
        load_encoder(small(), tmp_path / "jit.pt", may_be_pickle=True)
