"""Sites fetch tasks and hand in results through FLARE."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.fuel.utils.msg_root_utils import delete_msg_root

from oncofed.flare import wire
from oncofed.flare.patches.aux_senders import refuse_false_names
from oncofed.flare.patches.held_requests import hold_requests
from oncofed.flare.runtime.malloc import trim_heap
from oncofed.flare.security.recording import AnchorKeeper
from oncofed.flare.wire import TOLD_TOPIC, WAIT_TOPIC, Directive, wait_reply
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.transport import REVOKED

# A site that has been silent for this long is lost: FLARE's job processes send a heartbeat every ten seconds.
_SILENT_SECONDS = 30.0
# A waiting site gets a reply after this long at the latest.
_LONGEST_WAIT_SECONDS = 2.5
# Each waiting site holds one of the server's threads. Beyond this number, later sites are sent a message instead. They
# ask again only in case it was lost: together this often, each after a pause between these bounds.
_MOST_WAITING = 16
_REQUESTS_A_SECOND = 3.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 6.0, 20.0


class PullCommunicator(WFCommServer):
    """Gives each asking site its first open task.

    Implements ``rounds.transport.Transport``.

    FLARE's own communicator sends a task to all sites, and forgets one that was given to a process which died. Here
    sites ask: one that comes late, or comes back, is given what is open, and a result of a task that was closed
    meanwhile still reaches the loop.

    Attributes:
        lost: sites that are away, with the reason.
        banned: revoked sites.
        tidy: whether messages are large. FLARE's messages form reference cycles, which keep their model in memory until
            Python's garbage collector runs. So that is run after each result, and for young objects twice a second.
    """

    def __init__(self) -> None:
        super().__init__()
        lock = threading.RLock()
        # Results wake the round loop only, new tasks the sites only: most threads that wait here are sites.
        self._changed, self._opened = threading.Condition(lock), threading.Condition(lock)
        self._tasks: list[SiteTask] = []
        self._in_work: dict[str, tuple[str, SiteTask]] = {}
        self._heard: dict[str, float] = {}
        self._to_notify: set[str] = set()
        self._fetching: dict[str, object] = {}
        self._asking: dict[str, object] = {}
        self._anchors = AnchorKeeper()
        self._ended = False
        self.lost: dict[str, str] = {}
        self.banned: frozenset[str] = frozenset()
        self.tidy = False

    def initialize_run(self, fl_ctx: FLContext) -> None:
        """Begin to answer sites.

        Unlike FLARE's, this starts no thread that ends the job when sites are gone.
        """
        engine = fl_ctx.get_engine()
        self._engine = engine
        refuse_false_names(WAIT_TOPIC)
        engine.register_aux_message_handler(topic=WAIT_TOPIC, message_handle_func=self._wait)
        hold_requests(fl_ctx.get_prop(FLContextKey.RUNNER), self._hold)

    def finalize_run(self, fl_ctx: FLContext) -> None:
        """Let every site go."""
        with self._changed:
            for task in list(self._tasks):
                self.close(task)
            self._in_work.clear()
            self._ended = True
        self._notify_sites()
        self._anchors.close()

    def open(self, task: SiteTask) -> SiteTask:
        """Give a task to sites until it is closed."""
        with self._changed:
            self._tasks.append(task)
        self._notify_sites()
        return task

    def add_sites(self, task: SiteTask, sites: set[str]) -> None:
        """Give an open task to more sites."""
        with self._changed:
            task.sites = (task.sites or set()) | sites
        self._notify_sites()

    def retry(self, task: SiteTask, site: str) -> None:
        """Let a site do an open task again."""
        with self._changed:
            task.done.discard(site)
        self._notify_sites()

    def close(self, task: SiteTask) -> None:
        """Give a task to no more sites.

        Sites that work on it may still answer.
        """
        with self._changed:
            task.close()
            if task in self._tasks:
                self._tasks.remove(task)
        delete_msg_root(task.key)
        self._tidy_up()

    def _notify_sites(self) -> None:
        """Notify waiting sites of a task open for them."""
        with self._changed:
            self._opened.notify_all()
            notified = [site for site in self._to_notify if not self._has_to_wait(site)]
            self._to_notify.difference_update(notified)
            directive = self._directive_for(notified)
        if notified:
            reply = wait_reply(directive)
            with self._engine.new_context() as context:
                self._engine.send_aux_request(notified, TOLD_TOPIC, reply, 0.0, context, optional=True)

    def wait(self, seconds: float) -> None:
        """Wait until a result arrives or a site is lost."""
        with self._changed:
            self._changed.wait(seconds)
        if self.tidy:
            gc.collect(1)  # the young generations only, which takes milliseconds
            trim_heap()

    def known(self) -> set[str]:
        """Return all sites that this process has heard of."""
        with self._changed:
            return set(self._heard)

    def is_welcome(self, site: str) -> bool:
        """Return whether a site takes part."""
        with self._changed:
            return site in self._heard and site not in self.banned

    def ban(self, sites: frozenset[str]) -> None:
        """Give these sites no tasks, and drop their results."""
        with self._changed:
            self.banned = sites
            self.lost.update(dict.fromkeys(sites & self._heard.keys(), REVOKED))
            self._changed.notify_all()

    def mark_silent(self) -> None:
        """Count silent sites as lost."""
        now = time.monotonic()
        with self._changed:
            silent = [s for s, at in self._heard.items() if now - at > _SILENT_SECONDS and s not in self.lost]
            reason = f"nothing was heard of it for {_SILENT_SECONDS:.0f} s"
            self.lost.update(dict.fromkeys(silent, reason))

    def process_task_request(self, client: Client, fl_ctx: FLContext) -> tuple[str, str, Shareable]:
        """Return a task for a site, or "try again"."""
        site = client.name
        with self._changed:
            # A site that asks is idle: a task that it was given before was lost with its process.
            for task_id in [t for t, (to, _) in self._in_work.items() if to == site]:
                del self._in_work[task_id]
            task = self._task_for(site)
            if task is None:
                return self._try_again()  # type: ignore[no-any-return]
            task_id = str(uuid.uuid4())
            self._in_work[task_id] = (site, task)
            make_request = task.make_request
        message = wire.to_shareable(make_request(site))
        message.set_header(ReservedHeaderKey.TASK_ID, task_id)
        message.set_header(ReservedHeaderKey.MSG_ROOT_ID, task.key)
        return task.name, task_id, message

    def _task_for(self, site: str) -> SiteTask | None:
        """Return the first open task for a site, if any.

        Banned sites get none.
        """
        return None if site in self.banned else next((task for task in self._tasks if task.is_for(site)), None)

    def process_submission(
        self, client: Client, task_name: str, task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Pass a result on to its task."""
        with self._changed:
            site, task = self._in_work.pop(task_id, ("", None))
            banned = client.name in self.banned
        if task is None or site != client.name or banned:
            self.log_warning(fl_ctx, f"dropped an answer of {client.name} to a task that it does not have")
            self._expect(client.name)
            return
        self._anchors.keep(site, wire.get_anchor(result), fl_ctx)
        task.on_result(site, wire.read_result(task.name, result), task)
        with self._changed:
            task.done.add(site)
            self._changed.notify_all()
        if len(self._heard) > _MOST_WAITING:
            self._expect(site)
        self._tidy_up()

    def _expect(self, site: str) -> None:
        """Notify a site once a task is open for it.

        The site need not ask.
        """
        with self._changed:
            self._to_notify.add(site)
            waits = self._has_to_wait(site)
        if not waits:
            self._notify_sites()

    def _tidy_up(self) -> None:
        if self.tidy:
            gc.collect()
            trim_heap()

    def process_task_check(self, task_id: str, fl_ctx: FLContext) -> Any:
        """Return something truthy where a task's result is still wanted."""
        with self._changed:
            in_work = self._in_work.get(task_id)
        if in_work is None:
            self._expect(fl_ctx.get_peer_context().get_identity_name())
        return in_work

    def handle_exception(self, task_id: str, fl_ctx: FLContext) -> None:
        """Take a task back that could not be sent."""
        with self._changed:
            self._in_work.pop(task_id, None)

    def process_dead_client_report(self, client_name: str, fl_ctx: FLContext) -> None:
        """Count a site as lost: its job process ended."""
        self.lose(client_name, "its job process ended")

    def lose(self, site: str, reason: str) -> None:
        """Count a site as lost until its next message."""
        with self._changed:
            self.lost.setdefault(site, reason)
            self._changed.notify_all()

    def client_is_active(self, client_name: str, reason: str, fl_ctx: FLContext) -> None:
        """Note that a site was heard of."""
        with self._changed:
            self._heard[client_name] = time.monotonic()
            if client_name not in self.banned and self.lost.pop(client_name, None) is not None:
                self._changed.notify_all()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Do nothing: FLARE's statistics count its own tasks only."""

    def check_tasks(self) -> None:
        """Do nothing: there are no tasks of FLARE's own kind."""

    def _wait(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Hold a site's request until it has a task."""
        del topic
        site = str(request.get_peer_prop(ReservedKey.IDENTITY_NAME, ""))
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        with self._changed:
            if site in self._asking:  # a site holds one of the server's threads: its earlier request ends
                self._opened.notify_all()
            own = self._asking[site] = object()
            self._heard[site] = time.monotonic()
            self._to_notify.discard(site)
            if self._has_to_wait(site) and len(self._heard) > _MOST_WAITING:
                self._to_notify.add(site)
                return wait_reply("wait", _pause(len(self._heard)))
            while self._has_to_wait(site):
                left = deadline - time.monotonic()
                if left <= 0 or self._asking.get(site) is not own:
                    return wait_reply("wait")
                self._opened.wait(left)
            return wait_reply(self._directive_for([site]))

    def _hold(self, site: str) -> bool:
        """Hold a site's request for a task; return whether it is still the site's latest.

        Sites fetch without asking before where a brief step is expected.
        """
        with self._changed:
            request = self._fetching[site] = object()
            if len(self._heard) <= _MOST_WAITING:
                self._opened.wait_for(lambda: not self._has_to_wait(site), _LONGEST_WAIT_SECONDS)
            return self._fetching[site] is request

    def _directive_for(self, sites: list[str]) -> Directive:
        """Return the directive for sites that need not wait."""
        if self._ended:
            return "over"
        tasks = [self._task_for(site) for site in sites]
        return "step" if all(task and task.brief for task in tasks) else "come"

    def _has_to_wait(self, site: str) -> bool:
        return not self._ended and self._task_for(site) is None


def _pause(sites: int) -> float:
    """Return seconds until a waiting site asks again."""
    return min(max(_SHORTEST_PAUSE_SECONDS, sites / _REQUESTS_A_SECOND), _LONGEST_PAUSE_SECONDS)
