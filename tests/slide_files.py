"""Small slides with known pixels.

In the formats that scanners and converters write.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

Pixels = np.ndarray

PINK = (200, 90, 160)
MICRON = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}


def stained(rows: int = 512, columns: int = 640, colour: Sequence[int] = PINK, glass: int = 245) -> Pixels:
    """Return (row, column, 3) of a tinted ellipse on glass.

    With a little noise.
    """
    y, x = np.mgrid[:rows, :columns]
    pixels = np.full((rows, columns, 3), glass)
    pixels[((x - columns * 0.45) / (columns * 0.3)) ** 2 + ((y - rows * 0.5) / (rows * 0.35)) ** 2 < 1] = colour
    return noisy(pixels)


def noisy(pixels: Pixels, most: int = 6, seed: int = 0) -> Pixels:
    """Return pixels with noise, as uint8."""
    noise = np.random.default_rng(seed).integers(-most, most + 1, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def tiled(path: Path, pixels: Pixels, mpp: float | None = 0.5, **more: object) -> Path:
    """Write a tiled TIFF with its resolution in centimetres."""
    size = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **{"tile": (256, 256), "photometric": "rgb", **size, **more})  # type: ignore[arg-type]
    return path


def ycbcr(pixels: Pixels) -> Pixels:
    """Return YCbCr in full range: ITU-T T.871, 7."""
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    values = np.stack([luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402], axis=-1)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def jpeg_2000(pixels: Pixels, transformed: bool) -> bytes:
    """Return a JPEG 2000 codestream of components as they are.

    With or without a colour transformation that its decoder reverts.
    """
    contiguous = np.ascontiguousarray(pixels)
    return bytes(imagecodecs.jpeg2k_encode(contiguous, codecformat="J2K", mct=transformed, reversible=True))


def jpeg(pixels: Pixels, space: str, marked: bool, subsampled: bool = False) -> bytes:
    """Return a JPEG of "rgb" or "ycbcr" components.

    With or without the markers that say so.
    """
    sampling = "420" if subsampled else "444"
    contiguous = np.ascontiguousarray(pixels)
    stream = bytes(
        imagecodecs.jpeg8_encode(contiguous, 95, colorspace="rgb", outcolorspace=space, subsampling=sampling)
    )
    return stream if marked else without_markers(stream)


def without_markers(stream: bytes) -> bytes:
    """Return a JPEG without its JFIF's and Adobe's markers."""
    kept, at = [stream[:2]], 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] not in {0xE0, 0xEE}:
            kept.append(stream[at : at + length])
        at += length
    return b"".join([*kept, stream[at:]])


def bare_tiff(
    path: Path, pixels: Pixels, encode: Callable[[Pixels], bytes], compression: int, photometric: int, text: str = ""
) -> Path:
    """Write a TIFF of encoded tiles.

    Half a micron a pixel, with tags that no library would write.

    Args:
        path: of the file.
        pixels: (row, column, 3), whole tiles of 256.
        encode: makes the bytes of one tile.
        compression: TIFF's number, whatever the tiles are.
        photometric: PhotometricInterpretation, whatever the tiles are.
        text: ImageDescription; empty: none.
    """
    side = 256
    height, width = pixels.shape[:2]
    places = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
    tiles = [encode(pixels[y : y + side, x : x + side]) for y, x in places]
    blob = bytearray(b"II*\0\0\0\0\0")

    def put(data: bytes) -> int:
        blob.extend(b"\0" * (len(blob) % 2))
        blob.extend(data)
        return len(blob) - len(data)

    offsets = [put(tile) for tile in tiles]
    tags = [
        (254, 4, 1, 0),
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, put(struct.pack("<3H", 8, 8, 8))),
        (259, 3, 1, compression),
        (262, 3, 1, photometric),
        *([(270, 2, len(text) + 1, put(text.encode() + b"\0"))] if text else []),
        (277, 3, 1, 3),
        (282, 5, 1, put(struct.pack("<2I", 20_000, 1))),
        (283, 5, 1, put(struct.pack("<2I", 20_000, 1))),
        (284, 3, 1, 1),
        (296, 3, 1, 3),
        (322, 3, 1, side),
        (323, 3, 1, side),
        (324, 4, len(tiles), put(struct.pack(f"<{len(tiles)}I", *offsets))),
        (325, 4, len(tiles), put(struct.pack(f"<{len(tiles)}I", *map(len, tiles)))),
    ]
    at = put(struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    struct.pack_into("<I", blob, 4, at)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(blob)
    return path


def halved(pixels: Pixels) -> Pixels:
    """Return an image of half the size.

    Each pixel is the mean of four.
    """
    return np.asarray(Image.fromarray(pixels).reduce(2))


def drawn_slides(folder: Path, count: int, side: int = 640, seed: int = 0) -> Path:
    """Write slides of two tissues, with regions as QuPath exports them.

    Tissue of large nuclei is "tumour", with a hole of other tissue; that of small ones is "stroma". One micron a pixel;
    each slide is of a patient of its own.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((side, side, 3), 243.0)
        edge, middle = side // 8, side // 2 + int(rng.integers(-side // 16, side // 16))
        y, x = np.mgrid[:side, :side]
        tissue = (np.minimum(x, y) >= edge) & (np.maximum(x, y) < side - edge)
        hole = np.hypot(x - (edge + middle) / 2, y - side / 2) < side / 12
        tumour = tissue & (x < middle) & ~hole
        stain = rng.normal(0, 5, 3)
        pixels[tissue] = np.array([232, 180, 208]) + stain
        pixels[tumour] = np.array([206, 130, 186]) + stain
        for inside, radius, every in ((tissue & ~tumour, 2, 220), (tumour, 5, 160)):
            for row, column in np.argwhere(inside)[rng.integers(0, inside.sum(), inside.sum() // every)]:
                pixels[max(row - radius, 0) : row + radius, max(column - radius, 0) : column + radius] = (92, 58, 138)
        tiled(folder / f"P{number}.tif", noisy(pixels, seed=number), 1.0, compression="jpeg")
        ring = [[float(p), float(q)] for p, q in _circle((edge + middle) / 2, side / 2, side / 12)]
        outlines = {
            "tumour": [_box(edge, edge, middle, side - edge), ring],
            "stroma": [_box(middle, edge, side - edge, side - edge)],
        }
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {"objectType": "annotation", "classification": {"name": name}},
            }
            for name, rings in outlines.items()
        ]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / f"P{number}.geojson").write_text(text, encoding="utf-8")
    return folder


