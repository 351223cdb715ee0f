"""Startup kits: FLARE's provisioner, with oncofed's policies."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import CertBuilder, _CertState
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.spec import Builder, ProvisionContext

from oncofed.alliance.authority import LARGEST_CLOCK_ERROR, Authority, common_name
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.privacy.policy import POLICY_FILE, Policy
from oncofed.processes import end_with_parent
from oncofed.signing import SITE_ROLE

OUTBOUND_FILTER = "oncofed.flare.security.outbound_filter.OutboundFilter"
PRIVACY_FILE = "privacy.json"
# FLARE adds a site's components to a job's process only if the site has a privacy scope; an empty one is enough.
_SITE_PRIVACY = {
    "scopes": [{"name": "oncofed"}],
    "default_scope": "oncofed",
    "components": [{"id": "outbound_filter", "path": OUTBOUND_FILTER, "args": {}}],
}

PublicKeys = Mapping[str, rsa.RSAPublicKey]

# The only classes that a job may name. FLARE refuses any other before it is built.
APPROVED_CLASSES = (
    "oncofed.flare.controller.FederatedTraining",
    "oncofed.flare.executor.SiteExecutor",
    # A federated profile: FLARE's statistics workflow with our statistics and privacy.
    "oncofed.flare.statistics.FederatedProfile",
    "oncofed.flare.statistics.CaseStatistics",
    "oncofed.flare.statistics.SmallCounts",
    "nvflare.app_common.executors.statistics.statistics_executor.StatisticsExecutor",
    "nvflare.app_common.filters.statistics_privacy_filter.StatisticsPrivacyFilter",
)

# A site whose parent process vanished is dropped after this many seconds (FLARE: ten minutes).
_HEARTBEAT_TIMEOUT_SECONDS = 60
# A message without progress is given up after this many seconds. FLARE waits five minutes, in which a site whose server
# was restarted does nothing.
_ANSWER_SECONDS = 10.0
# By the id of FLARE's component. FLARE's resource manager holds the first GPUs for ever, and gives them to several jobs
# at once if a job does not state what it needs.
_REPLACED = {
    "resource_manager": "oncofed.flare.runtime.resources.SiteResources",
    "resource_consumer": "oncofed.flare.runtime.resources.GPUAssigner",
}
_LAUNCHERS = {
    "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher": (
        "oncofed.flare.runtime.launchers.SiteJobLauncher"
    ),
    "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher": (
        "oncofed.flare.runtime.launchers.ServerJobLauncher"
    ),
}
_SITE_COMPONENTS = {
    "submission_replies": "oncofed.flare.security.submission.SubmissionReplies",
    "cleanup": "oncofed.flare.runtime.cleanup.SiteCleanup",
}
_SERVER_COMPONENTS = {
    "job_recovery": "oncofed.flare.runtime.job_recovery.JobRecovery",
    "revocation_list": "oncofed.flare.security.revocation.RevocationList",
    "submission_check": "oncofed.flare.security.submission.SubmissionCheck",
}
# Seconds between attempts to start a job that waits for free resources (FLARE: ten at first, then up to ten minutes).
_SCHEDULE = {"min_schedule_interval": 2.0, "max_schedule_interval": 10.0}
# Both ends of every connection show a certificate; FLARE's default for relays is none at all.
_MUTUAL_TLS = {"connection_security": "mtls"}
_COMMUNICATION = {"streaming_ack_wait": 10, "streaming_read_timeout": 30}


class AuthorityCertBuilder(CertBuilder):
    """Certificates signed by the alliance's authority.

    FLARE's builder would keep every private key on the disk.

    Args:
        authority: of the alliance.
        days: validity of the certificates.
        public_keys: participant -> public key, of those who keep their private key: their kits hold none.
    """

    def __init__(self, authority: Authority, days: int, public_keys: PublicKeys) -> None:
        super().__init__()
        self._authority, self._days, self._public_keys = authority, days, public_keys
        self._sites: frozenset[str] = frozenset()

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Use the alliance's authority as the root."""
        self._fix_server_name(project.get_server())
        self.persistent_state = _CertState(ctx.get_state_dir())
        self.persistent_state.is_available = True
        self.root_cert, self.pri_key = self._authority.certificate, self._authority.key
        self.serialized_cert = self._authority.certificate_pem
        self.subject, self.issuer = self.root_cert.subject, common_name(self.root_cert)
        self._sites = frozenset(site.subject for site in project.get_clients())

    def _generate_cert(
        self, subject: str, organisation: str, issuer: str, signing_key: Any, public_key: Any, **more: Any
    ) -> Any:
        """Return a certificate that is valid since yesterday.

        A site whose clock is slow would refuse a newer one. A site's says that it is one: FLARE gives relays the same
        certificate, and in a sum of masked updates a relay would count as one more site.
        """
        now = datetime.now(timezone.utc)
        until = min(now + timedelta(days=self._days), self._authority.certificate.not_valid_after_utc)
        more |= {"not_valid_before": now - LARGEST_CLOCK_ERROR, "not_valid_after": until}
        if subject in self._sites:
            more["role"] = SITE_ROLE
        public_key = self._public_keys.get(subject, public_key)
        return CertBuilder._generate_cert(subject, organisation, issuer, signing_key, public_key, **more)

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Delete FLARE's keys of participants with their own."""
        for name in self._public_keys:
            for key in Path(ctx.get_kit_dir(_entity(project, name))).glob("*.key"):
                key.unlink()


