"""Terminals that cannot print every sign: another one is printed in its place, and no command ends at it."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
import unicodedata
from typing import IO

import typer

_ERRORS = "oncofed.another-sign"
_ASCII = "oncofed_ascii"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SIGNS = {
    **dict.fromkeys("‐‑‒–—―−─━═╌┄", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("•·∙●", "*"),
    **dict.fromkeys("‘’‚′", "'"),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("«", "<<"),
    **dict.fromkeys("»", ">>"),
    **dict.fromkeys("µμ", "u"),
    **dict.fromkeys("øØ", "o"),
    "…": "...",
    "×": "x",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "±": "+-",
    "ß": "ss",
    "æ": "ae",
}
# Python keeps a byte of a file's name that is no UTF-8 as one of these (PEP 383).
_BYTES = range(0xDC80, 0xDD00)
_BOX = range(0x2500, 0x2580)


def fit_output() -> None:
    """Have what this process prints fit its standard output and error: signs that they lack become others.

    Letters lose their accents, typographic signs become those of a typewriter, the rest becomes "?". Bytes of a file's
    name that are no text are printed by their number, also in UTF-8.
    """
    codecs.register_error(_ERRORS, _another_sign)
    codecs.register(_find_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Click takes a stream in ASCII for a mistake, and would write UTF-8 to it.
            encoding = _ASCII if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
            stream.reconfigure(encoding=encoding, errors=_ERRORS)


def echo_json(text: str) -> None:
    """Print JSON, each sign as it is or, where the output lacks it, by its number: never another one."""
    encoding: str = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    typer.echo(text)


def is_terminal(stream: IO[str]) -> bool:
    """Return whether a person reads a stream: not so where it is a file or a pipe, whatever colours are asked for."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def plain(text: str) -> str:
    """Return text in ASCII, as a terminal that has no other signs shows it."""
    return "".join(sign if sign.isascii() else _plain_sign(sign) for sign in text)


def _plain_sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    number = ord(sign)
    if number in _BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if number in _BOX:
        return "+"
    letters = "".join(c for c in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(c))
    return letters if letters and letters.isascii() else "?"


def _another_sign(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def _find_ascii(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    known = codecs.lookup("ascii")
    return codecs.CodecInfo(
        known.encode,
        known.decode,
        known.streamreader,
        known.streamwriter,
        known.incrementalencoder,
        known.incrementaldecoder,
        name=_ASCII,
    )
