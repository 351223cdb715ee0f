"""``oncofed site doctor``: checks whether this machine is ready."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from packaging.requirements import InvalidRequirement, Requirement

import oncofed
from oncofed.alliance.authority import EXPIRES_SOON_DAYS, fingerprint
from oncofed.alliance.contents import CONSTRAINTS_FILE
from oncofed.alliance.facts import KitFacts, read_facts
from oncofed.alliance.kits import OUTBOUND_FILTER, PRIVACY_FILE
from oncofed.alliance.sealing import ROOT_FILE, changed_files
from oncofed.alliance.site_settings import read_settings
from oncofed.audit import AuditLog
from oncofed.errors import FederationError, OncofedError
from oncofed.privacy.policy import read_policy
from oncofed.sandbox import what_is_missing
from oncofed.signing import is_of_site
from oncofed.site.check import Check
from oncofed.site.datasets import check_datasets
from oncofed.site.gpu_checks import check_gpus
from oncofed.site.packs import list_packs
from oncofed.site.policies import policy_version
from oncofed.site.reachability import check_route
from oncofed.site.service import is_site_file, readable_by_others, require_free_server_port, service_state
from oncofed.training import Plan

_LEAST_DISK_GB, _GOOD_DISK_GB = 2, 20
_GOOD_FILES = 4096
_GOOD_SHARED_MB = 512
_RENEW = "oncofed site renew FILE"
# Versions that must be the same at all sites: otherwise results differ, or messages cannot be read.
_SAME_EVERYWHERE = ("nvflare", "monai", "torch", "numpy")


def examine(
    folder: Path | None,
    server: tuple[str, int] | None = None,
    jobs: Mapping[str, Plan] = MappingProxyType({}),
    proxy: str | None = None,
) -> list[Check]:
    """Run all checks.

    They run in parallel, as some wait for the network.

    Args:
        folder: the kit; None: no kit yet.
        server: host and port to check without a kit.
        jobs: name -> plan of the alliance's jobs, to check the datasets for.
        proxy: to the server; None: the one in the site's settings, if any.
    """
    checks: list[Callable[[], Iterator[Check]]] = [_python, _limits]
    checks += [lambda: _packages(folder), lambda: _gpus(folder), lambda: _disk(folder)]
    facts = None
    if folder is not None:
        try:
            facts = read_facts(folder)
        except OncofedError as error:
            return [Check("kit", "fail", str(error), "open the kit that the alliance sent: oncofed site open FILE")]
        known = facts
        checks += [
            lambda: _kit(folder, known),
            lambda: _permissions(folder),
            lambda: _certificate(folder, known),
            lambda: _settings(folder, known, jobs),
            lambda: _audit(folder),
        ]
        if facts.kind == "site":
            checks += [lambda: _policy(folder), lambda: _code(folder)]
    if facts and facts.kind == "server":
        known = facts
        checks.append(lambda: _own_port(folder, known))
    elif facts and facts.reaches and facts.reaches_port:
        route = (facts.reaches, facts.reaches_port)
        checks.append(lambda: check_route(route, proxy or _proxy(folder), folder, facts))
    elif server:
        checks.append(lambda: check_route(server, proxy, None, None))
    else:
        checks.append(_no_kit)
    with ThreadPoolExecutor(len(checks)) as pool:
        results = pool.map(lambda check: list(_run(check)), checks)
        return [result for found in results for result in found]


def _no_kit() -> Iterator[Check]:
    what = "name its folder with --folder, or the server with --server HOST:PORT, to look at more than the machine"
    yield Check("kit", "warn", "none in this folder", what)


def _run(check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield a check's results.

    An exception is a failed check, and the others continue.
    """
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        name = getattr(check, "__name__", "check").strip("_<>")
        yield Check(name, "fail", f"{type(error).__name__}: {error}", "tell the alliance; this should not happen")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info < (3, 13):
        yield Check("python", "fail", found, "install Python 3.10, 3.11 or 3.12")
    elif sys.platform != "linux":
        yield Check("python", "warn", found, "sites are tested on Linux alone")
    else:
        yield Check("python", "ok", found)


def _packages(folder: Path | None) -> Iterator[Check]:
    yield _versions(folder)
    changed = [name for name in (*_SAME_EVERYWHERE, "oncofed") if _changed_since_installed(name)]
    if changed:
        first = _changed_since_installed(changed[0])
        yield Check(
            "installed files",
            "fail",
            f"{first} of {changed[0]} is not as it was installed",
            f"find out who changed it, then: pip install --force-reinstall {' '.join(changed)}",
        )
    else:
        yield Check("installed files", "ok", f"{', '.join(_SAME_EVERYWHERE)} are as their packages' digests say")


