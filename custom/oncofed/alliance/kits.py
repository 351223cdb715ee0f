"""Startup kits through FLARE's own provisioner, with oncofed's policy in every one of them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.spec import Builder, ProvisionContext
from pydantic import Field, model_validator

from oncofed.errors import FederationError
from oncofed.settings import StrictModel

# The only classes that a job may name at a server or a site. Whatever else it names is refused before it is built.
APPROVED_CLASSES = (
    "oncofed.federation.controller.FederatedTraining",
    "oncofed.federation.executor.SiteExecutor",
    # A federated profile: FLARE's statistics workflow with our statistics and privacy.
    "oncofed.federation.profile.FederatedProfile",
    "oncofed.federation.profile.CaseStatistics",
    "oncofed.federation.profile.SmallCounts",
    "nvflare.app_common.executors.statistics.statistics_executor.StatisticsExecutor",
    "nvflare.app_common.filters.statistics_privacy_filter.StatisticsPrivacyFilter",
)

# A site whose parent process vanished without a word is dropped after this many seconds (FLARE: ten minutes).
_HEARTBEAT_TIMEOUT_SECONDS = 60
# A message that nobody takes is given up after this many seconds without progress (FLARE: five minutes, in which a site
# whose server was started again does nothing).
_ANSWER_SECONDS = 10.0
_LARGEST_CLOCK_ERROR = timedelta(days=1)
# Both ends of every connection show a certificate; FLARE's default for relays is none at all.
_MUTUAL = {"connection_security": "mtls"}
_COMMUNICATION = {"streaming_ack_wait": 10, "streaming_read_timeout": 30}


class RelaySpec(StrictModel):
    """A machine between the server and some sites: it passes messages on, and sees no more of them than a router."""

    host: str = Field("localhost", description="host name at which its sites reach it")
    port: int = Field(ge=1, le=65535, description="the one port, for its sites")
    sites: tuple[str, ...] = Field(min_length=1, description="who reaches the server through it")


class AllianceSpec(StrictModel):
    """Who takes part. Names become the subjects of certificates."""

    name: str = Field("oncofed", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    server: str = Field("localhost", description="host name at which sites and people reach the server")
    port: int = Field(8002, ge=1, le=65535, description="the one port, for sites and people")
    sites: tuple[str, ...] = Field(min_length=1)
    admin: str = Field("admin@oncofed.org", description="project admin: may do everything but bring code")
    routes: dict[str, tuple[str, int]] = Field(
        default_factory=dict,
        description="site -> host and port through which it reaches the server; a hospital's proxy",
    )
    relays: dict[str, RelaySpec] = Field(
        default_factory=dict, description="for dozens of sites: name -> relay; each holds the connections of its sites"
    )
    engineer: str = Field("engineer@oncofed.org", description="ML engineer: submits jobs and fetches results")

    @model_validator(mode="after")
    def _relays_serve_sites(self) -> AllianceSpec:
        served = [site for relay in self.relays.values() for site in relay.sites]
        strange = sorted(set(served) - set(self.sites))
        if strange:
            raise ValueError(f"relays serve {', '.join(strange)}, which is no site of the alliance")
        twice = sorted({site for site in served if served.count(site) > 1} | (set(served) & set(self.routes)))
        if twice:
            raise ValueError(f"{', '.join(twice)}: a site reaches the server by one way, found two")
        return self


class PatientCertBuilder(CertBuilder):
    """Writes certificates that hold since yesterday: a site whose clock is slow would refuse one that is new."""

    @staticmethod
    def _generate_cert(*args: Any, not_valid_before: datetime | None = None, **more: Any) -> Any:
        before = (not_valid_before or datetime.now(timezone.utc)) - _LARGEST_CLOCK_ERROR
        return CertBuilder._generate_cert(*args, not_valid_before=before, **more)


class PolicyBuilder(Builder):
    """Writes what oncofed changes of FLARE's defaults into each kit's ``local`` folder.

    - nobody may bring code (BYOC), whatever their role;
    - only ``APPROVED_CLASSES`` are built from a job;
    - a site's log stays at the site: FLARE's default streams its errors to the server;
    - job processes that are killed are started again, and the server takes up its jobs after a restart;
    - private keys are readable by their owner alone.
    """

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the policies; runs after FLARE's builder of static files."""
        for participant in [project.get_server(), *project.get_clients()]:
            local = Path(ctx.get_local_dir(participant))
            rewrite(local / "resources.json.default", local / "resources.json", _restrict_resources)
            rewrite(local / "authorization.json.default", local / "authorization.json", _forbid_code)
            (local / "comm_config.json").write_text(json.dumps(_COMMUNICATION, indent=2) + "\n", encoding="utf-8")

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Close the files that hold private keys to everybody else."""
        _close_secrets(Path(ctx.get_workspace()))


def provision(spec: AllianceSpec, workspace: Path) -> Path:
    """Write the alliance's startup kits and return the folder that holds one sub-folder for each participant.

    Args:
        spec: who takes part.
        workspace: where the kits and the alliance's root key go; nobody else can enter it.

    Raises:
        FederationError: FLARE's provisioner failed.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    workspace.chmod(stat.S_IRWXU)
    project = Project(spec.name, "federated training of medical imaging models", props={"api_version": 3})
    organisation = "oncofed"
    project.set_server(spec.server, organisation, {"fed_learn_port": spec.port, "admin_port": spec.port, **_MUTUAL})
    for name, relay in spec.relays.items():
        listens = {"scheme": "http", "default_host": relay.host, "port": relay.port, **_MUTUAL}
        project.add_relay(name, organisation, {"listening_host": listens, **_MUTUAL})
    behind = {site: name for name, relay in spec.relays.items() for site in relay.sites}
    for site in spec.sites:
        props: dict[str, Any] = {"allow_log_streaming": False}
        if site in spec.routes:
            host, port = spec.routes[site]
            props["connect_to"] = {"host": host, "port": port, **_MUTUAL}
        if site in behind:
            props["connect_to"] = {"name": behind[site], **_MUTUAL}
        project.add_client(site, organisation, props)
    project.add_admin(spec.admin, organisation, {"role": "project_admin"})
    project.add_admin(spec.engineer, organisation, {"role": "lead"})
    builders = [
        WorkspaceBuilder(["master_template.yml"]),
        StaticFileBuilder(config_folder="config", scheme="http"),
        PolicyBuilder(),
        PatientCertBuilder(),
        SignatureBuilder(),
    ]
    log = _Messages()
    mask = os.umask(0o077)
    try:
        ctx = Provisioner(str(workspace), builders).provision(project, logger=log)
    finally:
        os.umask(mask)
    if ctx.get(CtxKey.BUILD_ERROR):
        raise FederationError(f"the startup kits could not be written to {workspace}: {'; '.join(log.errors)}")
    return Path(ctx[CtxKey.CURRENT_PROD_DIR])


