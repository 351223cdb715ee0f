"""Normalising stains, against second implementations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from sklearn.decomposition import DictionaryLearning

from oncofed.data.stain.colours import from_lab, to_lab
from oncofed.data.stain.columns import LAB, MACENKO, Template
from oncofed.data.stain.estimate import lab_moments, macenko, vahadane
from oncofed.data.stain.normalise import by_moments, by_vectors
from oncofed.data.stain.sketch import colours, sketch
from stained_made import OTHER, USUAL, Stain, field


def _batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).float().movedim(-1, 0)[None]


def _pixels(batch: torch.Tensor) -> np.ndarray:
    return batch[0].movedim(0, -1).numpy()


def test_lab_is_that_of_scikit_image() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    found = to_lab(_batch(rgb).double())
    assert np.abs(_pixels(found) - rgb2lab(rgb)).max() < 0.01
    back = _pixels(from_lab(found))
    assert np.abs(back - rgb).max() < 0.1
    assert np.abs(back / 255 - lab2rgb(rgb2lab(rgb))).max() < 0.001


def _macenko_of_paper(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return directions (3, 2), amounts (2, pixel) and their largest (2,), step by step as Macenko et al. say."""
    density = -np.log((pixels.reshape(-1, 3).astype(float) + 1) / 240)
    tissue = density[(density >= 0.15).all(axis=1)]
    _, vectors = np.linalg.eigh(np.cov(tissue, rowvar=False))
    plane = vectors[:, 1:]
    angles = np.arctan2(*(tissue @ plane).T[::-1])
    first, last = (plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angles, [1, 99]))
    stains = np.stack(sorted((first * np.sign(first.sum()), last * np.sign(last.sum())), key=lambda v: -v[0]), axis=1)
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    return stains, amounts, np.percentile(amounts, 99, axis=1)


def test_macenko_is_that_of_the_paper() -> None:
    """On thick fields without glass, where both look at the same pixels."""
    thick = Stain(((0.65, 0.70, 0.29), (0.30, 0.75, 0.59)), (1.4, 1.6))
    source, target = field(1, thick, glass=False), field(2, USUAL._replace(amounts=(1.5, 1.7)), glass=False)
    _, amounts, most = _macenko_of_paper(source)
    wanted_stains, _, wanted_most = _macenko_of_paper(target)
    expected = 240 * np.exp(-wanted_stains @ (amounts * (wanted_most / most)[:, None]))
    expected = expected.T.reshape(source.shape).clip(0, 255)
    own, wanted = (macenko(pixels.reshape(-1, 3)) for pixels in (source, target))
    assert own is not None
    assert wanted is not None
    assert np.abs(wanted[:6].reshape(2, 3).T - wanted_stains).max() < 0.01
    # The paper takes amounts over all pixels, also those too thin to tell a direction.
    first = torch.from_numpy(np.concatenate([own[:6], most])).float()
    second = torch.from_numpy(np.concatenate([wanted[:6], wanted_most])).float()
    found = _pixels(by_vectors(_batch(source), first, second))
    assert np.abs(found - expected).max() < 2.5


def test_reinhard_is_that_of_scikit_images_colours() -> None:
    source, target = field(1, OTHER, glass=False), field(2, USUAL, glass=False)
    have, want = rgb2lab(source).reshape(-1, 3), rgb2lab(target).reshape(-1, 3)
    moved = (have - have.mean(0)) / have.std(0) * want.std(0) + want.mean(0)
    expected = 255 * lab2rgb(moved.reshape(source.shape))
    own, wanted = (lab_moments(pixels.reshape(-1, 3)) for pixels in (source, target))
    found = _pixels(by_moments(_batch(source), torch.from_numpy(own).float(), torch.from_numpy(wanted).float()))
    assert np.abs(found - expected).mean() < 2


