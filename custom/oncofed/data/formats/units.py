"""Units of length, as file formats write them."""

from __future__ import annotations

_IN_MM = {
    ("km", "kilometer", "kilometre"): 1e6,
    ("m", "meter", "metre"): 1e3,
    ("dm", "decimeter", "decimetre"): 100.0,
    ("cm", "centimeter", "centimetre"): 10.0,
    ("mm", "millimeter", "millimetre"): 1.0,
    ("um", "µm", "micron", "micrometer", "micrometre"): 1e-3,
    ("nm", "nanometer", "nanometre"): 1e-6,
    ("å", "angstrom", "ångström"): 1e-7,
    ("pm", "picometer", "picometre"): 1e-9,
    ("in", "inch", "inche"): 25.4,
}
_BY_NAME = {name: size for names, size in _IN_MM.items() for name in names}


def millimetres(unit: str) -> float | None:
    """Return the millimetres of a unit of length, or None."""
    # ImageJ escapes the micro sign, and Unicode has two: the sign and the Greek letter.
    text = unit.strip().strip("\"'").replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("\u03bc", "µ")
    text = text.replace("\u212b", "å").lower()
    return _BY_NAME.get(text) or _BY_NAME.get(text.removesuffix("s"))
