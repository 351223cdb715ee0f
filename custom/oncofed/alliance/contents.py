"""What oncofed adds to FLARE's startup kit: who it is for, a site's settings, pinned versions, a service, a guide."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cryptography import x509
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field, ValidationError, field_validator

import oncofed
from oncofed.alliance.authority import Authority, fingerprint
from oncofed.alliance.files import write_private
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import FederationError
from oncofed.federation.lending import HOURS, Lending
from oncofed.proxy import parse_proxy
from oncofed.settings import StrictModel, read_yaml, validated

KIT_FILE = "kit.json"
SETTINGS_FILE = "site.yaml"
CONSTRAINTS_FILE = "constraints.txt"
GUIDE_FILE = "guide.html"
SERVICE_FILE = "oncofed.service"
_SCHEMA = 1

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


class SiteSettings(StrictModel):
    """``site.yaml``: what a site's admin may change."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    datasets: dict[str, Path] = Field(
        default_factory=dict, description="name that jobs ask for -> folder of the registered dataset"
    )
    gpus: tuple[int, ...] | None = Field(None, description="numbers of the GPUs that are lent; null: all of them")
    jobs_at_once: int | None = Field(
        1, ge=1, le=64, description="jobs of the alliance; null: as many as there are GPUs for"
    )
    hours: str | None = Field(
        None, pattern=HOURS, description="from when to when jobs may run, by this machine's clock; null: always"
    )
    proxy: str | None = Field(
        None, description="http://HOST:PORT of the hospital's proxy (HTTP CONNECT) on the way to the server; null: none"
    )
    log_mb: int = Field(20, ge=1, le=10_000, description="size at which a log is put aside; five of each are kept")
    restarts_an_hour: int = Field(10, ge=0, le=1000, description="so often a process that ended is started again")

    @field_validator("proxy")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_proxy(value)
        return value

    @property
    def lending(self) -> Lending:
        """What the site lends to jobs."""
        return Lending(self.gpus, self.jobs_at_once, self.hours)


_PROXY_TEXT = """\
proxy: null             # the way out, where there is one: http://HOST:PORT or http://USER:PASSWORD@HOST:PORT
"""
_SETTINGS_TEXT = """\
# What this {kind} may change. `oncofed site doctor` checks it; `oncofed site start` reads it.
schema: 1
{datasets}{lending}{proxy}log_mb: 20              # size at which a log is put aside; five of each are kept
restarts_an_hour: 10    # so often a process that ended is started again
"""
_LENDING_TEXT = """\
gpus: null              # numbers of the GPUs that are lent, such as [0, 1]; null: all
jobs_at_once: 1         # jobs of the alliance; null: as many as there are GPUs for, each has its own
hours: null             # when jobs may run, by this machine's clock, such as "18:00-07:00"; null: always
"""
_DATASETS_TEXT = """\
datasets: {}            # name that jobs ask for: folder of the registered dataset, such as
                        # {spleen_ct: /data/oncofed/spleen_ct}; see: oncofed data register --help
"""
_OWN_OF_A_SITE = {"datasets": _DATASETS_TEXT, "lending": _LENDING_TEXT, "proxy": _PROXY_TEXT}


def add_contents(folder: Path, spec: AllianceSpec, name: str, authority: Authority) -> KitFacts:
    """Write oncofed's files into a participant's kit.

    Args:
        folder: the kit as FLARE wrote it.
        spec: of the alliance.
        name: the participant's.
        authority: of the alliance.
    """
    kind, role, organisation = describe(spec, name)
    reaches, reaches_port = spec.route_of(name) if kind != "server" else (None, None)
    facts = KitFacts(
        schema=_SCHEMA,
        alliance=spec.name,
        participant=name,
        kind=kind,
        role=role,
        organisation=organisation,
        server=spec.server,
        port=spec.port,
        reaches=reaches,
        reaches_port=reaches_port,
        root_fingerprint=fingerprint(authority.certificate),
        sites=tuple(sorted(spec.sites)) if kind == "person" else (),
        made=datetime.now(timezone.utc).replace(microsecond=0),
        oncofed=oncofed.__version__,
        nvflare=version("nvflare"),
    )
    write_private(folder / KIT_FILE, (facts.model_dump_json(indent=2, by_alias=True) + "\n").encode())
    write_private(folder / CONSTRAINTS_FILE, _constraints())
    environment = Environment(
        loader=PackageLoader("oncofed.alliance"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    contact = spec.sites[name].contact if name in spec.sites else None
    until = facts.certificate(folder).not_valid_after_utc
    values = {"facts": facts, "spec": spec, "contact": contact, "until": until}
    write_private(folder / GUIDE_FILE, environment.get_template(GUIDE_FILE).render(values).encode())
    if kind != "person":
        own = _OWN_OF_A_SITE if kind == "site" else dict.fromkeys(_OWN_OF_A_SITE, "")
        write_private(folder / SETTINGS_FILE, _SETTINGS_TEXT.format(kind=kind, **own).encode())
        write_private(folder / SERVICE_FILE, environment.get_template(SERVICE_FILE).render(values).encode())
    return facts


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
        FederationError: it holds none, or one of another format.
    """
    path = folder / KIT_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise FederationError(
            f"{folder} holds no kit ({KIT_FILE} is missing). Open the one that the alliance sent: oncofed site open"
            " FILE; or name another folder with --folder."
        ) from None
    except ValueError:
        raise FederationError(f"{path} is broken. Open the kit again: oncofed site open FILE") from None
    found = values.get("schema") if isinstance(values, dict) else None
    if found != _SCHEMA:
        raise FederationError(
            f"{path} has format {found!r}, expected {_SCHEMA}: it was made by another version of oncofed. Ask the "
            "alliance for a new kit, or install the version that made it."
        )
    try:
        return KitFacts.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise FederationError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def sites_of(folder: Path) -> tuple[str, ...]:
    """Return the sites of the alliance of a person's kit; none where it does not say."""
    return read_facts(folder).sites if (folder / KIT_FILE).is_file() else ()


def read_settings(folder: Path) -> SiteSettings:
    """Return a site's settings.

    Raises:
        SpecError: the file is not valid; one line for each mistake.
    """
    path = folder / SETTINGS_FILE
    values, lines = read_yaml(path, "datasets: {}")
    return validated(SiteSettings, values, str(path), lines, "settings")


def _constraints() -> bytes:
    """Return the versions that every site installs: the checkout's file, or the installed package's copy of it."""
    package = Path(oncofed.__file__).resolve().parent
    for place in (package / "_provisioning", package.parents[1] / "provisioning"):
        path = place / CONSTRAINTS_FILE
        if path.is_file():
            return path.read_bytes()
    raise FederationError(f"{CONSTRAINTS_FILE} is missing from this installation of oncofed. Install it again.")
