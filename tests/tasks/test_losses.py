"""Dice with cross-entropy: definition and memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from oncofed.tasks import losses
from oncofed.tasks.losses import dice_ce

SHAPES = [(2, (6, 5, 4), None), (3, (9, 8), None), (4, (6, 5, 4), 4), (4, (6, 5, 4), 2), (15, (4, 4, 4), None)]


def _defined(logits: Tensor, label: Tensor, ignore: int | None = None) -> Tensor:
    """The loss by definition, with full one-hot labels."""
    classes = logits.shape[1]
    target = label[:, 0].long()
    counted = torch.ones_like(target, dtype=logits.dtype) if ignore is None else (target != ignore).to(logits.dtype)
    target = target if ignore is None else target.masked_fill(target == ignore, 0)
    each = functional.cross_entropy(logits, target, reduction="none") * counted
    entropy = (each.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1)).mean()
    wanted = functional.one_hot(target, classes).movedim(-1, 1)[:, 1:] * counted[:, None]
    found = logits.softmax(1)[:, 1:] * counted[:, None]
    overlap = (found * wanted).flatten(2).sum(2)
    sizes = (found**2).flatten(2).sum(2) + wanted.flatten(2).sum(2)
    return (1 - (2 * overlap + 1e-5) / (sizes + 1e-5)).mean() + entropy


def _drawn(classes: int, places: tuple[int, ...], ignore: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(2, classes, *places, generator=generator)
    highest = max(classes, (ignore or 0) + 1)
    label = torch.randint(0, highest, (2, 1, *places), generator=generator, dtype=torch.uint8)
    label[0] = label[0].clamp_max(1)  # a class that a sample lacks
    return logits, label


@pytest.mark.parametrize("together", [64, 1 << 18])
@pytest.mark.parametrize(("classes", "places", "ignore"), SHAPES)
def test_value_and_gradient_are_as_defined(
    classes: int, places: tuple[int, ...], ignore: int | None, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_TOGETHER_CPU", together)
    drawn, label = _drawn(classes, places, ignore)
    one, other = drawn.clone().requires_grad_(), drawn.clone().requires_grad_()
    loss, expected = dice_ce(one, label, ignore), _defined(other, label, ignore)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (3 * loss).backward()
    (3 * expected).backward()
    assert one.grad is not None
    assert other.grad is not None
    assert (one.grad - other.grad).abs().max() <= 1e-6 * other.grad.abs().max()
    if ignore is not None:
        assert one.grad.movedim(1, -1)[label[:, 0] == ignore].eq(0).all()


def test_the_gradient_is_that_of_small_differences() -> None:
    logits, label = _drawn(3, (3, 4), 3)
    torch.autograd.gradcheck(lambda values: dice_ce(values, label, 3), logits.double().requires_grad_())


def test_sliced_channels_and_other_memory_layouts_work() -> None:
    drawn, label = _drawn(4, (6, 5, 4), None)
    label = label.clamp_max(1)
    whole = drawn.to(memory_format=torch.channels_last_3d).requires_grad_()
    dice_ce(whole[:, 1:3], label).backward()
    part = drawn[:, 1:3].contiguous().requires_grad_()
    dice_ce(part, label).backward()
    assert whole.grad is not None
    assert part.grad is not None
    torch.testing.assert_close(whole.grad[:, 1:3].contiguous(), part.grad)
    assert whole.grad[:, [0, 3]].eq(0).all()


def test_only_the_inputs_are_kept_for_105_classes() -> None:
    kept = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        return value

    logits = torch.empty(2, 105, 8, 8, 8, device="meta", requires_grad=True)
    label = torch.empty(2, 1, 8, 8, 8, device="meta", dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        dice_ce(logits, label)
    assert sum(kept.values()) < logits.nbytes + label.nbytes + 10_000


def test_an_unlabelled_sample_has_no_gradient() -> None:
    logits, label = _drawn(3, (4, 4), None)
    label[1] = 9
    values = logits.clone().requires_grad_()
    dice_ce(values, label, 9).backward()
    assert values.grad is not None
    assert values.grad[1].eq(0).all()
    assert values.grad[0].ne(0).any()


def test_a_label_without_a_class_is_an_error() -> None:
    logits, label = _drawn(3, (4, 4), None)
    label[0, 0, 0, 0] = 7
    with pytest.raises(RuntimeError, match="out of bounds"):
        dice_ce(logits, label)
