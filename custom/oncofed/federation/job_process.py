"""A job's process, ready before there is a job: it has imported what training needs, and waits to be told what to run.

``python -m oncofed.federation.job_process`` reads one line of JSON from its standard input (``order``), and then is the
process of FLARE that the line names. Neither the arguments nor FLARE's credentials can be read from the system's list
of processes. It ends when its standard input does before that line.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys

from oncofed.federation.heap import share_one_heap
from oncofed.federation.tunnel import use_proxy_of_environment
from oncofed.processes import JOB_PROCESS, name_process

# What the first round of any job needs; the rest takes milliseconds.
MODULES = (
    "oncofed.federation.controller",
    "oncofed.federation.executor",
    "nvflare.private.fed.app.client.worker_process",
    "nvflare.private.fed.app.server.runner_process",
    "torch._dynamo",  # the first optimizer imports it
)


def order(module: str, arguments: list[str], environment: dict[str, str]) -> bytes:
    """Return the line that tells a waiting process what to be.

    Args:
        module: of FLARE, to run as a program.
        arguments: of the program.
        environment: all of its environment variables.
    """
    line = {"module": module, "arguments": arguments, "environment": environment}
    return json.dumps(line).encode() + b"\n"


def main() -> None:
    """Get ready, wait, and run."""
    share_one_heap()
    name_process("oncofed spare")
    _import_all()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    told = json.loads(line)
    _close_input()
    name_process(JOB_PROCESS)
    become(**told)


def become(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run a module as the main program; what is imported stays."""
    os.environ.clear()
    os.environ.update(environment)
    use_proxy_of_environment()
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import_all() -> None:
    # Looking for garbage among what is being imported takes a fifth of the time and finds none.
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    # FLARE's own process learns of tensors with its job's classes, after it is connected: a site that sent its update
    # in that second, as happens when the process was started anew, would end it.
    from oncofed.federation.exchange import register_tensors  # noqa: PLC0415 - launchers import this module

    register_tensors()
    gc.freeze()
    gc.enable()


def _close_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)


if __name__ == "__main__":
    main()
