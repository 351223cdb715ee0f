"""``pacs.yaml``: how a hospital's archive is reached."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from oncofed.errors import SpecError
from oncofed.loopback import is_loopback
from oncofed.privacy.time_windows import WINDOW
from oncofed.settings import Lines, SettingError, StrictModel, read_yaml, validated

Window = Annotated[str, Field(pattern=WINDOW)]
# PS3.5, table 6.2-1: AE.
Title = Annotated[str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")]
_LARGEST_PORT = 65535
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
_OTHERS_MAY_READ = 0o077


class DicomWebSettings(StrictModel):
    """An archive that speaks DICOMweb (PS3.18): QIDO-RS, WADO-RS and STOW-RS."""

    url: str = Field(description="of the service, such as https://pacs.example.org/dicom-web")
    token_file: Path | None = Field(
        None, description="file with a bearer token; read again when the archive refuses it"
    )
    password_file: Path | None = Field(None, description="file with USER:PASSWORD, for HTTP's basic authentication")
    certificate: Path | None = Field(None, description="of this machine, PEM")
    key: Path | None = Field(None, description="of that certificate; null: in the same file")
    ca: Path | None = Field(None, description="certificates that the archive's may be signed by; null: the system's")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ValueError("expected http://HOST:PORT/PATH or https://HOST:PORT/PATH, without user and password")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _fits(self) -> DicomWebSettings:
        if self.token_file and self.password_file:
            raise SettingError("expected token_file or password_file, not both", "password_file")
        parts = urlsplit(self.url)
        if (self.token_file or self.password_file) and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingError(
                "a token or password would travel unencrypted: expected one that begins with https", "url"
            )
        return self


class TlsSettings(StrictModel):
    """TLS of DICOM's own protocol: PS3.15, annex B."""

    ca: Path = Field(description="certificates that the archive's may be signed by, PEM")
    certificate: Path | None = Field(None, description="of this machine, PEM; null: it shows none")
    key: Path | None = Field(None, description="of that certificate; null: in the same file")
    checks_name: bool = Field(True, description="whether the archive's certificate has to be for its host")


class DimseSettings(StrictModel):
    """An archive that speaks DICOM's own protocol (PS3.7): C-FIND, and C-GET or C-MOVE, and C-STORE."""

    host: str = Field(min_length=1, description="name or address of the archive")
    port: int = Field(ge=1, le=_LARGEST_PORT, description="of the archive, such as 104 or 11112")
    called: Title = Field(description="AE title of the archive")
    calling: Title = Field("ONCOFED", description="AE title of this machine, which the archive has to know")
    retrieve: Literal["get", "move"] = Field(
        "get", description="get: over the same connection; move: the archive connects to this machine's AE title"
    )
    listen: str = Field("0.0.0.0:11112", description="HOST:PORT at which moved images arrive")
    tls: TlsSettings | None = Field(None, description="null: not encrypted")


class DeidentifySettings(StrictModel):
    """How pulled images are de-identified on the way in."""

    keep_dates: bool = Field(False, description="shift dates, all of a patient by the same days")
    keep_device: bool = Field(False, description="keep names and numbers of devices")
    keep_burned_in: bool = Field(False, description="also keep images with text burned into their pixels")


class PacsSettings(StrictModel):
    """``pacs.yaml``."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    dicomweb: DicomWebSettings | None = None
    dimse: DimseSettings | None = None
    connections: int = Field(4, ge=1, le=16, description="series that are fetched at once")
    megabits: float | None = Field(None, gt=0, description="most that is fetched in a second; null: no limit")
    between: Window | tuple[Window, ...] | None = Field(
        None, description="when to fetch, by this machine's clock, such as 19:00-06:00; it waits outside"
    )
    patience_minutes: float = Field(
        10.0, ge=0, le=1440, description="how long an archive that does not answer is waited for"
    )
    keep_free_gb: float = Field(2.0, ge=0, description="gigabytes that stay free on the disk")
    deidentify: DeidentifySettings | None = Field(
        None, description="{}: images are de-identified on the way in; a site's policy may ask for it too"
    )

    @model_validator(mode="after")
    def _names_one(self) -> PacsSettings:
        if (self.dicomweb is None) == (self.dimse is None):
            raise SettingError(f"found {'both' if self.dimse else 'none'}, expected one of dicomweb and dimse", "dimse")
        return self

    @property
    def windows(self) -> tuple[str, ...]:
        """When images may be fetched; empty: always."""
        return (self.between,) if isinstance(self.between, str) else self.between or ()

    @property
    def is_encrypted(self) -> bool:
        """Whether images travel encrypted."""
        if self.dicomweb:
            return self.dicomweb.url.startswith("https:")
        return bool(self.dimse and self.dimse.tls)

    @property
    def address(self) -> str:
        """What tells this archive apart from others."""
        if self.dicomweb:
            return self.dicomweb.url
        assert self.dimse is not None
        return f"{self.dimse.called}@{self.dimse.host}:{self.dimse.port}"

    @property
    def host(self) -> str:
        """The archive's host."""
        if self.dicomweb:
            return urlsplit(self.dicomweb.url).hostname or ""
        assert self.dimse is not None
        return self.dimse.host


def read_pacs(file: Path) -> PacsSettings:
    """Read ``pacs.yaml``; paths in it are relative to its folder.

    Raises:
        SpecError: one line for each mistake, or a file that it names is missing or readable by others.
    """
    values, lines = read_yaml(file, "dicomweb: {url: https://pacs.example.org/dicom-web}")
    settings = validated(PacsSettings, values, str(file), lines, "settings")
    section = settings.dicomweb or settings.dimse
    assert section is not None
    name = "dicomweb" if settings.dicomweb else "dimse"
    changed: dict[str, object] = {**_with_places(section, file, lines, name)}
    if isinstance(section, DimseSettings) and section.tls:
        changed["tls"] = section.tls.model_copy(update=_with_places(section.tls, file, lines, name, "tls"))
    return settings.model_copy(update={name: section.model_copy(update=changed)})


def _with_places(section: StrictModel, file: Path, lines: Lines, *at: str) -> dict[str, Path]:
    """Return the files that a section names, found.

    Args:
        section: of the settings.
        file: of the settings.
        lines: of each setting.
        at: where the section stands in the file.

    Raises:
        SpecError: one is missing, or holds a secret and others can read it; with its line.
    """
    places = {
        name: file.parent / value
        for name in type(section).model_fields
        if isinstance(value := getattr(section, name), Path)
    }
    for name, path in places.items():
        where = f"{file}:{lines.get((*at, name), 1)}: {'.'.join((*at, name))}"
        if not path.is_file():
            raise SpecError(f"{where}: {path}: no such file")
        if name in {"token_file", "password_file", "key"} and path.stat().st_mode & _OTHERS_MAY_READ:
            raise SpecError(f"{where}: others of this machine can read {path}. Expected: chmod 600 {path}")
    return places


def read_secret(file: Path) -> str:
    """Return a token, or USER:PASSWORD, of a file's first line.

    Raises:
        SpecError: there is none.
    """
    try:
        text = file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not _HEADER_VALUE.fullmatch(text):
        raise SpecError(f"{file}: expected one line with a token, or USER:PASSWORD, without spaces")
    return text


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the TLS settings of a DICOM connection.

    Raises:
        SpecError: a certificate or key cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(tls.ca))
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise SpecError(f"dimse.tls: its certificates cannot be used ({error.strerror or 'not PEM'})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.checks_name
    return context
