"""What each file of a folder says of its features."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from oncofed.data.features.files import open_features
from oncofed.data.features.names import standard_name
from oncofed.data.features.stored import Level
from oncofed.data.grouping import counted
from oncofed.errors import DataError

# Other tools cut tiles at a nominal magnification, without resampling: a scanner's "20x" is 0.45 to 0.51 microns per
# pixel, and nobody can make it more alike afterwards. Tiles that are cut here are resampled, and more alike
# (``slides.resolution``).
SAME_RESOLUTION = 0.1
# TRIDENT's folders: features_ENCODER and slide_features_ENCODER.
_FOLDER = re.compile(r"(?:slide_)?features_(.+)")


@dataclass(frozen=True)
class FeatureOptions:
    """What the user states of a folder's features.

    Attributes:
        encoder: its name; of files that hold those of several, which to take.
        digest: of the encoder's weights.
        tile: side of a tile in pixels, where files do not say it.
        mpp: microns per pixel of a tile, where files do not say it.
    """

    encoder: str | None = None
    digest: str | None = None
    tile: int | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Said:
    """What a file says of its features.

    Attributes:
        encoder: its name in the catalogue; None: neither the file nor its folder says it.
        digest: of the encoder's weights.
        level: what a vector describes.
        size: numbers of a vector.
        tiles: number of vectors.
        tile: side of a tile in pixels.
        mpp: microns per pixel of a tile.
        is_placed: it has coordinates.
    """

    encoder: str | None
    digest: str | None
    level: Level
    size: int
    tiles: int
    tile: int | None
    mpp: float | None
    is_placed: bool


def survey(path: Path, options: FeatureOptions, finest: float | None = None) -> Said:
    """Return what a file says, completed by what the user states.

    What file and user say differently of a tile stays the file's.

    Args:
        path: of the file.
        options: what the user states.
        finest: microns per pixel of the slide's finest level, where its image is there.

    Raises:
        NoFeaturesError: it is another file of a tool of features.
        DataError: it cannot be used.
    """
    with open_features(path, options.encoder) as found:
        folder = _FOLDER.fullmatch(path.parent.name)
        encoder = found.encoder or (folder[1] if folder else None)
        known = found.completed(options.tile, options.mpp, finest)
        return Said(
            encoder=standard_name(encoder, found.rows.shape[1]) if encoder else None,
            digest=found.digest,
            level=found.level,
            size=found.rows.shape[1],
            tiles=len(found.rows),
            tile=known.tile,
            mpp=known.mpp,
            is_placed=found.places is not None,
        )


@dataclass(frozen=True)
class Agreed:
    """What a folder's features have in common.

    Attributes:
        encoder: that made them.
        digest: of its weights; None: nobody says it.
        size: numbers of a vector.
        set_aside: path -> why a file's features are not of these.
    """

    encoder: str
    digest: str | None
    size: int
    set_aside: Mapping[str, str] = field(default_factory=dict)


def agree(files: Mapping[str, Said], options: FeatureOptions) -> Agreed:
    """Return what files agree in; what only one says differently is set aside.

    Args:
        files: path -> what it says; at least one.
        options: what the user states.

    Raises:
        DataError: a person has to say which encoder, tile or resolution it is; the message names the option.
    """
    encoder = _encoder(files, options)
    bad = {path: f"its features are of {said.encoder}, expected {encoder}" for path, said in _others(files, encoder)}
    left = {path: said for path, said in files.items() if path not in bad}
    if not left:
        raise DataError(f"no file holds features of {encoder}: {_listed(files.values())}. Name another with --encoder")
    digest, wrong = _digest(left, options)
    bad |= wrong
    size, level = Counter((said.size, said.level) for said in left.values()).most_common(1)[0][0]
    for path, said in left.items():
        if (said.size, said.level) != (size, level):
            own = f"{counted(said.tiles, 'vector')} of {said.size} numbers for {said.level}s"
            bad[path] = f"it holds {own}, expected {size} numbers for {level}s as most files have"
    left = {path: said for path, said in left.items() if path not in bad}
    if level == "tile":
        _require_tiles(left)
        bad |= _other_tiles(left, options)
    return Agreed(encoder, digest, size, bad)


def _encoder(files: Mapping[str, Said], options: FeatureOptions) -> str:
    if options.encoder:
        size = Counter(said.size for said in files.values()).most_common(1)[0][0]
        return standard_name(options.encoder, size)
    said = {one.encoder for one in files.values()}
    if len(said) == 1 and (only := next(iter(said))):
        return only
    silent = sum(one.encoder is None for one in files.values())
    if len(said - {None}) > 1:
        raise DataError(f"its features are of several encoders: {_listed(files.values())}. Say which: --encoder NAME")
    raise DataError(
        f"{counted(silent, 'file')} of {len(files)} {'does' if silent == 1 else 'do'} not say which encoder made the "
        "features. Say it: --encoder NAME, as oncofed data encoders lists it"
    )


def _others(files: Mapping[str, Said], encoder: str) -> Iterable[tuple[str, Said]]:
    return [(path, said) for path, said in files.items() if said.encoder not in {None, encoder}]


def _digest(files: Mapping[str, Said], options: FeatureOptions) -> tuple[str | None, dict[str, str]]:
    """Return the digest of the weights, and files that say another."""
    said = Counter(one.digest for one in files.values() if one.digest)
    digest = options.digest or (said.most_common(1)[0][0] if said else None)
    bad = {
        path: f"its features are of the weights {one.digest[:12]}…, expected {str(digest)[:12]}…"
        for path, one in files.items()
        if one.digest and one.digest != digest
    }
    # Files that do not say it are of these weights only if the user says so.
    silent = any(one.digest is None for one in files.values())
    return (digest if options.digest or not silent else None), bad


def _require_tiles(files: Mapping[str, Said]) -> None:
    """Ask for what files do not say of their tiles.

    Raises:
        DataError: the message names the options.
    """
    no_tile = sum(said.tile is None for said in files.values())
    no_mpp = sum(said.mpp is None for said in files.values())
    if not no_tile and not no_mpp:
        return
    asked = ["how many pixels a side their tiles have (--tile)"] * bool(no_tile)
    asked += ["how many microns a pixel of a tile has (--mpp)"] * bool(no_mpp)
    missing = max(no_tile, no_mpp)
    raise DataError(
        f"{counted(missing, 'file')} of {len(files)} {'does' if missing == 1 else 'do'} not say {' and '.join(asked)}. "
        "It is what the features were extracted with; slides beside their features say the resolution, too"
    )


def _other_tiles(files: Mapping[str, Said], options: FeatureOptions) -> dict[str, str]:
    """Return path -> why its tiles are not as the user states, or as most files'."""
    tile = options.tile or Counter(said.tile for said in files.values()).most_common(1)[0][0]
    mpp = options.mpp or median(said.mpp for said in files.values() if said.mpp)
    by_user = {"--tile": options.tile, "--mpp": options.mpp}
    bad = {}
    for path, said in files.items():
        if said.tile != tile:
            who = "--tile" if by_user["--tile"] else "most files"
            bad[path] = f"its tiles have {said.tile} pixels a side, expected {tile} ({who})"
        elif said.mpp and not math.isclose(said.mpp, mpp, rel_tol=SAME_RESOLUTION):
            who = "--mpp" if by_user["--mpp"] else "most files"
            bad[path] = f"its tiles have {said.mpp:.3g} microns a pixel, expected {mpp:.3g} ({who})"
    return bad


def _listed(files: Iterable[Said]) -> str:
    counts = Counter(said.encoder or "not said" for said in files)
    return ", ".join(f"{name} ({counted(number, 'file')})" for name, number in sorted(counts.items()))
