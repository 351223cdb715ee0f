"""The site admin's web page, on this machine's loopback only.

It shows the state, what left, and code to review. The printed address holds a token, which becomes a cookie that no
other page can send. There is no password and no JavaScript. Changes go to the audit log, as with the commands.
"""

from __future__ import annotations

import hmac
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, redirect, render_template, request, url_for
from rich.filesize import decimal
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Response as AnyResponse

from oncofed.alliance.facts import read_facts
from oncofed.audit import AuditLog
from oncofed.client.status_file import read_report
from oncofed.errors import AllianceError, AuditError, FederationError, OncofedError
from oncofed.loopback import IPV4, IPV6, require_loopback
from oncofed.packs.approvals import State, made_by
from oncofed.site import auditing, packs, policies
from oncofed.site.budget import read_budget
from oncofed.site.doctor import examine
from oncofed.site.service import is_connected, service_state

OPENED = "admin page opened"
_COOKIE = "oncofed-admin"
_DAYS_SHOWN = 14
_LAST_ENTRIES = 200
_COLOURS = ("#2563a8", "#d9822b", "#3a8f5c", "#8a5aa8", "#b8455a", "#6b7280")
_HEADERS = {
    # No outside content, no scripts, no frames, no forms to other sites.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _SilentHandler(WSGIRequestHandler):
    """Logs no addresses, as the first one holds the token."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        del type, message, args


def make_app(folder: Path, token: str, port: int) -> Flask:
    """Create the Flask application.

    Args:
        folder: the site's kit.
        token: grants access.
        port: of the server; requests for another host or port are refused.

    Raises:
        AllianceError: the folder is not a site's kit.
    """
    facts = read_facts(folder)
    if facts.kind != "site":
        raise AllianceError(f"{folder} is the kit of a {facts.kind}; this page is a site's")
    app = Flask("oncofed.site", template_folder="templates/admin")
    app.config["MAX_CONTENT_LENGTH"] = 1 << 20
    app.jinja_env.filters["size"] = decimal
    hosts = {f"{name}:{port}" for name in (IPV4, f"[{IPV6}]", "localhost")}
    # Not the cookie: a copy of the page would contain it.
    form_token = hmac.new(token.encode(), b"form", "sha256").hexdigest()

    @app.before_request
    def authorize() -> AnyResponse | None:
        if request.host not in hosts:
            abort(403)  # DNS rebinding: another page's name that points here
        given = request.args.get("token", "")
        if request.method == "GET" and given and _same(given, token):
            AuditLog(folder).write(OPENED)
            answer = redirect(request.path)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if not _same(request.cookies.get(_COOKIE, ""), token):
            abort(403)
        if request.method == "POST":
            origin = request.headers.get("Origin", "")
            form = request.form.get("form_token", "")
            if origin not in {f"http://{host}" for host in hosts} or not _same(form, form_token):
                abort(403)
        return None

    @app.after_request
    def secure(answer: Response) -> Response:
        answer.headers.update(_HEADERS)
        return answer

    @app.context_processor
    def shared_values() -> dict[str, Any]:
        return {"facts": facts, "form_token": form_token}

    @app.errorhandler(OncofedError)
    def failed(error: OncofedError) -> tuple[str, int]:
        return render_template("failed.html", error=str(error)), 400

    _add_pages(app, folder)
    return app


def _add_pages(app: Flask, folder: Path) -> None:
    @app.get("/")
    def home() -> str:
        left = auditing.bytes_left(folder)
        jobs = auditing.summarise_jobs(auditing.entries(folder))
        policy = policies.current_policy(folder)
        return render_template(
            "home.html",
            state=service_state(folder),
            connected=is_connected(folder),
            now=read_report(folder),
            packs=[(pack, made_by(pack), decision) for pack, decision in packs.list_packs(folder)],
            jobs=jobs[::-1],
            chart=_chart(left, {job.id: job.name or job.id[:8] for job in jobs}),
            policy=policy,
            version=policies.policy_version(folder),
        )

    @app.get("/doctor")
    def doctor() -> str:
        return render_template("doctor.html", checks=examine(folder))

    @app.get("/code/<digest>")
    def code(digest: str) -> str:
        return render_template("code.html", review=packs.review(folder, digest))

    @app.post("/code/<digest>")
    def decide(digest: str) -> AnyResponse:
        states: dict[str, State] = {"approve": "approved", "reject": "rejected", "withdraw": "withdrawn"}
        state = states.get(request.form.get("decision", ""))
        if state is None:
            abort(400)
        packs.decide(folder, digest, state, request.form.get("reason", ""))
        return redirect(url_for("code", digest=digest), 303)

    @app.get("/budget")
    def budget() -> str:
        try:
            found = read_budget(folder)
        except AuditError as error:
            return render_template("broken_ledger.html", error=str(error))
        jobs = {job.id: job for job in auditing.summarise_jobs(auditing.entries(folder))}
        return render_template("budget.html", budget=found, jobs=jobs)

    @app.get("/policy")
    def policy() -> str:
        current = policies.current_policy(folder)
        return render_template(
            "policy.html",
            text=policies.policy_text(current),
            digest=current.digest,
            version=policies.policy_version(folder),
            difference=policies.policy_difference(folder),
        )

    @app.post("/policy")
    def change_policy() -> AnyResponse:
        with tempfile.TemporaryDirectory(prefix="oncofed-policy-") as temporary:
            file = Path(temporary) / "policy.yaml"
            file.write_text(request.form.get("policy", ""), encoding="utf-8")
            policies.change_policy(folder, file, request.form.get("reason", ""))
        return redirect(url_for("policy"), 303)

    @app.get("/audit")
    def audit() -> str:
        problems, last = auditing.verify(folder, None)
        wanted = {name: request.args.get(name) or None for name in ("job", "what")}
        found = auditing.entries(folder, **wanted)
        rows = [(entry, auditing.facts_text(entry)) for entry in found[: -_LAST_ENTRIES - 1 : -1]]
        return render_template("log.html", rows=rows, problems=problems, last=last, wanted=wanted, count=len(found))


def _chart(left: dict[str, dict[str, int]], names: dict[str, str]) -> dict[str, Any]:
    """Return sent bytes by day as a bar chart.

    Bars are split by job; the chart is 100 units high.
    """
    days = sorted(left)[-_DAYS_SHOWN:]
    totals = {day: sum(left[day].values()) for day in days}
    highest = max(totals.values(), default=0) or 1
    order = list(dict.fromkeys(job for day in days for job in left[day]))
    colours = {job: _COLOURS[min(number, len(_COLOURS) - 1)] for number, job in enumerate(order)}
    bars = []
    for day in days:
        top, parts = 100.0, []
        for job in order:
            height = 100.0 * left[day].get(job, 0) / highest
            if height:
                top -= height
                parts.append({"y": top, "height": height, "colour": colours[job]})
        bars.append({"day": day, "bytes": totals[day], "parts": parts})
    legend = [{"name": names.get(job, job[:8]), "id": job, "colour": colours[job]} for job in order]
    return {"bars": bars, "legend": legend, "highest": highest}


@contextmanager
def admin_server(folder: Path, port: int) -> Iterator[tuple[str, BaseWSGIServer]]:
    """Yield the page's address, with its token, and its server.

    The server does not serve yet.

    Args:
        folder: the site's kit.
        port: to listen on; 0 takes a free one.

    Raises:
        AllianceError: the folder is not a site's kit.
        FederationError: the port is taken.
        TransferError: this machine has no loopback address.
    """
    token = secrets.token_urlsafe(32)
    address = require_loopback()[0]
    try:
        server = make_server(address, port, _unavailable, threaded=True, request_handler=_SilentHandler)
    except (OSError, SystemExit):
        raise FederationError(f"port {port} is taken. Name another one with --port, or leave it away") from None
    try:
        server.app = make_app(folder, token, server.server_port)
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{server.server_port}/?token={token}", server
    finally:
        server.server_close()


def _unavailable(environment: Any, start: Any) -> list[bytes]:
    del environment
    start("503 Service Unavailable", [])
    return []


def _same(secret: str, other: str) -> bool:
    """Compare secrets in constant time."""
    return hmac.compare_digest(secret.encode(), other.encode())
