"""A pack: a signed Python package in one file.

Named by its digest, signed with the engineer's key.

A ZIP file of ``manifest.json``, ``signature.json`` and the package below ``code/``. The digest is SHA-256 of the
manifest, which lists every file with its digest: one changed byte makes another pack.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from oncofed.errors import SpecError
from oncofed.signing import signed

SCHEMA = 1
PACK_SUFFIX = ".pack.zip"
_MANIFEST, _SIGNATURE, _FOLDER = "manifest.json", "signature.json", "code/"
_KINDS = frozenset({".py", ".json", ".yaml", ".yml", ".toml", ".md", ".txt"})
_LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", "tests"})
_MOST_FILES = 300
_LARGEST_FILE, _LARGEST_PACK = 1 << 20, 8 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
# The earliest date that ZIP can hold: the same files make the same pack.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Pack:
    """The contents of a pack.

    Attributes:
        name: of the package.
        digest: what sites approve, and jobs name.
        files: content by path within the package.
        signature: certificate and signature over the manifest; see ``oncofed.signing``.
        content: the file itself.
    """

    name: str
    digest: str
    files: dict[str, bytes]
    signature: dict[str, Any]
    manifest: bytes = field(repr=False)
    content: bytes = field(repr=False)

    def text(self, path: str) -> str:
        """Return a file as text.

        Bytes that are not UTF-8 are shown escaped.
        """
        return self.files[path].decode("utf-8", "backslashreplace")


def make_pack(folder: Path, startup: Path | None) -> Pack:
    """Return a Python package as a pack.

    Args:
        folder: with ``__init__.py``; its name is the pack's.
        startup: folder of the engineer's kit, with ``client.key`` and ``client.crt``; None: it is not signed, and runs
            on the engineer's own machine alone.

    Raises:
        SpecError: it is no package, too large, or has a file of another kind.
    """
    name = folder.resolve().name
    if not (folder / "__init__.py").is_file():
        raise SpecError(f"{folder}: no Python package (found no __init__.py)")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files_of(folder)}
    return pack_files(name, files, startup, str(folder))


def pack_files(name: str, files: dict[str, bytes], startup: Path | None, where: str) -> Pack:
    """Return files as a pack; see ``make_pack``.

    Args:
        name: of the package.
        files: by path within it.
        startup: see ``make_pack``.
        where: they come from, for messages.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(f"{where}: expected a folder's name of small letters, digits and _, which names the package")
    manifest = json.dumps(
        {"schema": SCHEMA, "name": name, "files": {p: hashlib.sha256(c).hexdigest() for p, c in files.items()}},
        sort_keys=True,
        indent=1,
    ).encode()
    signature = signed(manifest, startup / "client.key", startup / "client.crt") if startup else {}
    if startup and not signature["signature"]:
        raise SpecError(f"{startup}: no key to sign with (expected client.key and client.crt). Name a kit with --kit")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = {_MANIFEST: manifest, _SIGNATURE: json.dumps(signature, indent=1).encode()}
        for path, content in {**parts, **{_FOLDER + p: c for p, c in files.items()}}.items():
            archive.writestr(zipfile.ZipInfo(path, _LONG_AGO), content, zipfile.ZIP_DEFLATED)
    return read_pack(packed.getvalue(), where)


def _files_of(folder: Path) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if not _LEFT_OUT & set(path.relative_to(folder).parts) and (path.is_symlink() or not path.is_dir())
    ]
    require_plain(found)
    for path in found:
        if path.suffix not in _KINDS:
            raise SpecError(
                f"{path}: expected {', '.join(sorted(_KINDS))}. Weights go with the job: oncofed job submit --model"
            )
        if path.stat().st_size > _LARGEST_FILE:
            raise SpecError(f"{path}: {path.stat().st_size} bytes, expected at most {_LARGEST_FILE}")
    return found


def require_plain(paths: Sequence[Path]) -> None:
    """Refuse links, devices and folders named like files.

    Raises:
        SpecError: names the first.
    """
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise SpecError(f"{path}: a link or something not a plain file, which a pack cannot hold")


def read_pack(content: bytes, where: str) -> Pack:
    """Read a pack; nothing of it is run or written.

    Args:
        content: of the file; not trusted.
        where: it comes from, for messages.

    Raises:
        SpecError: it is no pack, holds what its manifest does not name, or is larger than a pack may be.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _members(archive, where)
            manifest, signed_text = members.pop(_MANIFEST), members.pop(_SIGNATURE)
        values, signature = json.loads(manifest), json.loads(signed_text)
        name, digests, schema = values["name"], dict(values["files"]), values["schema"]
    except SpecError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, OSError, EOFError) as error:
        raise SpecError(f"{where}: no pack ({type(error).__name__})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"{where}: no pack: its manifest is broken ({type(error).__name__})") from None
    if schema != SCHEMA or not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(signature, dict):
        raise SpecError(f"{where}: no pack that this version knows (expected format {SCHEMA})")
    files = {path.removeprefix(_FOLDER): data for path, data in members.items() if path.startswith(_FOLDER)}
    found = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    if len(files) != len(members) or found != digests or "__init__.py" not in files:
        odd = sorted(set(found.items()) ^ set(digests.items()))[:1]
        raise SpecError(f"{where}: its files are not those of its manifest{f' (first: {odd[0][0]})' if odd else ''}")
    return Pack(name, hashlib.sha256(manifest).hexdigest(), files, signature, manifest, content)


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > _MOST_FILES:
        raise SpecError(f"{where}: {len(infos)} files, expected at most {_MOST_FILES}")
    if sum(info.file_size for info in infos) > _LARGEST_PACK:
        raise SpecError(f"{where}: larger than {_LARGEST_PACK} bytes when unpacked")
    members: dict[str, bytes] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        plain = not path.is_absolute() and ".." not in path.parts and "\\" not in info.filename and path.parts
        if not plain or info.is_dir() or info.filename in members or path.suffix not in _KINDS:
            raise SpecError(f"{where}: a file {info.filename[:80]!r}, which no pack holds")
        if info.external_attr >> 16 & 0o170000 not in (0, 0o100000):
            raise SpecError(f"{where}: {info.filename[:80]!r} is a link or a device")
        with archive.open(info) as file:
            # Its stated size may be wrong: no more than allowed is unpacked.
            members[info.filename] = file.read(_LARGEST_FILE + 1)
        if len(members[info.filename]) > _LARGEST_FILE:
            raise SpecError(f"{where}: {info.filename[:80]!r} is larger than {_LARGEST_FILE} bytes")
    return members


def find_pack(digest: str, folders: Sequence[Path]) -> Pack:
    """Return the first pack with a digest in some folders.

    Raises:
        SpecError: none has.
    """
    for folder in folders:
        for path in sorted(folder.glob(f"*{PACK_SUFFIX}")):
            try:
                pack = read_pack(path.read_bytes(), str(path))
            except (SpecError, OSError):
                continue
            if pack.digest == digest:
                return pack
    places = " or ".join(map(str, folders))
    raise SpecError(f"no pack with the digest {digest[:12]}… in {places}. Make it with: oncofed job pack FOLDER")