def slides_with_spots(folder: Path, count: int, side: int = 320, points: bool = False) -> Path:
    """Write slides of one tissue with dark discs, which QuPath's outlines or points say.

    The discs are 28 pixels across, at one micron a pixel; each slide is of a patient of its own.
    """
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((side, side, 3), 243.0)
        edge, radius = side // 8, 14
        pixels[edge : side - edge, edge : side - edge] = (226, 160, 198)
        y, x = np.mgrid[:side, :side] + 0.5
        features, centres = [], list[tuple[int, int]]()
        while len(centres) < 5:
            place = rng.integers(edge + 20, side - edge - 20, 2)
            if all(np.abs(place - other).max() > 40 for other in centres):
                centres.append((int(place[0]), int(place[1])))
        for at, down in centres:
            pixels[np.hypot(x - at, y - down) < radius] = (92, 58, 138)
            ring = [[float(p), float(q)] for p, q in _circle(at, down, radius)]
            shape = (
                {"type": "Point", "coordinates": [at, down]} if points else {"type": "Polygon", "coordinates": [ring]}
            )
            properties = {"objectType": "annotation", "classification": {"name": "spot"}}
            features.append({"type": "Feature", "geometry": shape, "properties": properties})
        tiled(folder / f"P{number}.tif", noisy(pixels, seed=number), 1.0, compression="jpeg")
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / f"P{number}.geojson").write_text(text, encoding="utf-8")
    return folder


def _box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _circle(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turns = np.linspace(0, 2 * np.pi, 65)
    return [(x + radius * float(np.cos(turn)), y + radius * float(np.sin(turn))) for turn in turns]
