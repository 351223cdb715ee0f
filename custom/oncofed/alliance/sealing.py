"""Sealed startup kits: signed zips, encrypted with age.

age is a file format with several implementations (https://age-encryption.org/v1), so a hospital may use another
program.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pyrage
from cryptography import x509

from oncofed.alliance.authority import Authority
from oncofed.alliance.passwords import lock, unlock
from oncofed.errors import AllianceError
from oncofed.private_files import write_private
from oncofed.signing import is_signed_by

SUMS_FILE = "SHA256SUMS"
SIGNATURE_FILE = "SHA256SUMS.sig"
ROOT_FILE = Path("startup") / "rootCA.pem"
_NOT_LISTED = (SUMS_FILE, SIGNATURE_FILE)
_LARGEST_KIT_BYTES = 64 << 20
_MOST_FILES = 1000
# Crockford's base 32: no letter that looks like a digit.
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_password() -> str:
    """Return a new password that is easy to read out.

    It has 100 random bits.
    """
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))


def sign_folder(folder: Path, authority: Authority) -> None:
    """Write the signed digests of a kit's files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    sums = "".join(f"{_digest(path)}  {name}\n" for name, path in named.items() if name not in _NOT_LISTED).encode()
    write_private(folder / SUMS_FILE, sums)
    write_private(folder / SIGNATURE_FILE, authority.sign(sums))


def seal(folder: Path, out: Path, password: str | None, recipient: str | None = None) -> None:
    """Write a kit as one sealed file.

    Args:
        folder: the kit, signed.
        out: the file; only its owner can read it.
        password: opens it; None with a recipient.
        recipient: an age recipient, ``age1...``.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    if recipient:
        sealed = pyrage.encrypt(packed.getvalue(), [pyrage.x25519.Recipient.from_str(recipient)])
    else:
        assert password
        sealed = lock(packed.getvalue(), password)
    write_private(out, sealed)


def unseal(file: Path, out: Path, password: str | None, identity: Path | None = None) -> None:
    """Open a sealed kit into a new folder.

    Nothing is left behind if anything is wrong.

    Args:
        file: the sealed kit.
        out: the folder; missing or empty.
        password: from the alliance; None with an identity.
        identity: file with an age identity, ``AGE-SECRET-KEY-1...``.

    Raises:
        AllianceError: the file cannot be opened, or the alliance did not sign its content.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AllianceError(f"{out} exists and is not empty. Name another folder with --out.")
    content = _decrypted(file, password, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        unfinished = Path(temporary) / "kit"
        unfinished.mkdir(mode=0o700)
        _unpack(content, unfinished, file)
        changed = changed_files(unfinished)
        if changed:
            raise AllianceError(f"{file} is not what the alliance made: {changed[0]}. Ask for a new kit.")
        if out.exists():
            out.rmdir()
        shutil.move(unfinished, out)


def changed_files(folder: Path) -> list[str]:
    """Return how a kit's files differ from the signed ones.

    Empty if they do not.

    In an open kit the site may change ``local`` and ``site.yaml``. The caller filters those out.
    """
    try:
        sums, signature = (folder / SUMS_FILE).read_bytes(), (folder / SIGNATURE_FILE).read_bytes()
        root = x509.load_pem_x509_certificate((folder / ROOT_FILE).read_bytes())
    except (OSError, ValueError) as error:
        return [f"its list of digests, signature or root certificate cannot be read ({type(error).__name__})"]
    if not is_signed_by(root, sums, signature):
        return [f"{SUMS_FILE} is not signed by the alliance whose root certificate lies in the kit"]
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in sums.decode().splitlines())}
    problems = []
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif _digest(path) != digest:
            problems.append(f"{name} was changed")
    startup = {p.relative_to(folder).as_posix() for p in (folder / "startup").rglob("*") if p.is_file()}
    # The alliance never saw the key of a participant who created it, so the list does not contain it.
    own = {f"startup/{name}.key" for name in ("client", "server") if f"startup/{name}.crt" in listed}
    problems += [f"{name} does not belong to it" for name in sorted(startup - set(listed) - own)]
    return problems


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identities_in(file: Path) -> list[pyrage.x25519.Identity]:
    """Return the age identities in a file, as age-keygen writes it.

    Raises:
        OSError: it cannot be read.
        pyrage.IdentityError: one of its keys is broken.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    return [pyrage.x25519.Identity.from_str(line.strip()) for line in lines if line.startswith("AGE-SECRET-KEY-")]


def _decrypted(file: Path, password: str | None, identity: Path | None) -> bytes:
    try:
        size = file.stat().st_size
        if size > _LARGEST_KIT_BYTES:
            raise AllianceError(f"{file} has {size >> 20} MiB; a kit has less than {_LARGEST_KIT_BYTES >> 20}")
        sealed = file.read_bytes()
    except OSError as error:
        raise AllianceError(f"{file}: {error.strerror}. Expected a sealed kit, such as SITE.kit.age.") from None
    if not sealed.startswith(b"age-encryption.org/"):
        raise AllianceError(f"{file} is no sealed kit. Expected the file that the alliance sent, such as SITE.kit.age.")
    if identity is None:
        return unlock(sealed, password or "", str(file))
    try:
        return bytes(pyrage.decrypt(sealed, identities_in(identity)))
    except (pyrage.DecryptError, pyrage.IdentityError):
        raise AllianceError(f"the key in {identity} does not open {file}, or the file was changed") from None


def _unpack(content: bytes, folder: Path, file: Path) -> None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile:
        raise AllianceError(f"{file} holds no kit") from None
    with archive:
        entries = archive.infolist()
        if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _LARGEST_KIT_BYTES:
            raise AllianceError(f"{file} holds more than a kit: {len(entries)} files")
        for entry in entries:
            path, mode = PurePosixPath(entry.filename), entry.external_attr >> 16
            if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(mode) or "\\" in entry.filename:
                raise AllianceError(f"{file} holds {entry.filename!r}, which would lie outside of its folder")
            if entry.is_dir():
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.write_bytes(archive.read(entry))
            target.chmod(0o700 if mode & stat.S_IXUSR else 0o600)