def _versions(folder: Path | None) -> Check:
    wanted: dict[str, str] = {}
    if folder is not None and (folder / CONSTRAINTS_FILE).is_file():
        wanted = _constraints(folder / CONSTRAINTS_FILE)
        wanted["oncofed"] = read_facts(folder).oncofed
    elif folder is not None:
        return Check("packages", "fail", f"{CONSTRAINTS_FILE} is missing from the kit", "open the kit again")
    differ, strict = [], False
    for name, expected in wanted.items():
        found = _installed(name)
        if found is not None and found.partition("+")[0] != expected:
            differ.append(f"{name} {found}, expected {expected}")
            strict |= name in (*_SAME_EVERYWHERE, "oncofed")
    if differ:
        advice = f"pip install oncofed=={wanted['oncofed']} --constraint {CONSTRAINTS_FILE}"
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        return Check("packages", "fail" if strict else "warn", "; ".join(differ[:3]) + more, advice)
    versions = ", ".join(f"{name} {_installed(name)}" for name in _SAME_EVERYWHERE)
    return Check("packages", "ok", f"oncofed {oncofed.__version__}, {versions}")


def _constraints(path: Path) -> dict[str, str]:
    wanted = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            requirement = Requirement(text) if text and not text.startswith("-") else None
        except InvalidRequirement:
            continue
        if requirement and (requirement.marker is None or requirement.marker.evaluate()):
            pins = [part.version for part in requirement.specifier if part.operator == "=="]
            if pins:
                wanted[requirement.name.lower()] = pins[0]
    return wanted


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _changed_since_installed(name: str) -> str | None:
    """Return the first file that differs from a package's RECORD.

    Only Python files; None if none differs.
    """
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.suffix != ".py" or file.hash is None or file.hash.mode != "sha256":
            continue
        path = Path(str(file.locate()))
        if not path.is_file():
            return f"{file} (missing)"
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            return str(file)
    return None


def _gpus(folder: Path | None) -> Iterator[Check]:
    lent = None
    with contextlib.suppress(OncofedError):  # another check reports what is wrong with the settings
        lent = read_settings(folder).gpus if folder else None
    yield from check_gpus(lent)


def _disk(folder: Path | None) -> Iterator[Check]:
    target = folder or Path.cwd()
    free = shutil.disk_usage(target).free / 1e9
    found = f"{free:.0f} GB free where {'the kit' if folder else 'this folder'} lies"
    if not os.access(target, os.W_OK):
        yield Check(
            "disk", "fail", f"{target} cannot be written to", "give its owner the folder, or start as its owner"
        )
    elif free < _LEAST_DISK_GB:
        yield Check("disk", "fail", found, f"free some: jobs need {_LEAST_DISK_GB} GB at least")
    elif free < _GOOD_DISK_GB:
        yield Check("disk", "warn", found, f"{_GOOD_DISK_GB} GB are enough for most jobs")
    else:
        yield Check("disk", "ok", found)


def _limits() -> Iterator[Check]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = files == resource.RLIM_INFINITY or files >= _GOOD_FILES
    shown = "unlimited" if files == resource.RLIM_INFINITY else str(files)
    yield Check(
        "open files",
        "ok" if enough else "warn",
        f"{shown} at once",
        "" if enough else f"ulimit -n {_GOOD_FILES}, or LimitNOFILE in the service",
    )
    shared = Path("/dev/shm")  # noqa: S108 - only its size is read
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 2**20
        small = size < _GOOD_SHARED_MB
        yield Check(
            "shared memory",
            "warn" if small else "ok",
            f"{size:.0f} MiB",
            f"processes that read images need {_GOOD_SHARED_MB} MiB; in Docker: --shm-size=2g" if small else "",
        )


def _kit(folder: Path, facts: KitFacts) -> Iterator[Check]:
    changed = changed_files(folder)
    foreign = [problem for problem in changed if not is_site_file(problem)]
    whose = f"{facts.kind} {facts.participant} of {facts.alliance}"
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        yield Check("kit", "fail", f"{whose}: {foreign[0]}{more}", "open the kit again, or ask for another")
    else:
        local = [problem for problem in changed if not problem.startswith("site.yaml")]
        note = f"; yours: {', '.join(problem.split()[0] for problem in local)}" if local else ""
        yield Check("kit", "ok", f"{whose}, signed by the alliance{note}")
    if facts.oncofed != oncofed.__version__:
        yield Check(
            "kit's version",
            "warn",
            f"made with oncofed {facts.oncofed}, here is {oncofed.__version__}",
            "install the version that the server runs; it refuses another",
        )


def _permissions(folder: Path) -> Iterator[Check]:
    exposed = readable_by_others(folder)
    if exposed:
        advice = f"chmod -R go-rwx {folder}; where somebody read it, ask for a new kit"
        yield Check("private key", "fail", f"others can read {', '.join(exposed)}", advice)
    else:
        yield Check("private key", "ok", "readable by its owner alone")


