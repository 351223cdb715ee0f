"""Where sites ask the server what to do, and hand in what they did."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.fuel.utils.msg_root_utils import delete_msg_root

from oncofed.flare.runtime.malloc import trim_heap
from oncofed.flare.security.recording import keep_anchor
from oncofed.flare.wire import TOLD_TOPIC, WAIT_TOPIC, Directive, wait_reply

# Nothing was heard of a site for so long: FLARE's job processes send a heartbeat every ten seconds.
_SILENT_SECONDS = 30.0
# A site's question "is there something to do?" is answered after this long at the latest.
_LONGEST_WAIT_SECONDS = 2.5
# Each waiting question holds one of the server's threads. More sites than this are sent a message instead, and ask
# only in case that it was lost: together so often, but each after so long at the soonest and at the latest.
_MOST_WAITING = 16
_QUESTIONS_A_SECOND = 3.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 6.0, 20.0


@dataclass
class SiteTask:
    """One task for some sites.

    Attributes:
        task: its name.
        number: of the round.
        sites: who is asked; None: whoever comes.
        message: makes the message to one site.
        answered: called once for each answer, with the site and what it sent; true where it counts.
        again: a site that answered may be asked again.
    """

    task: str
    number: int
    sites: set[str] | None
    message: Callable[[str], Shareable]
    answered: Callable[[str, Shareable, SiteTask], None]
    again: bool = False
    closed: bool = False
    done: set[str] = field(default_factory=set)
    root: str = field(default_factory=lambda: str(uuid.uuid4()))

    def is_for(self, site: str) -> bool:
        """Return whether this site is to be asked now."""
        if self.closed or (self.sites is not None and site not in self.sites):
            return False
        return self.again or site not in self.done


def _nothing(site: str) -> Shareable:
    del site
    return Shareable()


class PullCommunicator(WFCommServer):
    """Gives each site that asks the question that stands for it, and takes answers whenever they come.

    FLARE's own communicator sends a task to all sites, and forgets one that was given to a process which died. Here the
    site asks, so that one which comes late, or comes back, is simply given what stands now; an answer to a question
    that was closed meanwhile still reaches who asked it.

    Attributes:
        lost: why a site is not there, by name.
        tidy: whether messages are large: FLARE's hold each other in circles, and with them the model that they carry,
            until Python looks for such circles. Then it does so after each answer, and for young ones twice a second.
    """

    def __init__(self) -> None:
        super().__init__()
        lock = threading.RLock()
        # Answers wake the rounds alone, new questions the sites alone: most threads that wait here are sites.
        self._changed, self._asked = threading.Condition(lock), threading.Condition(lock)
        self._questions: list[SiteTask] = []
        self._given: dict[str, tuple[str, SiteTask]] = {}
        self._heard: dict[str, float] = {}
        self._to_tell: set[str] = set()
        self._ended = False
        self.lost: dict[str, str] = {}
        self._banned: frozenset[str] = frozenset()
        self.tidy = False

    def initialize_run(self, fl_ctx: FLContext) -> None:
        """Begin to take questions; unlike FLARE's, without a thread that ends the job when sites are gone."""
        engine = fl_ctx.get_engine()
        self._engine = engine
        engine.register_aux_message_handler(topic=WAIT_TOPIC, message_handle_func=self._wait)

    def finalize_run(self, fl_ctx: FLContext) -> None:
        """Let every site go."""
        with self._changed:
            for question in list(self._questions):
                self.close(question)
            self._given.clear()
            self._ended = True
        self._call()

    def ask(self, question: SiteTask) -> SiteTask:
        """Let a question stand until it is closed; the first that fits a site is the one it gets."""
        with self._changed:
            self._questions.append(question)
        self._call()
        return question

    def include(self, question: SiteTask, sites: set[str]) -> None:
        """Ask more sites."""
        with self._changed:
            question.sites = (question.sites or set()) | sites
        self._call()

    def reopen(self, question: SiteTask, site: str) -> None:
        """Ask a site again that has answered."""
        with self._changed:
            question.done.discard(site)
        self._call()

    def close(self, question: SiteTask) -> None:
        """Ask nobody else. Who works on it may still answer."""
        with self._changed:
            question.closed = True
            question.message = _nothing  # lets go of the model that it holds
            if question in self._questions:
                self._questions.remove(question)
        delete_msg_root(question.root)
        self._tidy_up()

    def _call(self) -> None:
        """Let the sites know that wait for something to do."""
        with self._changed:
            self._asked.notify_all()
            told = [site for site in self._to_tell if not self._is_to_wait(site)]
            self._to_tell.difference_update(told)
        if told:
            with self._engine.new_context() as context:
                self._engine.send_aux_request(told, TOLD_TOPIC, wait_reply(self._word), 0.0, context, optional=True)

    def wait(self, seconds: float) -> None:
        """Wait until an answer came or a site was lost, at most so long."""
        with self._changed:
            self._changed.wait(seconds)
        if self.tidy:
            gc.collect(1)  # young ones alone, which takes milliseconds
            trim_heap()

    def known(self) -> set[str]:
        """Return the sites that were heard of."""
        with self._changed:
            return set(self._heard)

    def is_welcome(self, site: str) -> bool:
        """Return whether a site takes part."""
        with self._changed:
            return site in self._heard and site not in self._banned

    def ban(self, sites: frozenset[str]) -> None:
        """Give these sites nothing to do, and take nothing from them, from now on."""
        with self._changed:
            self._banned = sites
            self.lost.update(dict.fromkeys(sites & self._heard.keys(), "revoked by the alliance"))
            self._changed.notify_all()

    def mark_silent(self) -> None:
        """Count sites of which nothing was heard for long as lost."""
        now = time.monotonic()
        with self._changed:
            silent = [s for s, at in self._heard.items() if now - at > _SILENT_SECONDS and s not in self.lost]
            reason = f"nothing was heard of it for {_SILENT_SECONDS:.0f} s"
            self.lost.update(dict.fromkeys(silent, reason))

    def process_task_request(self, client: Client, fl_ctx: FLContext) -> tuple[str, str, Shareable]:
        """Answer a site's "what shall I do?" with a question, or with "try again"."""
        site = client.name
        with self._changed:
            # Who asks has nothing in hand: a task that was given to it before went down with its process.
            for task_id in [t for t, (to, _) in self._given.items() if to == site]:
                del self._given[task_id]
            question = self._question_for(site)
            if question is None:
                return self._try_again()  # type: ignore[no-any-return]
            task_id = str(uuid.uuid4())
            self._given[task_id] = (site, question)
            make = question.message
        message = make(site)
        message.set_header(ReservedHeaderKey.TASK_ID, task_id)
        message.set_header(ReservedHeaderKey.MSG_ROOT_ID, question.root)
        return question.task, task_id, message

    def _question_for(self, site: str) -> SiteTask | None:
        """Return the question that stands for a site; None where there is none, or it was shut out."""
        return None if site in self._banned else next((q for q in self._questions if q.is_for(site)), None)

    def process_submission(
        self, client: Client, task_name: str, task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Hand an answer to who asked."""
        with self._changed:
            site, question = self._given.pop(task_id, ("", None))
            banned = client.name in self._banned
        if question is None or site != client.name or banned:
            self.log_warning(fl_ctx, f"dropped an answer of {client.name} to a task that it does not have")
            self._expect(client.name)
            return
        keep_anchor(site, result, fl_ctx)
        question.answered(site, result, question)
        with self._changed:
            question.done.add(site)
            self._changed.notify_all()
        if len(self._heard) > _MOST_WAITING:
            self._expect(site)
        self._tidy_up()

    def _expect(self, site: str) -> None:
        """Let a site that handed in its answer know as soon as there is something to do, without its asking."""
        with self._changed:
            self._to_tell.add(site)
            waits = self._is_to_wait(site)
        if not waits:
            self._call()

    def _tidy_up(self) -> None:
        if self.tidy:
            gc.collect()
            trim_heap()

    def process_task_check(self, task_id: str, fl_ctx: FLContext) -> Any:
        """Return what is truthy where an answer to a task is still wanted, late or not."""
        with self._changed:
            given = self._given.get(task_id)
        if given is None:
            self._expect(fl_ctx.get_peer_context().get_identity_name())
        return given

    def handle_exception(self, task_id: str, fl_ctx: FLContext) -> None:
        """Take a task back that could not be sent."""
        with self._changed:
            self._given.pop(task_id, None)

    def process_dead_client_report(self, client_name: str, fl_ctx: FLContext) -> None:
        """Note that a site's job process ended; it counts as lost until it is heard of again."""
        self.lose(client_name, "its job process ended")

    def lose(self, site: str, reason: str) -> None:
        """Note that a site is not there."""
        with self._changed:
            self.lost.setdefault(site, reason)
            self._changed.notify_all()

    def client_is_active(self, client_name: str, reason: str, fl_ctx: FLContext) -> None:
        """Note that a site is there."""
        with self._changed:
            self._heard[client_name] = time.monotonic()
            if client_name not in self._banned and self.lost.pop(client_name, None) is not None:
                self._changed.notify_all()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Do nothing: FLARE's statistics are of tasks of its own kind."""

    def check_tasks(self) -> None:
        """Do nothing: there are no tasks of FLARE's own kind."""

    def _wait(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Hold a site's question until there is something for it to do, so that it need not ask again and again."""
        del topic
        site = str(request.get_peer_prop(ReservedKey.IDENTITY_NAME, ""))
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        with self._changed:
            self._heard[site] = time.monotonic()
            self._to_tell.discard(site)
            if self._is_to_wait(site) and len(self._heard) > _MOST_WAITING:
                self._to_tell.add(site)
                return wait_reply("wait", _pause(len(self._heard)))
            while self._is_to_wait(site):
                left = deadline - time.monotonic()
                if left <= 0:
                    return wait_reply("wait")
                self._asked.wait(left)
            return wait_reply(self._word)

    @property
    def _word(self) -> Directive:
        """What a site is told that need not wait."""
        return "over" if self._ended else "come"

    def _is_to_wait(self, site: str) -> bool:
        return not self._ended and self._question_for(site) is None


def _pause(sites: int) -> float:
    """Return after how many seconds each of so many sites that wait asks again."""
    return min(max(_SHORTEST_PAUSE_SECONDS, sites / _QUESTIONS_A_SECOND), _LONGEST_PAUSE_SECONDS)
