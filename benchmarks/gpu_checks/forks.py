"""Runs functions in forks with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from oncofed.processes import end_with_parent

_SECONDS_BETWEEN_LOOKS = 0.02
_LONGEST_ERROR = 400


@dataclass(frozen=True)
class Ended:
    """End of a fork.

    Attributes:
        value: what its function returned, as JSON has it; None where there is an error.
        error: the exception, the signal, or that it was killed at its limit; empty where the function returned.
        timed_out: it was killed at its limit.
    """

    value: Any = None
    error: str = ""
    timed_out: bool = False


class Fork:
    """A function that runs in a fork of this process.

    The fork ends when this process ends, even by SIGKILL.

    Args:
        function: what it returns must be JSON.
        own_group: the fork leads a new process group, which ``end`` kills as a whole.
    """

    def __init__(self, function: Callable[[], Any], own_group: bool = False) -> None:
        self._own_group = own_group
        self._answer = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by end
        self._status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function)
        if own_group:
            # Both processes do it: whichever comes first, the group is there when it is needed.
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float) -> Ended:
        """Wait for the end, and return how it ended.

        At the limit the fork is killed.
        """
        until = time.monotonic() + seconds
        try:
            while not self._has_ended():
                if time.monotonic() > until:
                    return Ended(error=f"not done after {seconds:.0f} s: killed", timed_out=True)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            return self._ended()
        finally:
            self.end()

    def end(self) -> None:
        """Kill the fork, or the group that it leads."""
        if self._status is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The fork was not waited for yet, so its process id is not reused.
            os.killpg(self.pid, signal.SIGKILL) if self._own_group else os.kill(self.pid, signal.SIGKILL)
        self._status = os.waitpid(self.pid, 0)[1]
        self._answer.close()

    def _has_ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        self._info = os.waitid(os.P_PID, self.pid, options)
        return self._info is not None

    def _ended(self) -> Ended:
        assert self._info is not None
        if self._info.si_code != os.CLD_EXITED:
            return Ended(error=f"ended by signal {signal.Signals(self._info.si_status).name}")
        self._answer.seek(0)
        told = self._answer.read()
        if not told:
            return Ended(error=f"ended with exit status {self._info.si_status} and said nothing")
        return Ended(**json.loads(told))

    def _run(self, function: Callable[[], Any]) -> NoReturn:
        ended: dict[str, Any]
        status = 1
        try:
            if self._own_group:
                os.setpgid(0, 0)
            end_with_parent()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ended = {"value": function()}
            status = 0
        except BaseException as error:  # noqa: BLE001 - any error is reported to the other process
            traceback.print_exc()
            ended = {"error": told_of(error)}
        try:
            self._answer.write(json.dumps(ended, default=str))
            self._answer.flush()
            sys.stdout.flush()
        finally:
            os._exit(status)


def told_of(error: BaseException) -> str:
    """Return an exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_ERROR]
