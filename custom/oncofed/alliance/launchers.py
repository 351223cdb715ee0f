"""A kit's launch files for systemd, containers, Slurm and Kubernetes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from oncofed.alliance.facts import KitFacts
from oncofed.alliance.spec import AllianceSpec
from oncofed.private_files import write_private

DEPLOY_FOLDER = "deploy"
_TEMPLATES = ("oncofed.service", "Dockerfile", "compose.yaml", "oncofed.slurm")
_CHART = """\
apiVersion: v2
name: nvflare-{role}
description: NVIDIA FLARE's chart, with values for oncofed
type: application
version: 0.1.0
appVersion: "{version}"
"""


def add_launchers(folder: Path, spec: AllianceSpec, facts: KitFacts) -> None:
    """Write the launch files of a server, relay or site.

    Args:
        folder: for the files, new.
        spec: of the alliance.
        facts: of the kit.
    """
    environment = Environment(
        loader=PackageLoader("oncofed.alliance", "templates/deploy"),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 - no HTML; the specification has validated the names
        keep_trailing_newline=True,
    )
    image = spec.image or f"oncofed:{facts.oncofed}"
    repository, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
    values = {
        "facts": facts,
        "image": image,
        "repository": repository,
        "tag": tag,
        "listens": _port(spec, facts),
    }
    for name in _TEMPLATES:
        write_private(folder / name, environment.get_template(name).render(values).encode())
    role = "server" if facts.kind == "server" else "client"
    chart = folder / "helm"
    write_private(chart / "values.yaml", environment.get_template("values.yaml").render(values).encode())
    write_private(chart / "Chart.yaml", _CHART.format(role=role, version=facts.oncofed).encode())
    for template in (files("nvflare.tool.deploy") / "templates" / "helm" / role).iterdir():
        write_private(chart / "templates" / template.name, template.read_bytes())


def _port(spec: AllianceSpec, facts: KitFacts) -> int | None:
    """Return the port that the machine listens on.

    None for a site, which only connects out.
    """
    if facts.kind == "server":
        return facts.port
    return spec.relays[facts.participant].port if facts.kind == "relay" else None
