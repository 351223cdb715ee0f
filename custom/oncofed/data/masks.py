"""Read a label file as whole numbers.

From palettes, colours, opacity, soft edges, and numbers that a float rounded.

A value stands for the same class in every file of a dataset, without looking at the others: grey is its number, each
colour has a number (``colour_value``), and a threshold is half of the full scale. Only a palette's numbers may mean
different classes in different files; see ``palettes``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from oncofed.data.formats.common import LoadedImage, Values
from oncofed.data.images import read_stored
from oncofed.errors import DataError

# Labels stored as floats may be off by this much, by scl_slope or resampling by nearest neighbour.
NEARLY_WHOLE = 2e-3
# Masks with more colours than this do not show classes.
_MOST_COLOURS = 64
# Values of colours start here, above grey values and 24-bit numbers.
_COLOUR = 1 << 24
# Reach of a soft edge, or of artefacts of compression or sharpening near one, in pixels: WebP has blocks of 16.
_FRINGE = 20
# Values that differ from a level by less than this share of the scale lie at it; least share of pixels at a level, of
# all and of those in the upper quarter of the scale.
_AT_LEVEL = 0.02
_LEAST_AT_LEVELS = 0.5
_LEAST_AT_TOP = 0.2
# Of the pixels between two levels: least share within a fringe, and largest share in even areas.
_LEAST_IN_FRINGE = 0.95
_MOST_EVEN = 0.3
# Least number of levels between the two for soft edges, and of further colours for blended ones.
_FEWEST_LEVELS = 5
_FEWEST_BLENDED = 3
# Least share of pixels with a lower and a higher neighbour, in the middle half of the scale and in one level. Only
# levels with at least this share of the pixels in between, and this number, are checked.
_LEAST_SLOPING = 0.8
_LEAST_SLOPING_OF_LEVEL = 0.5
_SHARE_OF_LEVEL = 0.02
_PIXELS_OF_LEVEL = 24
_BESIDE_ENDS = 0.05
# Number of a volume's slices that are searched for soft edges.
_SLICES = 16
# Number of rows and columns that are searched for equal neighbours.
_LINES = 64
_MOST_COUNTED = 1 << 20
# A palette's colour is white if each component is at least this.
_LEAST_WHITE = 240
# Channels of a grey JPEG differ by at most this.
_SAME_GREY = 48
# Least share of equal neighbours inside objects; in a picture few are equal.
_LEAST_ALIKE = 0.5


def read_mask(path: Path, by_colour: bool = False, named: Collection[int] = ()) -> LoadedImage:
    """Read a label file as whole numbers, one a pixel.

    Args:
        path: of the file.
        by_colour: for masks with a palette, use the colours instead of their numbers.
        named: values named by people or the folder's layout. If several classes are, no value counts as a soft edge
            between two others.

    Raises:
        DataError: it cannot be read, or its values are no labels; the message names neither path nor file.
    """
    mask = as_mask(read_stored(path), by_colour, named)
    if mask.values.shape[-1] != 1:
        raise DataError(
            f"has {mask.values.shape[-1]} channels, expected one number a pixel: save it with one channel, which holds "
            "the number of each pixel's class"
        )
    return mask


def as_mask(image: LoadedImage, by_colour: bool = False, named: Collection[int] = ()) -> LoadedImage:
    """Return the labels of a stored image; see ``read_mask``.

    Several channels are left as they are.

    Raises:
        DataError: its values are no labels.
    """
    if image.alpha:
        image = _without_alpha(image)
    if image.palette is not None:
        image = _from_palette(image, by_colour, named)
    if image.colour and image.values.shape[-1] == 3:
        image = _from_colours(image)
    if image.values.shape[-1] != 1:
        return image
    if image.values.dtype.kind == "f":
        image = _as_integers(image)
    return _crisp(image, _are_several(named))


def _are_several(named: Collection[int]) -> bool:
    return len(set(named) - {0}) > 1


def colour_value(colours: Values) -> Values:
    """Return the label value (int32) of colours (…, 3) uint8.

    Grey has its brightness, every other colour a number.
    """
    red, green, blue = (colours[..., n].astype(np.int32) for n in range(3))
    grey = (red == green) & (green == blue)
    return np.where(grey, red, _COLOUR + (red << 16) + (green << 8) + blue)


def value_name(value: int) -> str:
    """Return a label value as written: "#rrggbb" or a number."""
    return f"#{value - _COLOUR:06x}" if _COLOUR <= value < 2 * _COLOUR else str(value)


def name_of_rest(names: Iterable[str]) -> str:
    """Return what value 0 is called.

    "background", unless a drawn class is called so: what nobody drew is then none of it.

    Args:
        names: of the other values.
    """
    return "unlabelled" if any(name.strip().casefold() == "background" for name in names) else "background"


def value_of(name: str) -> int | None:
    """Return a written label value; None for other text."""
    text = name.strip()
    if text.startswith("#") and len(text) == 7 and not set(text[1:].lower()) - set("0123456789abcdef"):
        return int(colour_value(np.array([int(text[n : n + 2], 16) for n in (1, 3, 5)], np.uint8)))
    return int(text) if text.isdigit() else None


def _without_alpha(image: LoadedImage) -> LoadedImage:
    """Return a mask without opacity.

    Transparent pixels are background; in a mask of one colour the opacity is the label.
    """
    values, alpha = image.values[..., :-1], image.values[..., -1:]
    image = replace(image, values=values, alpha=False)
    if (alpha == alpha.flat[0]).all():
        return image
    if (values == values.reshape(-1, values.shape[-1])[0]).all():
        note = "its label is drawn in its opacity, and read from there"
        return replace(image, values=alpha, colour=False, notes=(*image.notes, note))
    levels = np.unique(alpha)
    if len(levels) > 2 or levels[0] != 0:
        raise DataError(
            f"has {len(levels)} degrees of opacity, expected opaque or transparent: save the mask without opacity"
        )
    return replace(
        image,
        values=np.where(alpha > 0, values, values.dtype.type(0)),
        notes=(*image.notes, "what is transparent in its label is background"),
    )


def _from_palette(image: LoadedImage, by_colour: bool, named: Collection[int]) -> LoadedImage:
    """Return palette numbers, or colours' values where they say more."""
    palette = image.palette
    assert palette is not None
    numbers = image.values[..., 0]
    used = np.flatnonzero(np.bincount(numbers.ravel(), minlength=len(palette)))
    colours = palette[np.minimum(used, len(palette) - 1)]
    black = ~colours.any(axis=1)
    grey = bool((colours == colours[:, :1]).all())
    table = tuple((int(n), value_name_of_colour(c)) for n, c in zip(used, colours, strict=True))
    image = replace(image, palette=None, colours=table)
    # Programs that save few colours number them in any order; masks numbered by class have zero as background.
    if black.any() and palette[0].any() and not by_colour:
        by_colour = not _is_white(palette[0]) or _colours_are_named(palette, used, named)
        if not by_colour:
            note = "its palette begins with white: the numbers in it are the label, 0 is background"
            image = replace(image, notes=(*image.notes, note))
    shown = palette[..., 0][numbers]
    top = _full_scale(int(shown.max())) if grey else None
    soft = top is not None and not _are_several(named) and _is_soft(shown, float(top))
    if by_colour or soft:
        values = colour_value(palette)[numbers][..., None]
        return replace(image, values=values.astype(np.uint8) if grey else values, by_colour=True)
    return image