def _certificate(folder: Path, facts: KitFacts) -> Iterator[Check]:
    try:
        certificate = facts.certificate(folder)
        root = x509.load_pem_x509_certificate((folder / ROOT_FILE).read_bytes())
        certificate.verify_directly_issued_by(root)
    except Exception as error:  # noqa: BLE001 - several libraries' errors, all with the same meaning
        yield Check("certificate", "fail", f"not of this alliance ({type(error).__name__})", "ask for a new kit")
        return
    if fingerprint(root) != facts.root_fingerprint:
        yield Check("certificate", "fail", "the root is not the one that the kit was made with", "ask for a new kit")
        return
    now = datetime.now(timezone.utc)
    days = (certificate.not_valid_after_utc - now).days
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    found = f"holds until {until:%Y-%m-%d} ({days} days)"
    if now < since:
        yield Check("certificate", "fail", f"holds from {since:%Y-%m-%d}", "look at this machine's clock")
    elif days < 0:
        yield Check("certificate", "fail", f"expired on {until:%Y-%m-%d}", f"ask for a new kit, then: {_RENEW}")
    elif days < EXPIRES_SOON_DAYS:
        yield Check("certificate", "warn", found, f"ask the alliance for a new kit before it ends, then: {_RENEW}")
    elif facts.kind == "site" and not is_of_site(certificate):
        found += "; of an older release, whose sites take no part in secure aggregation"
        yield Check("certificate", "warn", found, f"ask the alliance for a new kit, then: {_RENEW}")
    else:
        # Other sites' policies may name it (leaves.peers).
        yield Check("certificate", "ok", f"{found}; its fingerprint is {fingerprint(certificate)}")


def _settings(folder: Path, facts: KitFacts, jobs: Mapping[str, Plan]) -> Iterator[Check]:
    if facts.kind == "person":
        return
    try:
        settings = read_settings(folder)
    except OncofedError as error:
        yield Check("site.yaml", "fail", str(error), "correct it")
        return
    if facts.kind != "site":
        yield Check("site.yaml", "ok", "valid")
        return
    datasets = {name: folder / path for name, path in settings.datasets.items()}
    yield from check_datasets(datasets, jobs)


def _code(folder: Path) -> Iterator[Check]:
    missing = what_is_missing()
    if missing:
        todo = "nothing, where no engineer's own code is to run; else a newer kernel"
        yield Check("own code", "warn", f"none can run here: {missing}", todo)
        return
    waiting = [pack for pack, decision in list_packs(folder) if decision is None]
    if waiting:
        names = ", ".join(f"{pack.name} {pack.digest[:12]}" for pack in waiting)
        yield Check(
            "own code", "warn", f"waits for a decision: {names}", f"oncofed site review {waiting[0].digest[:12]}"
        )
    else:
        yield Check("own code", "ok", "would run without network, and read a job's data alone; none waits")


def _policy(folder: Path) -> Iterator[Check]:
    try:
        policy = read_policy(folder / "local")
        filtered = OUTBOUND_FILTER in (folder / "local" / PRIVACY_FILE).read_text(encoding="utf-8")
    except (OncofedError, OSError) as error:
        yield Check("policy", "fail", str(error), "open the kit again, or: oncofed site policy edit")
        return
    if policy is None:
        yield Check("policy", "fail", "there is none: nothing leaves", "ask the alliance for a new kit")
    elif not filtered:
        advice = f"put the component {OUTBOUND_FILTER} back into local/{PRIVACY_FILE}"
        yield Check("policy", "fail", "nothing looks at what leaves this site", advice)
    else:
        yield Check("policy", "ok", f"version {policy_version(folder)}, digest {policy.digest[:12]}")


def _audit(folder: Path) -> Iterator[Check]:
    problems, last = AuditLog(folder).verify()
    if problems:
        advice = "find out who changed it: oncofed site audit verify"
        yield Check("audit log", "fail", f"line {problems[0].line}: {problems[0].what}", advice)
    else:
        yield Check("audit log", "ok", f"{last.number} entries, none changed" if last else "no entries yet")


def _own_port(folder: Path | None, facts: KitFacts) -> Iterator[Check]:
    if folder is not None and service_state(folder).running:
        yield Check("port", "ok", f"{facts.port}, in use by this server")
        return
    try:
        require_free_server_port(facts)
    except FederationError as error:
        found, _, what = str(error).partition(". What listens there: ")
        yield Check("port", "fail", found, f"end what listens there; it is named by: {what}")
    else:
        yield Check("port", "ok", f"{facts.port} is free")


def _proxy(folder: Path | None) -> str | None:
    """Return the proxy in the site's settings.

    Another check reports if those are broken.
    """
    with contextlib.suppress(OncofedError):
        return read_settings(folder).proxy if folder else None
    return None
