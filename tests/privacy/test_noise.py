"""Random numbers for differential privacy."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from oncofed.privacy.noise import SecretRandomness, SecretStream

_KEY = bytes(range(32))


def test_the_cipher_is_aes_in_counter_mode() -> None:
    words = SecretStream(bytes.fromhex("0" * 64)).words(2)
    assert (
        words.numpy().tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    )  # NIST's known answer of a key and a block of zeros


def test_normal_numbers_are_normal() -> None:
    numbers = SecretStream(_KEY).normal(200_001).numpy()
    assert len(numbers) == 200_001
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(stats.pearsonr(numbers[:100_000], numbers[100_001:])[0]) < 0.02
    assert 4 < abs(numbers).max() < 8.6


def test_uniform_numbers_are_above_zero() -> None:
    numbers = SecretStream(_KEY).uniform(100_000)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert numbers.min() > 0


def test_draws_have_their_chance() -> None:
    stream = SecretStream(_KEY)
    assert stream.draws(50, 1.0) == list(range(50))
    assert sum(len(stream.draws(1000, 0.05)) for _ in range(100)) == pytest.approx(5000, abs=280)  # 4 standard errors


def test_a_state_gives_the_same_again_and_nothing_of_the_past() -> None:
    first = SecretRandomness()
    past = first.step().words(4)
    state = first.state.clone()
    ahead = first.step().normal(10)
    second = SecretRandomness()
    second.restore(state)
    assert torch.equal(second.step().normal(10), ahead)
    second.restore(state)
    assert not torch.equal(second.step().words(4), past)


def test_no_two_are_alike() -> None:
    first, second = SecretRandomness().step().words(1000), SecretRandomness().step().words(1000)
    assert not set(first.tolist()) & set(second.tolist())


def test_any_number_may_be_asked_for() -> None:
    for count in (0, 1, 2, 65_537, 131_073):
        assert SecretStream(_KEY).normal(count).shape == (count,)
        assert torch.isfinite(SecretStream(_KEY).normal(count)).all()
