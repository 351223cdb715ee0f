"""What commands and jobs need, imported once for all forks.

It is frozen: a fork that looked through it for garbage would have to copy it. A first fork is the fork server of the
jobs of all federations and simulations that tests start.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
import warnings

from oncofed.flare.runtime.forkserver_process import SPARE_PROCESS, serve
from oncofed.flare.runtime.preload import MODULES, import_all
from oncofed.lean_imports import import_monai_leanly
from oncofed.processes import name_process

import_monai_leanly()
gc.disable()
for name in ("oncofed.cli.main", "oncofed.job.run", "oncofed.job.remote", *MODULES):
    importlib.import_module(name)
gc.freeze()
gc.enable()

# The socket of that fork server's requests.
REQUESTS, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if not os.fork():
    REQUESTS.close()
    os.setsid()
    name_process(SPARE_PROCESS)
    # As a fork server of its own has it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    warnings.simplefilter("ignore")
    if not import_all():
        serve(_theirs)
    sys.exit()
_theirs.close()
