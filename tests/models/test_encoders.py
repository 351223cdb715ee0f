"""The catalogue of encoders: true architectures, makers' files, and files that are not what they should be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from oncofed.errors import SpecError, TrainingError
from oncofed.models.encoders import (
    EncoderEntry,
    Images,
    Reference,
    build_network,
    catalogue,
    catalogue_name,
    check_encoder,
    encoders_folder,
    find_entry,
    keep_weights,
    kept_digest,
    known_tile,
    load_encoder,
    require_weights,
    unusual_tiles,
    weights_digest,
)
from oncofed.models.encoders.networks import AttentionPool, import_timm
from timm_networks import need_timm, random_weights, small, write

CPU = torch.device("cpu")
# Millions of parameters as the makers' cards, or LazySlide's table of models, state them.
STATED = {
    "uni": 303.4,
    "uni2-h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "h-optimus-0": 1134.8,
    "h-optimus-1": 1134.8,
    "h0-mini": 85.7,
    "gigapath": 1134.9,
    "phikon": 85.8,
    "phikon-v2": 303.4,
    "ctranspath": 27.5,
    "hibou-b": 85.7,
    "hibou-l": 303.7,
    "lunit-vits16": 21.7,
    "kaiko-vitb16": 85.8,
}


@pytest.mark.parametrize("name", catalogue())
def test_the_true_architecture_takes_its_own_input_and_makes_its_features(name: str) -> None:
    entry = find_entry(name)
    if entry.family not in {"colour", "monai_resnet"}:
        need_timm()
    with torch.device("meta"), torch.no_grad():
        network = build_network(entry)
        side = entry.pixels or 64
        found = network(torch.empty(2, 3, side, side))
    assert found.shape == (2, entry.features)
    if name in STATED:
        millions = sum(value.numel() for value in network.parameters()) / 1e6
        assert millions == pytest.approx(STATED[name], abs=0.1)


def test_each_entry_says_what_a_hospital_needs() -> None:
    for entry in catalogue().values():
        assert entry.licence
        assert entry.source.startswith(("https://", "a job of type")) or not entry.has_weights
        assert entry.weights_of is None or entry.weights_of in catalogue()
        assert (entry.tile is None) == (entry.mpp is None)
        assert catalogue_name(entry.name) == entry.name


def test_names_of_other_tools_lead_to_entries() -> None:
    found = [
        catalogue_name(name)
        for name in ("uni_v1", "UNI_V2", "conch_v15", "hoptimus0", "virchow_v2", "H_optimus_0", "titan")
    ]
    assert found == ["uni", "uni2-h", "conch-v1.5", "h-optimus-0", "virchow2", "h-optimus-0", None]
    with pytest.raises(SpecError, match="no encoder virchow3; did you mean virchow"):
        find_entry("virchow3")


def test_conch_is_normalised_as_clip_and_conch_v15_as_imagenet() -> None:
    white = np.full((448, 448, 3), 255, np.uint8)
    made = Images(find_entry("conch"), CPU)(torch.from_numpy(white)[None])[0, :, 0, 0]
    # (1 - mean) / deviation of open_clip's OPENAI_DATASET_MEAN and OPENAI_DATASET_STD.
    torch.testing.assert_close(made.float(), torch.tensor([1.9303, 2.0749, 2.1459]), rtol=0, atol=1e-3)
    assert find_entry("conch-v1.5").mean == (0.485, 0.456, 0.406)


@torch.no_grad()
def test_a_class_token_beside_the_mean_of_patches_leaves_registers_out() -> None:
    need_timm()
    network: Any = build_network(small("virchow2"))
    images = torch.rand(1, 3, 224, 224)
    tokens = network.network.forward_features(images)
    assert tokens.shape[1] == 1 + 4 + 256
    found = network(images)
    assert torch.equal(found[:, :48], tokens[:, 0])
    assert torch.allclose(found[:, 48:], tokens[:, 5:].mean(1))


@torch.no_grad()
def test_both_forms_of_conchs_pooling_attend_alike() -> None:
    plain, packed = AttentionPool(16, 24, 2, packed=False).eval(), AttentionPool(16, 24, 2, packed=True).eval()
    attention = plain.attn
    packed.query.copy_(plain.query)
    packed.to_q.weight.copy_(attention.q_proj_weight)
    packed.to_kv.weight.copy_(torch.cat([attention.k_proj_weight, attention.v_proj_weight]))
    packed.to_out.weight.copy_(attention.out_proj.weight)
    tokens = torch.randn(3, 7, 24)
    assert torch.allclose(plain(tokens), packed(tokens), atol=1e-6)


@pytest.mark.parametrize("side", [224, 256, 512])
@pytest.mark.parametrize(("name", "mode"), [("uni", Image.Resampling.BILINEAR), ("virchow", Image.Resampling.BICUBIC)])
def test_tiles_are_resized_as_makers_do_with_pillow(name: str, mode: Image.Resampling, side: int) -> None:
    entry, tile = find_entry(name), known_tile(side)
    found = Images(entry, CPU)(torch.from_numpy(tile)[None])[0]
    pictured = np.asarray(Image.fromarray(tile).resize((224, 224), mode), np.float32).transpose(2, 0, 1) / 255
    mean, deviation = (np.array(values, np.float32).reshape(3, 1, 1) for values in (entry.mean, entry.std))
    apart = np.abs(found.numpy() - (pictured - mean) / deviation) * deviation * 255
    # Pillow and torch round weights of the kernel differently.
    assert apart.max() < 2.01
    assert apart.mean() < 0.05


def test_gigapath_cuts_the_middle_out() -> None:
    entry, tile = find_entry("gigapath"), known_tile(256)
    found = Images(entry, CPU)(torch.from_numpy(tile)[None])[0]
    middle = torch.from_numpy(tile[16:240, 16:240]).permute(2, 0, 1).float() / 255
    assert torch.allclose(
        found, (middle - torch.tensor(entry.mean)[:, None, None]) / torch.tensor(entry.std)[:, None, None]
    )


def test_the_known_tile_is_the_same_everywhere() -> None:
    tile = known_tile()
    assert tile.shape == (224, 224, 3)
    assert (int(tile.sum()), tile[100, 100].tolist(), tile[3, 210].tolist()) == (
        26_813_919,
        [216, 183, 204],
        [96, 80, 153],
    )


def features(entry: EncoderEntry, path: Path, **more: bool) -> Tensor:
    """Return what a file makes of the known tile."""
    loaded = load_encoder(entry, path, **more)
    with torch.no_grad():
        found: Tensor = loaded.network(Images(entry, CPU)(torch.from_numpy(known_tile())[None]))
    return found


PREFIXES = ["module.", "backbone.", "model.", "encoder.", "module.encoder.", "teacher.backbone.", "visual.trunk."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_and_a_format_change_neither_digest_nor_features(prefix: str, tmp_path: Path) -> None:
    need_timm()
    entry = small()
    weights = random_weights(entry)
    plain = write(weights, tmp_path / "plain.safetensors")
    prefixed = write({f"{prefix}{name}": value for name, value in weights.items()}, tmp_path / "model.bin")
    first, second = load_encoder(entry, plain), load_encoder(entry, prefixed, may_be_pickle=True)
    assert first.digest == second.digest == weights_digest(weights)
    assert second.notes == (f"names begin with {prefix}",)
    assert torch.equal(features(entry, plain), features(entry, prefixed, may_be_pickle=True))


def test_of_teacher_and_student_the_teacher_encodes(tmp_path: Path) -> None:
    need_timm()
    entry = small()
    teacher, student = random_weights(entry, 1), random_weights(entry, 2)
    both = {
        "teacher": {f"backbone.{name}": value for name, value in teacher.items()} | {"dino_head.last": torch.ones(3)},
        "student": {f"module.backbone.{name}": value for name, value in student.items()},
        "epoch": 200,
        "args": argparse.Namespace(arch="vit_small", lr=0.0005),
    }
    torch.save(both, tmp_path / "checkpoint.pth")
    loaded = load_encoder(entry, tmp_path / "checkpoint.pth", may_be_pickle=True)
    assert loaded.digest == weights_digest(teacher)
    twice = {**{f"a.{n}": v for n, v in teacher.items()}, **{f"b.{n}": v for n, v in student.items()}}
    with pytest.raises(TrainingError, match=r"holds 2 networks \(a\., b\.\), expected one"):
        load_encoder(entry, write(twice, tmp_path / "twice.safetensors"))


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Dinov2WithRegisters"])
@torch.no_grad()
def test_weights_of_transformers_make_what_transformers_makes(name: str, tmp_path: Path) -> None:
    need_timm()
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 224}
    more: dict[str, Any] = {"intermediate_size": 192} if name == "ViT" else {}
    entry = small("phikon" if name == "ViT" else "phikon-v2")
    if name == "Dinov2WithRegisters":
        more, entry = {"use_swiglu_ffn": True}, small("hibou-b", arguments={"patch_size": 16})
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    torch.manual_seed(3)
    theirs: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    for value in theirs.parameters():
        value.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "model.safetensors"
    images = torch.randn(2, 3, 224, 224)
    expected = theirs(images).last_hidden_state[:, 0]
    loaded = load_encoder(entry, path)
    assert "named as transformers does" in loaded.notes
    assert torch.allclose(loaded.network(images), expected, atol=2e-4)


def dinov2_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a transformer with registers under the names of DINOv2's own code, in chunks of blocks."""
    named = {}
    for name, value in weights.items():
        parts = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").split(".")
        named[".".join(["blocks", "0", *parts[1:]] if parts[0] == "blocks" else parts)] = value
    token = torch.full_like(weights["cls_token"], 0.25)
    named["pos_embed"] = torch.cat([token, weights["pos_embed"]], dim=1)
    named["cls_token"] = weights["cls_token"] - token
    named["register_tokens"] = named.pop("reg_token")
    return {**named, "mask_token": torch.zeros(1, 48)}


