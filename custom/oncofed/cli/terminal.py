"""Output for terminals without Unicode.

Characters that a terminal lacks are replaced.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
import unicodedata
from typing import IO

import typer

_ERRORS = "oncofed.replace"
_ASCII = "oncofed_ascii"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_REPLACEMENTS = {
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
# Python maps bytes of file names that are not UTF-8 to these (PEP 383).
_BYTES = range(0xDC80, 0xDD00)
_BOX = range(0x2500, 0x2580)


def fit_output() -> None:
    """Replace characters that stdout or stderr cannot encode.

    Letters lose their accents, typographic characters become ASCII ones, others "?". Bytes of file names that are not
    UTF-8 are printed by their number.
    """
    codecs.register_error(_ERRORS, _replace)
    codecs.register(_find_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Click takes an ASCII stream for a misconfiguration, and would write UTF-8 to it.
            encoding = _ASCII if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
            stream.reconfigure(encoding=encoding, errors=_ERRORS)


def echo_json(text: str) -> None:
    """Print JSON, with escapes for characters that the output lacks."""
    encoding: str = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    typer.echo(text)


def is_terminal(stream: IO[str]) -> bool:
    """Return whether a stream is a terminal.

    Colour settings in the environment do not count.
    """
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def plain(text: str) -> str:
    """Return text in ASCII."""
    return "".join(c if c.isascii() else _ascii(c) for c in text)


def _ascii(character: str) -> str:
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    number = ord(character)
    if number in _BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if number in _BOX:
        return "+"
    letters = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return letters if letters and letters.isascii() else "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
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