class _Messages:
    """Keeps the provisioner's messages instead of printing them."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def info(self, message: str) -> None:
        pass

    debug = warning = info

    def error(self, message: str) -> None:
        self.errors.append(message)


def rewrite(default: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a kit's JSON file as another one with a change; both may be the same file."""
    values = json.loads(default.read_text(encoding="utf-8"))
    change(values)
    out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _restrict_resources(resources: dict[str, Any]) -> None:
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = list(APPROVED_CLASSES)
    resources["allow_log_streaming"] = False
    streams = {"site_log_streamer", "log_receiver"}
    resources["components"] = [c for c in resources["components"] if c["id"] not in streams]
    launchers = {
        "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher": "SiteJobLauncher",
        "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher": "ServerJobLauncher",
    }
    for component in resources["components"]:
        if component.get("path") in launchers:
            component["path"] = f"oncofed.federation.launchers.{launchers[component['path']]}"
    if "client" in resources:
        # The least that a site waits for an answer; a job with a large model says more.
        resources["client"]["communication_timeout"] = _ANSWER_SECONDS
    for server in resources.get("servers", []):
        server["heart_beat_timeout"] = _HEARTBEAT_TIMEOUT_SECONDS
    if "servers" in resources:
        keeper = {"id": "job_keeper", "path": "oncofed.federation.keeper.JobKeeper", "args": {}}
        resources["components"].append(keeper)


def _forbid_code(authorization: dict[str, Any]) -> None:
    # FLARE's project admin may do "any"thing, code included, and its lead may bring code: spell both out.
    permissions = authorization["permissions"]
    everything = dict.fromkeys(permissions["org_admin"], "any")
    permissions["project_admin"] = {**everything, "byoc": "none"}
    for role in ("org_admin", "lead"):
        permissions[role]["byoc"] = "none"


def _close_secrets(root: Path) -> None:
    for folder, _, files in os.walk(root):
        Path(folder).chmod(stat.S_IRWXU)
        for name in files:
            path = Path(folder) / name
            executable = path.stat().st_mode & stat.S_IXUSR
            path.chmod(stat.S_IRUSR | stat.S_IWUSR | executable)