def test_dinov2s_own_names_are_understood(tmp_path: Path) -> None:
    need_timm()
    entry = small("hibou-b")
    weights = random_weights(entry)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    write(weights, ours)
    torch.save({"teacher": dinov2_names(weights)}, theirs)
    assert torch.allclose(features(entry, ours), features(entry, theirs, may_be_pickle=True), atol=1e-5)


def swin_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return Swin's weights under the names of its own code, which CTransPath's file has."""
    named = {}
    for name, value in weights.items():
        parts = name.split(".")
        if "downsample" in name:
            parts[1] = str(int(parts[1]) - 1)
        named[".".join(parts)] = value
    named["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    return {"model": named}  # type: ignore[dict-item]


def test_ctranspath_loads_from_the_names_of_its_maker(tmp_path: Path) -> None:
    need_timm()
    entry = find_entry("ctranspath")
    weights = random_weights(entry)
    torch.save(swin_names(weights), tmp_path / "ctranspath.pth")
    loaded = load_encoder(entry, tmp_path / "ctranspath.pth", may_be_pickle=True)
    assert loaded.digest == weights_digest(weights)
    assert loaded.notes == ("names begin with model.", "named as Swin does")


# Names of transformers' Swin, and those of Swin's own code.
_SWIN = (
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.", ""),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.self.relative", "attn.relative"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm", "norm"),
)


@torch.no_grad()
def test_ctranspath_is_a_swin_transformer_behind_convolutions(tmp_path: Path) -> None:
    need_timm()
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(4)
    theirs = transformers.SwinModel(transformers.SwinConfig()).eval()  # of Swin-T
    for value in theirs.parameters():
        value.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    entry = find_entry("ctranspath")
    stored = {key: value for key, value in random_weights(entry).items() if key.startswith("patch_embed.proj")}
    for key, value in load_file(tmp_path / "model.safetensors").items():
        for other, own in _SWIN:
            key = key.replace(other, own)  # noqa: PLW2901 - one after the other
        stored[key] = value
    for key in [key for key in stored if ".attention.self.query." in key]:
        parts = [stored.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        stored[key.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
    stored = {key: value for key, value in stored.items() if "projection" not in key and "pooler" not in key}
    loaded = load_encoder(entry, write(stored, tmp_path / "ctranspath.safetensors"))
    network: Any = loaded.network
    theirs.embeddings.patch_embeddings.projection = network.patch_embed.proj
    images = torch.randn(2, 3, 224, 224)
    assert torch.allclose(network(images), theirs(images).pooler_output, atol=1e-5)


def test_conch_is_taken_out_of_the_whole_model(tmp_path: Path) -> None:
    need_timm()
    for name, positions in (("conch", (785, 197)), ("conch-v1.5", (785, 197))):
        entry = small(name).model_copy(update={"features": 64})
        weights = random_weights(entry)
        for tokens in positions:
            stored = {f"visual.{key}": value for key, value in weights.items()}
            stored["visual.trunk.pos_embed"] = torch.rand(1, tokens, 48)
            stored |= {"visual.proj_contrast": torch.ones(64, 64)} if name == "conch" else {}
            stored |= {"text.token_embedding.weight": torch.ones(5, 3), "logit_scale": torch.ones(())}
            path = write(stored, tmp_path / f"{name}-{tokens}.safetensors")
            loaded = load_encoder(entry, path)
            assert "2 tensors of other parts are left out" in loaded.notes
            assert loaded.weights["trunk.pos_embed"].shape == (1, 785, 48)
            assert torch.equal(loaded.weights["trunk.pos_embed"][:, 0], stored["visual.trunk.pos_embed"][:, 0])


def test_resnet50_of_imagenet_leaves_its_last_stage_out(tmp_path: Path) -> None:
    need_timm()
    entry = find_entry("resnet50-imagenet")
    weights = random_weights(entry)
    more = {
        "layer4.0.conv1.weight": torch.ones(2),
        "fc.weight": torch.ones(1000, 2048),
        "bn1.num_batches_tracked": torch.ones(()),
    }
    assert load_encoder(entry, write({**weights, **more}, tmp_path / "r.safetensors")).digest == weights_digest(weights)


def test_half_precision_is_told(tmp_path: Path) -> None:
    need_timm()
    entry = small()
    weights = random_weights(entry)
    path = write({name: value.half() for name, value in weights.items()}, tmp_path / "half.safetensors")
    loaded = load_encoder(entry, path)
    assert "in half precision (float16)" in loaded.notes[0]
    assert loaded.digest != weights_digest(weights)
    assert {value.dtype for value in loaded.network.parameters()} == {torch.float32}


def test_weights_are_kept_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_timm()
    monkeypatch.setenv("ONCOFED_ENCODERS", str(tmp_path / "kept"))
    entry = small("virchow2")
    with pytest.raises(TrainingError, match=r"virchow2 are not at hand here.*paige-ai/Virchow2, whose maker hands"):
        require_weights(entry)
    loaded = load_encoder(entry, write(random_weights(entry), tmp_path / "m.bin"), may_be_pickle=True)
    path = keep_weights(entry, loaded)
    assert path == encoders_folder() / "virchow2.safetensors"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert kept_digest(entry) == load_encoder(entry, require_weights(entry)).digest == loaded.digest
    assert load_file(path).keys() == loaded.weights.keys()
    # The class token alone comes from the same file.
    assert require_weights(small("virchow2-cls")) == path
    monkeypatch.delenv("ONCOFED_ENCODERS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert encoders_folder() == tmp_path / "data" / "oncofed" / "encoders"


def test_a_check_compares_with_the_reference_that_an_entry_keeps(tmp_path: Path) -> None:
    need_timm()
    entry = small()
    loaded = load_encoder(entry, write(random_weights(entry, 1), tmp_path / "m.safetensors"))
    found = check_encoder(entry, loaded)
    assert (found.same, found.digest) == (None, loaded.digest)
    assert "no reference: nobody of this project had these weights" in found.verdict
    kept = entry.model_copy(update={"reference": Reference(digest=found.digest, features=found.features)})
    assert check_encoder(kept, loaded).verdict == "the same weights as the catalogue's reference"
    half = {name: value.half() for name, value in loaded.weights.items()}
    rounded = check_encoder(kept, load_encoder(kept, write(half, tmp_path / "half.safetensors")))
    assert rounded.same
    assert "the same features, from weights with another digest" in rounded.verdict
    other = load_encoder(kept, write(random_weights(entry, 2), tmp_path / "other.safetensors"))
    assert check_encoder(kept, other).same is False
    zeros = {name: torch.zeros_like(value) for name, value in loaded.weights.items()}
    empty = check_encoder(entry, load_encoder(entry, write(zeros, tmp_path / "zeros.safetensors")))
    assert empty.same is False
    assert "all features are one number" in empty.verdict


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('nms does not exist')", "cannot be imported beside torch .*nms does not exist"),
        ("import no_such_library", "timm, which cannot be imported beside torch"),
    ],
)
def test_without_a_timm_that_can_be_imported_the_error_says_what_to_install(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(TrainingError, match=rf"{told}.*pip install 'oncofed\[encoders\]'"):
        import_timm()


def test_tiles_that_an_encoder_was_not_made_for_are_told() -> None:
    assert unusual_tiles("uni", [(256, 0.5), (None, None), (256, 0.4602)]) == [], "a scanner's 20x is not quite 0.5"
    assert unusual_tiles("nobody-knows-it", [(64, 2.0)]) == []
    assert unusual_tiles("colour", [(64, 2.0)]) == [], "it takes any"
    (both,) = unusual_tiles("UNI_v1", [(64, 1.0), (64, 1.0), (256, 0.5)])
    assert both.startswith(
        "tiles of 64 pixels a side and 1 microns a pixel, expected 256 pixels and 0.5 microns a pixel"
    )
    assert "--tile 256 --mpp 0.5" in both
    assert "data.patch [256, 256] and data.spacing [0.0005, 0.0005]" in both
    (coarse,) = unusual_tiles("uni", [(256, 1.0)])
    assert "--tile" not in coarse
