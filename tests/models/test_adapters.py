"""Low-rank adapters: what is trained and travels, and how they are merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oncofed.errors import SpecError
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.job.warm_start import warm_start
from oncofed.messages.compression import travelling_bytes
from oncofed.models.adapters import is_adapter, merge_adapters, merged
from oncofed.models.serialized import Serialized, write_tensors
from oncofed.models.weights import load_weights
from oncofed.prediction.bundles import read_own_bundle
from oncofed.prediction.model import network_of

WIDTH, LAYERS, RANK, CLASSES = 48, 2, 4, 3
JOB: dict[str, Any] = {
    "schema": 1,
    "name": "x",
    "title": "X",
    "data": {"dataset": "x", "modality": "xray", "patch": (32, 32)},
    "task": {"type": "classification", "classes": {0: "a", 1: "b", 2: "c"}},
    "model": {
        "network": "vit",
        "arguments": {"hidden_size": WIDTH, "mlp_dim": 96, "num_layers": LAYERS, "num_heads": 4},
    },
}
IMAGES = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def _spec(**adapter: object) -> JobSpec:
    spec = JobSpec.model_validate(JOB)
    return spec.changed({"model": {"adapter": {"rank": RANK, **adapter}}})


def _changed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights whose adapters say something."""
    generator = torch.Generator().manual_seed(1)
    return {n: v + 0.1 * torch.randn(v.shape, generator=generator) if is_adapter(n) else v for n, v in weights.items()}


def test_the_network_starts_as_it_is_and_adapters_and_output_alone_travel() -> None:
    plain, adapted = JobSpec.model_validate(JOB).plan(), _spec().plan()
    network = adapted.build_network().eval()
    torch.testing.assert_close(network(IMAGES), plain.build_network().eval()(IMAGES))
    layout = adapted.layout()
    assert layout.trained == layout.travelling
    adapters = {name for name in layout.trained if is_adapter(name)}
    assert len(adapters) == 2 * 2 * LAYERS, "qkv and the projection of each block, two matrices each"
    assert layout.trained - adapters == {"classification_head.weight", "classification_head.bias"}
    # Bytes on the way: 4 of each number, and of all others none.
    of_block = RANK * (WIDTH + 3 * WIDTH) + RANK * (WIDTH + WIDTH)
    expected = 4 * (LAYERS * of_block + CLASSES * WIDTH + CLASSES)
    assert travelling_bytes(layout.sent, "native") == expected
    values = {name: value for name, value in adapted.initial_weights().items() if name in layout.travelling}
    assert sum(value.nbytes for value in values.values()) == expected < 0.15 * plain.layout().nbytes
    assert Serialized(values).size < expected + 4096


def test_of_a_swin_transformer_nothing_but_adapters_and_output_travels() -> None:
    values = {**JOB, "data": {"dataset": "x", "patch": (32, 32, 32)}}
    values["task"] = {"type": "segmentation", "classes": {1: "a"}}
    values["model"] = {"network": "swinunetr", "arguments": {"feature_size": 12}, "adapter": {"rank": RANK}}
    layout = JobSpec.model_validate(values).plan().layout()
    assert layout.travelling == layout.trained
    assert {name for name in layout.trained if not is_adapter(name)} == {"out.conv.conv.weight", "out.conv.conv.bias"}
    tables = {name for name, value in layout.weights.items() if not value.is_floating_point()}
    assert tables, "relative positions are a model's, and the same everywhere"
    assert travelling_bytes(layout.sent, "native") < 0.05 * layout.nbytes


def test_training_changes_nothing_that_does_not_travel() -> None:
    plan = _spec().plan()
    network, before = plan.build_network(), plan.initial_weights()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # the first step moves one of two matrices, for the other is zero
        optimizer.zero_grad()
        network(IMAGES).square().sum().backward()
        optimizer.step()
    after = network.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == plan.layout().trained


def test_further_weights_may_be_trained() -> None:
    plan = JobSpec.model_validate({**JOB, "training": {"trainable": ["norm.*"]}})
    plan = plan.changed({"model": {"adapter": {}}})
    trained = plan.plan().layout().trained
    assert {name for name in trained if not is_adapter(name)} == {"norm.weight", "norm.bias"}


def test_merged_adapters_answer_alike_in_bundle_and_prediction(tmp_path: Path) -> None:
    spec = _spec()
    plan, plain = spec.plan(), JobSpec.model_validate(JOB).plan()
    weights = _changed(plan.initial_weights())
    network = plan.build_network().eval()
    load_weights(network, weights)
    expected = network(IMAGES)
    assert not torch.allclose(expected, plain.build_network().eval()(IMAGES), atol=1e-3)
    without = plain.build_network().eval()
    load_weights(without, merged(weights))
    torch.testing.assert_close(without(IMAGES), expected)
    merge_adapters(network)
    torch.testing.assert_close(network(IMAGES), expected)
    assert network.state_dict().keys() == without.state_dict().keys()
    torch.testing.assert_close(network_of(spec, weights, torch.device("cpu"))(IMAGES), expected)
    bundle = plan.write_bundle(tmp_path, "X", weights, spec.model_dump(mode="json", by_alias=True))
    job, stored, _ = read_own_bundle(bundle)
    assert job.model.adapter is None
    torch.testing.assert_close(network_of(job, stored, torch.device("cpu"))(IMAGES), expected)


