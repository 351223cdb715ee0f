"""The server's job process: FLARE's own, which can read tensors from its first message on.

FLARE's learns of tensors with its job's classes, after it is connected. A site that sends its update in that second,
as happens when the process was started anew, would end it.
"""

from __future__ import annotations

import runpy

from oncofed.federation.exchange import register_tensors

if __name__ == "__main__":
    register_tensors()
    runpy.run_module("nvflare.private.fed.app.server.runner_process", run_name="__main__", alter_sys=True)
