"""``kit.json``: whose kit a folder holds."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from pydantic import Field, ValidationError

from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.settings import StrictModel, first_problem

KIT_FILE = "kit.json"
SCHEMA = 1

Kind = Literal["server", "relay", "site", "person"]


class KitFacts(StrictModel):
    """``kit.json``: whose kit it is, and with which versions it was made."""

    schema_: int = Field(alias="schema")
    alliance: str
    participant: str
    kind: Kind
    role: str | None = None
    organisation: str
    server: str
    port: int
    reaches: str | None = Field(None, description="host that it connects to: the server, a relay, a proxy")
    reaches_port: int | None = None
    root_fingerprint: str
    sites: tuple[str, ...] = Field((), description="of the alliance when the kit was made; of a person's kit")
    made: datetime
    oncofed: str
    nvflare: str

    def certificate_file(self, folder: Path) -> Path:
        """Return the participant's own certificate."""
        return folder / "startup" / ("server.crt" if self.kind == "server" else "client.crt")

    def certificate(self, folder: Path) -> x509.Certificate:
        """Read the participant's own certificate."""
        return x509.load_pem_x509_certificate(self.certificate_file(folder).read_bytes())


def describe(spec: AllianceSpec, name: str) -> tuple[Kind, str | None, str]:
    """Return a participant's kind, role and organisation."""
    if name in spec.sites:
        return "site", None, spec.sites[name].organisation
    if name in spec.people:
        return "person", spec.people[name].role, spec.people[name].organisation
    return "relay" if name in spec.relays else "server", None, spec.organisation


def read_facts(folder: Path) -> KitFacts:
    """Return whose kit a folder holds.

    Raises:
        AllianceError: it holds none, or one of another format.
    """
    path = folder / KIT_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise AllianceError(
            f"{folder} holds no kit ({KIT_FILE} is missing). Open the one that the alliance sent: oncofed site open"
            " FILE; or name another folder with --folder."
        ) from None
    except ValueError:
        raise AllianceError(f"{path} is broken. Open the kit again: oncofed site open FILE") from None
    found = values.get("schema") if isinstance(values, dict) else None
    if found != SCHEMA:
        raise AllianceError(
            f"{path} has format {found!r}, expected {SCHEMA}: it was made by another version of oncofed. Ask the "
            "alliance for a new kit, or install the version that made it."
        )
    try:
        return KitFacts.model_validate(values)
    except ValidationError as error:
        raise AllianceError(f"{path}: {first_problem(error)}") from None


def sites_of(folder: Path) -> tuple[str, ...]:
    """Return the sites of the alliance of a person's kit; none where it does not say."""
    return read_facts(folder).sites if (folder / KIT_FILE).is_file() else ()
