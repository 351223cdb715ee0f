"""Images of scanners with other contrasts are mapped to one template."""

from __future__ import annotations

import pytest
import torch

from oncofed.data.harmonization.landmarks import (
    PERCENTILES,
    intensity_columns,
    intensity_row,
    landmarks,
    mapped,
    template_of,
)

COLUMNS = intensity_columns(["t1"])


def _image(gamma: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Return a head of three tissues as a scanner of some contrast shows it, standardised; (1, x, y, z)."""
    generator = torch.Generator().manual_seed(seed)
    tissue = torch.randint(0, 3, (1, 16, 16, 16), generator=generator).float()
    values = (0.4 + 0.25 * tissue + 0.04 * torch.randn(tissue.shape, generator=generator)).clamp_min(0.01) ** gamma
    values[:, :6] = 0.02 * torch.rand(1, 6, 16, 16, generator=generator)
    return (values - values.mean()) / values.std()


def _template() -> torch.Tensor:
    rows = [intensity_row(_image(seed=seed), COLUMNS) for seed in range(4)]
    means = {name: (sum(row[name] for row in rows) / 4, 0.1) for name in rows[0]}
    return template_of(COLUMNS, means)


def test_landmarks_become_those_of_the_template() -> None:
    template = _template()
    for gamma in (0.5, 1.0, 2.0):
        torch.testing.assert_close(landmarks(mapped(_image(gamma, 9), template)[0]), template, atol=0.05, rtol=0.0)


def test_scanners_become_alike_and_the_order_of_voxels_stays() -> None:
    template = _template()
    one, other = _image(0.5, 7), _image(2.0, 7)
    before = (one - other).abs().mean()
    after = (mapped(one, template) - mapped(other, template)).abs().mean()
    assert after < before / 3
    found = mapped(one, template).flatten()[one.flatten().argsort()]
    assert (found.diff() >= -1e-5).all()


def test_an_image_of_one_value_tells_nothing_and_stays_as_it_is() -> None:
    flat = torch.zeros(1, 8, 8)
    assert intensity_row(flat, COLUMNS) == {}
    assert torch.equal(mapped(flat, _template()), flat)


def test_each_channel_has_its_own() -> None:
    columns = intensity_columns(["t1", "t2"])
    image = torch.cat([_image(0.5), _image(2.0)])
    row = intensity_row(image, columns)
    assert len(row) == 2 * len(PERCENTILES)
    template = template_of(columns, {name: (value, 0.0) for name, value in row.items()})
    torch.testing.assert_close(mapped(image, template), image, atol=0.05, rtol=0.0)


def test_where_a_number_is_missing_nobody_agreed() -> None:
    assert not template_of(COLUMNS, {COLUMNS[0].name: (1.0, 0.1)}).any()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_type_stays(kind: torch.dtype) -> None:
    assert mapped(_image().to(kind), _template()).dtype is kind
