"""``kit.json``: the participant of a kit."""

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
    """``kit.json``: a kit's participant, alliance and versions."""

    schema_: int = Field(alias="schema")
    alliance: str
    participant: str
    kind: Kind
    role: str | None = None
    organisation: str
    server: str
    port: int
    reaches: str | None = Field(None, description="host that it connects to: the server, a relay or a proxy")
    reaches_port: int | None = None
    root_fingerprint: str
    sites: tuple[str, ...] = Field((), description="sites of the alliance when a person's kit was made")
    made: datetime
    oncofed: str
    nvflare: str

    def certificate_file(self, folder: Path) -> Path:
        """Return the path of the participant's certificate."""
        return folder / "startup" / ("server.crt" if self.kind == "server" else "client.crt")

    def certificate(self, folder: Path) -> x509.Certificate:
        """Read the participant's certificate."""
        return x509.load_pem_x509_certificate(self.certificate_file(folder).read_bytes())


def describe(spec: AllianceSpec, name: str) -> tuple[Kind, str | None, str]:
    """Return a participant's kind, role and organisation."""
    if name in spec.sites:
        return "site", None, spec.sites[name].organisation
    if name in spec.people:
        return "person", spec.people[name].role, spec.people[name].organisation
    return "relay" if name in spec.relays else "server", None, spec.organisation


def read_facts(folder: Path) -> KitFacts:
    """Read the facts of a kit.

    Raises:
        AllianceError: the folder holds no kit, or one of another format.
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
    """Return the alliance's sites that a person's kit lists.

    Empty if it lists none.
    """
    return read_facts(folder).sites if (folder / KIT_FILE).is_file() else ()
