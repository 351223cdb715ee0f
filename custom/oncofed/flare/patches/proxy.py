"""FLARE's processes through a hospital's proxy."""

from __future__ import annotations

import os
import types
from functools import partial

import aiohttp
from nvflare.fuel.f3.drivers import aio_http_driver

from oncofed.proxy import PROXY_VARIABLE


def use_proxy_of_environment() -> None:
    """Let FLARE's connections go through the proxy that ``wss_proxy`` names, where it names one.

    FLARE's driver opens them with aiohttp, which looks at the environment where it is asked to, and is not.
    """
    if not os.environ.get(PROXY_VARIABLE):
        return
    session = partial(aiohttp.ClientSession, trust_env=True)
    aio_http_driver.aiohttp = types.SimpleNamespace(**{**vars(aiohttp), "ClientSession": session})
