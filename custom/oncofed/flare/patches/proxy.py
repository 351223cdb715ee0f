"""Connect FLARE through a hospital's proxy.

FLARE 2.9.0 opens its HTTP connections with aiohttp, which reads the proxy's environment variables only on request:
replaces ``ClientSession`` of ``aiohttp`` within its driver.
"""

from __future__ import annotations

import os
import types
from functools import partial

import aiohttp
from nvflare.fuel.f3.drivers import aio_http_driver

from oncofed.proxy import PROXY_VARIABLE


def use_proxy_of_environment() -> None:
    """Connect through the proxy that ``wss_proxy`` names, if set."""
    if not os.environ.get(PROXY_VARIABLE):
        return
    session = partial(aiohttp.ClientSession, trust_env=True)
    aio_http_driver.aiohttp = types.SimpleNamespace(**{**vars(aiohttp), "ClientSession": session})