class PolicyBuilder(Builder):
    """Writes oncofed's changes into each kit's ``local`` folder.

    - No role may bring code (BYOC).
    - Only ``APPROVED_CLASSES`` are built from a job.
    - A site's log stays at the site; FLARE's default streams its errors to the server.
    - Killed job processes are started again, and the server resumes its jobs after a restart.
    - Only their owner can read private keys.
    """

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the policies, after FLARE's builder of static files."""
        for participant in [project.get_server(), *project.get_clients()]:
            local = Path(ctx.get_local_dir(participant))
            rewrite(local / "resources.json.default", local / "resources.json", _restrict_resources)
            rewrite(local / "authorization.json.default", local / "authorization.json", _forbid_code)
            if participant != project.get_server():
                policy = Policy(schema=1).model_dump_json(indent=2, by_alias=True)
                (local / POLICY_FILE).write_text(policy + "\n", encoding="utf-8")
                (local / PRIVACY_FILE).write_text(json.dumps(_SITE_PRIVACY, indent=2) + "\n", encoding="utf-8")
            (local / "comm_config.json").write_text(json.dumps(_COMMUNICATION, indent=2) + "\n", encoding="utf-8")

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Make the kits readable by their owner only."""
        _close_secrets(Path(ctx.get_workspace()))


def provision(
    spec: AllianceSpec,
    workspace: Path,
    authority: Authority | None = None,
    only: Collection[str] | None = None,
    public_keys: PublicKeys = MappingProxyType({}),
) -> Path:
    """Write startup kits, and return their folder.

    It has one sub-folder for each participant.

    Args:
        spec: who takes part.
        workspace: folder for the kits; nobody else can enter it.
        authority: signs the certificates; None: a new one, whose key is not stored.
        only: participants who get a kit; None: all.
        public_keys: participant -> public key, of those who keep their private key.

    Raises:
        AllianceError: FLARE's provisioner failed.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    workspace.chmod(stat.S_IRWXU)
    project = _project(spec, only)
    builders = [
        WorkspaceBuilder(["master_template.yml"]),
        StaticFileBuilder(config_folder="config", scheme="http"),
        PolicyBuilder(),
        AuthorityCertBuilder(authority or Authority.new(spec.name), spec.valid_days, public_keys),
    ]
    log = _Messages()
    mask = os.umask(0o077)
    try:
        ctx = Provisioner(str(workspace), builders).provision(project, logger=log)
    finally:
        os.umask(mask)
    if ctx.get(CtxKey.BUILD_ERROR):
        raise AllianceError(f"the startup kits could not be written to {workspace}: {'; '.join(log.errors)}")
    return Path(ctx[CtxKey.CURRENT_PROD_DIR])