def _is_white(colour: Values) -> bool:
    return int(colour.min()) >= _LEAST_WHITE


def _colours_are_named(palette: Values, used: Values, named: Collection[int]) -> bool:
    """Return whether names are of a palette's colours.

    Else they are of its numbers. It is asked where white is number 0: black drawn on white, and white drawn on black
    with white first in the palette, give the same file.

    Raises:
        DataError: the names do not decide.
    """
    names = set(named) - {0}
    values = colour_value(palette)
    of_numbers, of_colours = names & set(used.tolist()), names & {0, *values[:1].tolist(), *values[used].tolist()}
    if bool(of_numbers) != bool(of_colours):
        return bool(of_colours)
    drawn, white = int(used[used > 0][0]), value_name(int(values[0]))
    raise DataError(
        "has a palette whose number 0 is white and another black: which of them is the background it does not say. "
        f"Name the label: --labels {drawn}=NAME where white is background, --labels {white}=NAME where it is the object"
    )


def value_name_of_colour(colour: Values) -> str:
    """Return a colour (3,) uint8 as "#rrggbb"."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def _from_colours(image: LoadedImage) -> LoadedImage:
    """Return one number a pixel: grey, or one a colour."""
    values = image.values
    if (values[..., 0] == values[..., 1]).all() and (values[..., 1] == values[..., 2]).all():
        return replace(image, values=values[..., :1], colour=False)
    if image.lossy:
        spread = values.max(axis=-1).astype(np.int64) - values.min(axis=-1)
        if (spread > _SAME_GREY).any():
            raise DataError(_lossy_text(image.lossy, "blended its label's colours"))
        grey = np.rint(values.mean(axis=-1, keepdims=True)).astype(values.dtype)
        return replace(image, values=grey, colour=False)
    if values.dtype == np.uint16 and (values % 257 == 0).all():  # 8 bits, written as 16
        values = (values // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(
            f"holds colours of type {image.stored}, expected 8 bits: save the mask as grey, one value a class"
        )
    numbers = colour_value(values)
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) > _MOST_COLOURS or _is_blended(numbers, found, counts):
        raise DataError(
            f"holds {len(found)} colours, expected one for each class: its edges are blended, or it is a picture. Save "
            "the mask without smoothing (anti-aliasing), not as JPEG"
        )
    return replace(image, values=numbers[..., None], colour=False)


def _is_blended(numbers: Values, found: Values, counts: Values) -> bool:
    """Return whether further colours lie on borders only."""
    even = numbers[_even(numbers)]
    areas = set(np.unique(even).tolist())
    thin = [int(value) for value in found if int(value) not in areas]
    share = counts[np.isin(found, thin)].sum() / counts.sum()
    return len(areas) >= 2 and len(thin) >= _FEWEST_BLENDED and share < 0.5


def _as_integers(image: LoadedImage) -> LoadedImage:
    """Return nearly whole floats as integers.

    Soft edges are left for ``_crisp``.
    """
    values = image.values
    if not np.isfinite(values).all():
        raise DataError("holds values that are not finite (NaN or infinity), expected whole numbers")
    rounded = np.rint(values)
    apart = np.abs(values - rounded)
    if apart.max() <= NEARLY_WHOLE:
        if max(abs(float(rounded.min())), float(rounded.max())) >= 2**31:
            raise DataError(f"holds {rounded.max():g}, expected one small number for each class")
        return replace(image, values=rounded.astype(np.int32))
    if (
        abs(float(values.max()) - 1) <= NEARLY_WHOLE
        and values.min() >= -NEARLY_WHOLE
        and _is_soft(_some_slices(values[..., 0]), 1.0)
    ):
        note = "its label has soft edges (values between 0 and 1), cut at 0.5"
        return replace(image, values=(values > 0.5).astype(np.uint8), notes=(*image.notes, note))
    odd = float(values[apart > NEARLY_WHOLE].flat[0])
    raise DataError(
        f"holds {odd:.6g}, expected whole numbers: save the label as drawn, or resample it by nearest neighbour"
    )


def _crisp(image: LoadedImage, several: bool) -> LoadedImage:
    """Return a mask with soft edges thresholded.

    Args:
        image: of one channel.
        several: more than one class is named, so intermediate values are classes, not soft edges.

    Raises:
        DataError: it is a grey picture, or a lossy compression changed its values.
    """
    values = image.values
    if values.dtype.kind not in "ui" or (int(values.max()) <= _MOST_COLOURS and not image.lossy):
        return image
    shown = _some_slices(values[..., 0])
    top = _full_scale(int(values.max()))
    if not several and top and values.min() >= 0 and _is_soft(shown, float(top), image.lossy is not None):
        half, levels = top // 2, len(counted(shown)[0])
        cut = ((values > half) * top).astype(values.dtype)
        what = f"{image.lossy} changed its label's values" if image.lossy else "its label has soft edges"
        note = (f"{what} ({levels} levels from 0 to {top}), cut at {half}",) if levels > 2 else ()
        return replace(image, values=cut, notes=(*image.notes, *note))
    if image.lossy and set(counted(shown)[0].tolist()) - {0, 255}:
        raise DataError(_lossy_text(image.lossy, "changed its label's values, which are not near two levels"))
    if _is_picture(shown):
        raise DataError(
            f"holds {len(counted(shown)[0])} levels of grey that form no areas, expected one number for each class or "
            "object: its edges are soft, or it is a picture. Save the mask without smoothing"
        )
    return image


def _some_slices(values: Values) -> Values:
    """Return a flat image, or some of a volume's slices."""
    return values if values.ndim == 2 else values[..., :: -(-values.shape[2] // _SLICES)]


def counted(values: Values) -> tuple[Values, Values]:
    """Return the values of a mask, and their counts."""
    if values.dtype.kind in "ui" and values.min() >= 0 and values.max() < _MOST_COUNTED:
        every = np.bincount(values.ravel(order="K"))  # ten times as fast as sorting
        found = np.flatnonzero(every)
        return found, every[found]
    found, counts = np.unique(values, return_counts=True)
    return found, counts


def _full_scale(most: int) -> int | None:
    """Return 255 or 65535 if a mask's maximum is near."""
    return next((top for top in (255, 65535) if 0.9 * top < most <= top), None)


def _lossy_text(lossy: str, what: str) -> str:
    return f"is a {lossy}, whose compression {what}. Export the labels without loss, such as PNG"


def _is_soft(values: Values, top: float, lossy: bool = False) -> bool:
    """Return whether values have two levels, with a fringe between.

    Args:
        values: (x, y) or, slice by slice, (x, y, z).
        top: the upper level, the lower being 0.
        lossy: compression added noise around the edges, also in even areas.
    """
    low, high = values < top / 4, values > top * 3 / 4
    at_top, at_bottom = np.count_nonzero(values >= top * (1 - _AT_LEVEL)), np.count_nonzero(values <= top * _AT_LEVEL)
    few = at_top + at_bottom < _LEAST_AT_LEVELS * values.size or at_top < _LEAST_AT_TOP * np.count_nonzero(high)
    if few or not at_top or not at_bottom:
        return False
    margin = _AT_LEVEL * top if lossy else NEARLY_WHOLE
    between = (values > margin) & (values < top - margin)
    count = int(np.count_nonzero(between))
    if lossy and not count:
        return True
    if not _slopes(values, top, count, lossy):
        return False
    if not lossy:
        if not count:
            return False
        levels = counted(values[between])[0]
        # One or two values may be classes, unless each lies near one of the levels and fills no area.
        beside = len(levels) == 2 and levels[0] <= top * _AT_LEVEL and levels[1] >= top * (1 - _AT_LEVEL)
        if len(levels) < (2 if beside else _FEWEST_LEVELS):
            return False
        if beside and (_even(values) & between).any():
            return False
        if np.count_nonzero(_even(values) & between) > _MOST_EVEN * count:
            return False
    from scipy import ndimage  # noqa: PLC0415 - slow to import, and needed for few masks

    size = (2 * _FRINGE + 1, 2 * _FRINGE + 1, 1)[: values.ndim]
    near = ndimage.maximum_filter(low, size) & ndimage.maximum_filter(high, size)
    return bool(np.count_nonzero(near & between) >= _LEAST_IN_FRINGE * count)


def _slopes(values: Values, top: float, between: int, lossy: bool) -> bool:
    """Return whether values between two levels are slopes only.

    A pixel of a thin class has no higher neighbour, or a neighbour of the same value. Artefacts that compression or
    sharpening adds to the levels themselves form no slopes; they are near the levels, and spread over many values.
    """
    sloping = _sloping(values)
    middle = (values > top / 4) & (values < top * 3 / 4)
    if np.count_nonzero(sloping & middle) < _LEAST_SLOPING * np.count_nonzero(middle):
        return False
    beside = 0.25 if lossy else _BESIDE_ENDS
    looked_at = (values > top * beside) & (values < top * (1 - beside))
    level = np.rint(values[looked_at] * (255 / top)).astype(np.intp)
    of_level = np.bincount(level, minlength=256)
    sloping_of_level = np.bincount(level[sloping[looked_at]], minlength=256)
    several = of_level >= max(_PIXELS_OF_LEVEL, _SHARE_OF_LEVEL * between)
    return not (several & (sloping_of_level < _LEAST_SLOPING_OF_LEVEL * of_level)).any()


def _sloping(values: Values) -> Values:
    """Return pixels that lie on a slope along an axis."""
    found = np.zeros(values.shape, bool)
    for rows, to in ((values, found), (values.swapaxes(0, 1), found.swapaxes(0, 1))):
        before, here, after = rows[:-2], rows[1:-1], rows[2:]
        to[1:-1] |= ((before < here) & (here < after)) | ((before > here) & (here > after))
    return found


def _even(values: Values) -> Values:
    """Return pixels that equal all their neighbours."""
    from scipy import ndimage  # noqa: PLC0415 - slow to import, and needed for few masks

    size = (3, 3, 1)[: values.ndim]
    even: Values = ndimage.maximum_filter(values, size) == ndimage.minimum_filter(values, size)
    return even


def _is_picture(values: Values) -> bool:
    """Return whether a mask looks like a photograph.

    It has too many values for classes, and neighbours are seldom equal.
    """
    found, counts = counted(values)
    if len(found) <= _MOST_COLOURS:
        return False
    usual = found[np.argsort(counts)[-2:]]
    pairs = alike = 0
    for lines in (values[:: -(-len(values) // _LINES)], values[:, :: -(-values.shape[1] // _LINES)].swapaxes(0, 1)):
        rest = ~np.isin(lines, usual)
        both = rest[:, 1:] & rest[:, :-1]
        pairs += np.count_nonzero(both)
        alike += np.count_nonzero(both & (lines[:, 1:] == lines[:, :-1]))
    return bool(pairs) and alike < _LEAST_ALIKE * pairs