def test_vahadane_finds_what_dictionary_learning_finds() -> None:
    """By scikit-learn: the same objective, another algorithm."""
    pixels = field(3, OTHER, glass=False).reshape(-1, 3)
    found = vahadane(pixels)
    assert found is not None
    density = -np.log((pixels.astype(float) + 1) / 240)
    density = density[density.mean(axis=1) > 0.15][::150].clip(min=0)
    start = np.array([[0.65, 0.7, 0.29], [0.07, 0.99, 0.11]])
    learned = DictionaryLearning(
        2,
        alpha=0.05,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        positive_code=True,
        positive_dict=True,
        max_iter=60,
        dict_init=start,
        code_init=(density @ np.linalg.pinv(start)).clip(min=0),
    ).fit(density)
    atoms = learned.components_ / np.linalg.norm(learned.components_, axis=1, keepdims=True)
    atoms = atoms[np.argsort(-atoms[:, 0])]
    angles = np.degrees(np.arccos(np.clip((atoms * found[:6].reshape(2, 3)).sum(axis=1), -1, 1)))
    assert angles.max() < 5


@pytest.mark.parametrize("estimate", [macenko, vahadane])
def test_the_stains_that_made_a_field_are_found(estimate: Callable[[np.ndarray], np.ndarray]) -> None:
    for made in (USUAL, OTHER):
        found = estimate(colours([sketch(field(4, made), most=8192)]))
        angles = np.degrees(np.arccos(np.clip((found[:6].reshape(2, 3) * made.vectors).sum(axis=1), -1, 1)))
        assert angles.max() < 13


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_fields_of_two_stains_look_alike(method: str) -> None:
    """The same tissue, stained twice: its colours are closer afterwards than half of what they were."""
    estimate = {"macenko": macenko, "vahadane": vahadane, "reinhard": lab_moments}[method]
    change = by_moments if method == "reinhard" else by_vectors
    template = Template.of(LAB if method == "reinhard" else MACENKO, {}).moments[0]
    first, second = field(5, USUAL), field(5, OTHER)
    before = np.abs(first.astype(float) - second).mean()
    looks = []
    for pixels in (first, second):
        source = torch.from_numpy(estimate(colours([sketch(pixels, most=8192)]))).float()
        looks.append(_pixels(change(_batch(pixels), source, template)))
    assert np.abs(looks[0] - looks[1]).mean() < before / 2


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_glass_stays_glass_and_pale_tissue_is_not_torn_apart(method: str) -> None:
    estimate = {"macenko": macenko, "vahadane": vahadane, "reinhard": lab_moments}[method]
    change = by_moments if method == "reinhard" else by_vectors
    template = Template.of(LAB if method == "reinhard" else MACENKO, {}).moments[0]
    pale = field(6, USUAL._replace(amounts=(0.25, 0.25)))
    source = estimate(colours([sketch(pale, most=8192)]))
    assert source is not None
    white = np.full((16, 16, 3), 245, np.uint8)
    found = _pixels(change(_batch(white), torch.from_numpy(source).float(), template))
    assert found.min() > 225
    assert np.ptp(found, axis=-1).max() < 12
    looks = _pixels(change(_batch(pale), torch.from_numpy(source).float(), template))
    assert np.isfinite(looks).all()


def test_ink_glass_and_black_are_no_part_of_an_estimate() -> None:
    clean = field(7, USUAL)
    marked = clean.copy()
    marked[:120] = (20, 60, 200)  # blue pen
    marked[120:150] = (10, 10, 10)
    marked[150:200] = (30, 160, 60)  # green
    first, second = (macenko(colours([sketch(pixels, most=8192)])) for pixels in (clean, marked))
    assert np.abs(first[:6] - second[:6]).max() < 0.08


def test_too_little_tissue_gives_no_estimate() -> None:
    white = np.full((64, 64, 3), 244, np.uint8)
    white[:3, :3] = (120, 60, 140)
    for estimate in (macenko, vahadane, lab_moments):
        assert estimate(colours([sketch(white)])) is None


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    batch = torch.cat([_batch(field(seed, OTHER)) for seed in (1, 2)])
    for change, columns in ((by_vectors, MACENKO), (by_moments, LAB)):
        own, wanted = Template.of(columns, {}).moments[0] * 1.1, Template.of(columns, {}).moments[0]
        here = change(batch, own, wanted)
        there = change(batch.cuda(), own.cuda(), wanted.cuda()).cpu()
        assert (here - there).abs().max() < 0.05
