"""oncofed's files in a startup kit.

They are facts, settings, versions, launchers and a guide.
"""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import oncofed
from oncofed.alliance.authority import Authority, fingerprint
from oncofed.alliance.facts import KIT_FILE, SCHEMA, KitFacts, describe
from oncofed.alliance.launchers import DEPLOY_FOLDER, add_launchers
from oncofed.alliance.site_settings import SETTINGS_FILE, settings_text
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.private_files import write_private

CONSTRAINTS_FILE = "constraints.txt"
REQUIREMENTS_FILE = "requirements.txt"
GUIDE_FILE = "guide.html"


def add_contents(folder: Path, spec: AllianceSpec, name: str, authority: Authority) -> KitFacts:
    """Add oncofed's files to a participant's kit.

    Args:
        folder: the kit as FLARE wrote it.
        spec: of the alliance.
        name: of the participant.
        authority: of the alliance.
    """
    kind, role, organisation = describe(spec, name)
    reaches, reaches_port = spec.route_of(name) if kind != "server" else (None, None)
    facts = KitFacts(
        schema=SCHEMA,
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
    for file in (CONSTRAINTS_FILE, REQUIREMENTS_FILE):
        write_private(folder / file, _packaged(file))
    environment = Environment(
        loader=PackageLoader("oncofed.alliance"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    contact = spec.sites[name].contact if name in spec.sites else None
    until = facts.certificate(folder).not_valid_after_utc
    values = {"facts": facts, "spec": spec, "contact": contact, "until": until}
    write_private(folder / GUIDE_FILE, environment.get_template(GUIDE_FILE).render(values).encode())
    if kind != "person":
        write_private(folder / SETTINGS_FILE, settings_text(kind).encode())
        add_launchers(folder / DEPLOY_FOLDER, spec, facts)
    return facts


def _packaged(name: str) -> bytes:
    """Read a file of ``provisioning/``.

    It is the package's copy, or the checkout's.
    """
    package = Path(oncofed.__file__).resolve().parent
    for folder in (package / "_provisioning", package.parents[1] / "provisioning"):
        path = folder / name
        if path.is_file():
            return path.read_bytes()
    raise AllianceError(f"{name} is missing from this installation of oncofed. Install it again.")
