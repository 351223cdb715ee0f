"""Files whose checksums their publisher states: records of Zenodo.

A record's API answers with the size and the MD5 of each file (``/api/records/ID``, developers.zenodo.org). It is asked
over TLS before anything is fetched. What it said is kept with the files, in the form of ``md5sum``: later it must say
the same.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.data.downloads import Download, read_small
from oncofed.errors import DataError
from oncofed.settings import first_problem

ZENODO = "https://zenodo.org"
KEPT = "MD5SUMS"

_MOST_BYTES = 4 << 20  # of an answer
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")


class _File(BaseModel):
    key: str
    size: int = Field(ge=0)
    checksum: str = Field(pattern="^md5:[0-9a-f]{32}$")


class _Record(BaseModel):
    files: list[_File]


def published_files(
    records: Mapping[int, Sequence[str]],
    folder: Path,
    checksums: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Download]:
    """Return what is to be fetched, with sizes and checksums.

    Args:
        records: the wanted files' names by their record's number.
        folder: of the files; it is created. Where all lie there with their checksums, nobody is asked.
        checksums: MD5 by file, which go before those of the records; None: the records'.
        say: is given how much will be fetched, and by whose checksums.

    Raises:
        DataError: a record cannot be read, lacks a file or has another than before; or the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(record, name) for record, names in records.items() for name in names]
    kept = read_checksums(folder / KEPT) if (folder / KEPT).is_file() else {}
    if checksums is not None:
        kept = {name: md5_of(checksums, name) for _, name in wanted}
    missing = [name for _, name in wanted if not (folder / name).is_file()]
    if not missing and kept:
        return [Download(_address(record, name), md5_of(kept, name)) for record, name in wanted]
    found = {record: _read(record, folder) for record in records}
    stated: list[Download] = []
    for record, name in wanted:
        file = found[record].get(name)
        if file is None:
            there = ", ".join(sorted(found[record])[:12]) or "none"
            raise DataError(
                f"record {record} of {ZENODO} has no file {name}, expected it beside the others; it has {there}. The "
                "record has changed: ask for this set's new address."
            )
        md5 = file.checksum.removeprefix("md5:")
        if checksums is None and kept.get(name, md5) != md5:
            raise DataError(
                f"{name}: record {record} of {ZENODO} states MD5 {md5} now, expected {kept[name]} as when it was "
                f"first asked ({folder / KEPT}). The file was replaced there, or something lies on the way. If you "
                f"know the new one to be right, give it with --checksums FILE, or remove {folder / KEPT}."
            )
        stated.append(Download(_address(record, name), kept.get(name, md5), file.size))
    write_whole(folder / KEPT, "".join(f"{one.md5}  {one.name}\n" for one in stated))
    _require_space(stated, missing, folder)
    gigabytes = sum(one.size or 0 for one in stated if one.name in missing) / 1e9
    whose = "of --checksums" if checksums is not None else f"as {ZENODO} states them"
    say(f"{len(missing)} of {len(stated)} files are missing: {gigabytes:.3g} GB to fetch; checksums {whose}.")
    return stated


def read_checksums(path: Path) -> dict[str, str]:
    """Return the MD5 of each file that a list names.

    Args:
        path: of the list, as ``md5sum`` writes it.

    Raises:
        DataError: it is no such list.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DataError(
            f"{path} cannot be read ({reason}). Expected a list of checksums as md5sum writes it."
        ) from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise DataError(
                f"{path}: line {number} is {line[:60]!r}, expected an MD5 of 32 hexadecimal digits, two spaces and a "
                "file's name, as md5sum writes it."
            )
        found[parts[2].rpartition("/")[2]] = parts[1].lower()
    return found


def md5_of(checksums: Mapping[str, str], name: str) -> str:
    """Return a file's MD5.

    Raises:
        DataError: the list does not have it.
    """
    if name not in checksums:
        listed = ", ".join(sorted(checksums)[:12]) or "none"
        raise DataError(f"the checksums have no line for {name}, expected one for each file; they name {listed}.")
    return checksums[name]


def _address(record: int, name: str) -> str:
    return f"{ZENODO}/records/{record}/files/{name}?download=1"


def _read(record: int, folder: Path) -> dict[str, _File]:
    """Return a record's files by name."""
    url = f"{ZENODO}/api/records/{record}"
    advice = (
        f"It states the checksums. Try again, or put the files into {folder} yourself and give theirs with --checksums "
        "FILE."
    )
    try:
        answer = _Record.model_validate_json(read_small(url, _MOST_BYTES, advice))
    except ValidationError as error:
        raise DataError(
            f"{url}: {first_problem(error)}; expected JSON with key, size and checksum (md5:…) of each file. Give the "
            "checksums yourself with --checksums FILE once it answers again."
        ) from None
    return {file.key: file for file in answer.files}


def _require_space(files: Sequence[Download], missing: Sequence[str], folder: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    needed = 0
    for file in files:
        if file.name in missing:
            part = folder / f"{file.name}.part"
            needed += max(0, (file.size or 0) - (part.stat().st_size if part.is_file() else 0))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {needed / 1e9:.3g} GB are to be fetched, and {free / 1e9:.3g} GB are free. Free some, or name "
            "another folder with --out."
        )