def _project(spec: AllianceSpec, only: Collection[str] | None) -> Project:
    """Return FLARE's project of the wanted participants.

    It includes the server, without which FLARE makes no kit.
    """

    def wanted(name: str) -> bool:
        return only is None or name in only

    project = Project(spec.name, "federated training of medical imaging models", props={"api_version": 3})
    project.set_server(
        spec.server, spec.organisation, {"fed_learn_port": spec.port, "admin_port": spec.port, **_MUTUAL_TLS}
    )
    behind = {site: name for name, relay in spec.relays.items() for site in relay.sites}
    for name, relay in spec.relays.items():
        if wanted(name) or any(wanted(site) for site in relay.sites):
            listens = {"scheme": "http", "default_host": relay.host, "port": relay.port, **_MUTUAL_TLS}
            project.add_relay(name, spec.organisation, {"listening_host": listens, **_MUTUAL_TLS})
    for name, site in spec.sites.items():
        if not wanted(name):
            continue
        props: dict[str, Any] = {"allow_log_streaming": False}
        if name in spec.routes:
            host, port = spec.routes[name]
            props["connect_to"] = {"host": host, "port": port, **_MUTUAL_TLS}
        if name in behind:
            props["connect_to"] = {"name": behind[name], **_MUTUAL_TLS}
        project.add_client(name, site.organisation, props)
    for name, person in spec.people.items():
        if wanted(name):
            project.add_admin(name, person.organisation, {"role": person.role})
    return project


def _entity(project: Project, name: str) -> Participant:
    everybody = [project.get_server(), *project.get_clients(), *project.get_admins()]
    return next(participant for participant in everybody if participant.name == name)


class _Messages:
    """Collects the provisioner's errors instead of printing them."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def info(self, message: str) -> None:
        pass

    debug = warning = info

    def error(self, message: str) -> None:
        self.errors.append(message)


def rewrite(default: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a changed copy of a kit's JSON file.

    ``out`` may be the same file.
    """
    values = json.loads(default.read_text(encoding="utf-8"))
    change(values)
    out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def start_process(
    kit: Path, console: IO[bytes] | int, environment: Mapping[str, str], inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start FLARE's process of a kit.

    It ends with this process.

    Args:
        kit: of a server, a relay or a site.
        console: file for its output.
        environment: of the process.
        inherited: numbers of open files that it keeps.
    """
    return subprocess.Popen(
        # Without FLARE's loop, which restarts it indefinitely and waits five seconds before its first start.
        ["bash", str(kit / "startup" / "sub_start.sh"), "--once"],
        cwd=kit,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=inherited,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs here
    )


def keep_storage_inside(server_kit: Path) -> None:
    """Store a server's jobs in its kit.

    FLARE's default is one folder under /tmp for all servers.
    """
    resources_file, storage = server_kit / "local" / "resources.json", server_kit.absolute() / "storage"

    def keep_inside(resources: dict[str, Any]) -> None:
        resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(storage / "snapshots")
        for component in resources["components"]:
            if component["id"] == "job_manager":
                component["args"]["uri_root"] = str(storage / "jobs")

    rewrite(resources_file, resources_file, keep_inside)


def _restrict_resources(resources: dict[str, Any]) -> None:
    resources["class_list_enforcement_mode"] = "enforce"
    # FLARE applies the same list to the components that a site adds.
    resources["class_allow_list"] = [*APPROVED_CLASSES, OUTBOUND_FILTER]
    resources["allow_log_streaming"] = False
    streams = {"site_log_streamer", "log_receiver"}
    resources["components"] = [c for c in resources["components"] if c["id"] not in streams]
    for component in resources["components"]:
        component["path"] = _LAUNCHERS.get(component["path"], component["path"])
        if component["id"] == "job_scheduler":
            component["args"] |= _SCHEDULE
        if component["id"] in _REPLACED:
            component.update(path=_REPLACED[component["id"]], args={})
    if "client" in resources:
        # The minimum; a job with a large model sets more.
        resources["client"]["communication_timeout"] = _ANSWER_SECONDS
        resources["components"] += _components(_SITE_COMPONENTS)
    for server in resources.get("servers", []):
        server["heart_beat_timeout"] = _HEARTBEAT_TIMEOUT_SECONDS
    if "servers" in resources:
        resources["components"] += _components(_SERVER_COMPONENTS)


def _components(paths: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"id": name, "path": path, "args": {}} for name, path in paths.items()]


def _forbid_code(authorization: dict[str, Any]) -> None:
    # FLARE's project admin may do "any"thing, code included, and its lead may bring code: state both explicitly.
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