def test_a_job_with_adapters_starts_from_one_without_and_the_other_way(tmp_path: Path) -> None:
    full = JobSpec.model_validate({**JOB, "seed": 5})
    write_tensors(tmp_path / "full.safetensors", full.plan().initial_weights())
    start = warm_start(tmp_path / "full.safetensors", _spec())
    assert all(map(is_adapter, start.stayed))
    assert start.unused == []
    network = _spec().plan().build_network().eval()
    load_weights(network, start.weights)
    torch.testing.assert_close(network(IMAGES), full.plan().build_network().eval()(IMAGES))

    adapted = _changed(start.weights)
    load_weights(network, adapted)
    write_tensors(tmp_path / "adapted.safetensors", adapted)
    for spec in (JobSpec.model_validate(JOB), _spec(), _spec(rank=2)):
        found = warm_start(tmp_path / "adapted.safetensors", spec)
        assert found.unused == []
        other = spec.plan().build_network().eval()
        load_weights(other, found.weights)
        torch.testing.assert_close(other(IMAGES), network(IMAGES))


def _segmenter(**more: object) -> JobSpec:
    """Return a UNETR-like segmenter with adapters in its encoder."""
    values = {**JOB, "data": {"dataset": "x", "patch": (32, 32, 32)}, **more}
    values["task"] = {"type": "segmentation", "classes": {1: "a"}}
    values["model"] = {"network": "swinunetr", "arguments": {"feature_size": 12}, "adapter": {"rank": RANK}}
    return JobSpec.model_validate(values)


def test_adapters_on_random_weights_are_refused(tmp_path: Path) -> None:
    """A decoder that nobody pretrained would stay random for good."""
    spec = _segmenter()
    with pytest.raises(SpecError, match=r"model\.adapter fixes \d+ weights of swinunetr .*expected --model FILE"):
        export_job(spec, tmp_path / "job")
    own = spec.plan().initial_weights()
    write_tensors(tmp_path / "whole.safetensors", own)
    assert (export_job(spec, tmp_path / "job", model=tmp_path / "whole.safetensors") / "meta.json").is_file()
    assert (export_job(spec.changed({"model": {"adapter": None}}), tmp_path / "plain") / "meta.json").is_file()
    # Of the encoder alone: the decoder is to be trained, or the start is refused.
    encoder = {name: value for name, value in own.items() if name.startswith("swinViT.")}
    write_tensors(tmp_path / "encoder.safetensors", encoder)
    with pytest.raises(SpecError, match=r"which model\.adapter would fix at random values") as refused:
        warm_start(tmp_path / "encoder.safetensors", spec)
    patterns = json.loads(str(refused.value).partition("trainable: ")[2].partition("}")[0])
    assert not any(pattern.startswith("swinViT") for pattern in patterns)
    advised = _segmenter(training={"trainable": patterns})
    start = warm_start(tmp_path / "encoder.safetensors", advised)
    layout = advised.plan().layout()
    trained = {name for name in start.stayed if layout.weights[name].is_floating_point()}
    assert trained <= layout.trained, "what starts at random is trained"
    assert {"out.conv.conv.weight", "decoder1.transp_conv.conv.weight"} <= layout.trained
    assert any(is_adapter(name) for name in layout.trained)
    assert not [name for name in layout.trained if name.startswith("swinViT.") and not is_adapter(name)]


@pytest.mark.parametrize("positions", ["sincos", "learnable"])
def test_constants_that_a_model_lacks_are_not_random(tmp_path: Path, positions: str) -> None:
    """Positions of sines are the same with every seed; drawn ones are not."""
    arguments = {**JOB["model"]["arguments"], "pos_embed_type": positions}
    spec = JobSpec.model_validate({**JOB, "model": {**JOB["model"], "arguments": arguments, "adapter": {"rank": RANK}}})
    own = spec.plan().initial_weights()
    lacking = ("patch_embedding.position_embeddings", "norm.bias")
    write_tensors(tmp_path / "other.safetensors", {name: own[name] for name in own.keys() - set(lacking)})
    if positions == "learnable":
        with pytest.raises(SpecError, match=r"has nothing for 1 weights \(patch_embedding\.position_embeddings\)"):
            warm_start(tmp_path / "other.safetensors", spec)
        return
    found = warm_start(tmp_path / "other.safetensors", spec)
    assert set(lacking) <= set(found.stayed)
    assert all(torch.equal(found.weights[name], own[name]) for name in lacking)


def test_a_network_without_such_layers_is_refused() -> None:
    spec = _spec(layers=["*conv*"])
    with pytest.raises(SpecError, match="which fits no linear layer; the network has"):
        spec.plan().build_network()
