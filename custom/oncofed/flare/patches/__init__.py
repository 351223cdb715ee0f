"""All run-time changes to FLARE, one module each.

``PATCHES`` lists what each replaces, and digests of the FLARE code that it was written against. A test compares them
with the installed FLARE: an upgrade that changes such code names the patches to review.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A change to FLARE; its module gives the reason.

    Attributes:
        flare: version of FLARE that it was written for.
        replaces: attributes that are set, each with its module or class.
        code: ``source_digest`` of the FLARE code that is replaced or uses the replaced attribute, by ``module:name``.
    """

    flare: str
    replaces: frozenset[str]
    code: Mapping[str, str]


def source_digest(name: str) -> str:
    """Return a digest of the source of ``module:name``.

    Comments, blank lines and indentation do not count.

    Raises:
        AttributeError, ImportError: FLARE no longer has it.
    """
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    lines = textwrap.dedent(inspect.getsource(found)).splitlines()
    code = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


PATCHES = {
    "aux_senders": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.private.fed.client.command_agent.CommandAgent._aux_communication",
                "nvflare.private.fed.server.server_command_agent.ServerCommandAgent._aux_communicate",
            }
        ),
        code={
            "nvflare.private.fed.authenticator:validate_auth_headers": "3231e4cfe7f6",
            "nvflare.private.fed.client.command_agent:CommandAgent._aux_communication": "f5c11b8bbb06",
            "nvflare.private.fed.server.fed_server:FederatedServer._strip_peer_transit_headers": "abe91401251c",
            "nvflare.private.fed.server.server_command_agent:ServerCommandAgent._aux_communicate": "7bbac10f5aaf",
        },
    ),
    "authorization": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.fuel.sec.authz.AuthorizationService.the_authorizer"}),
        code={
            "nvflare.fuel.sec.authz:AuthorizationService": "c5479aee243a",
            "nvflare.fuel.sec.authz:Authorizer": "4d1140e1d26a",
        },
    ),
    "client_admission": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.private.fed.server.client_manager.ClientManager.authenticate",
                "nvflare.private.fed.server.client_manager.ClientManager.heartbeat",
            }
        ),
        code={
            "nvflare.private.fed.server.client_manager:ClientManager.authenticate": "5be03e083cba",
            "nvflare.private.fed.server.client_manager:ClientManager.heartbeat": "916d470a61c5",
            "nvflare.private.fed.server.fed_server:FederatedServer.register_client": "badb1bb35fb5",
            "nvflare.private.fed.server.fed_server:FederatedServer.client_heartbeat": "1356ae23d536",
        },
    ),
    "held_requests": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.private.fed.server.server_runner.ServerRunner.process_task_request"}),
        code={
            "nvflare.private.fed.server.server_runner:ServerRunner.process_task_request": "eb8a13db4158",
            "nvflare.private.fed.server.server_runner:ServerRunner._task_try_again": "5fb1d7254669",
            "nvflare.private.fed.server.server_commands:GetTaskCommand.process": "5a120d2b11f3",
        },
    ),
    "job_validation": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.private.fed.server.job_meta_validator.JobMetaValidator.validate"}),
        code={
            "nvflare.private.fed.server.job_meta_validator:JobMetaValidator.validate": "40238b40039d",
            "nvflare.private.fed.server.job_cmds:JobCommandModule.submit_job": "1c247dae9581",
        },
    ),
    "listening_port": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.fuel.f3.drivers.aio_http_driver.web"}),
        code={
            "nvflare.fuel.f3.drivers.aio_http_driver:AioHttpDriver.listen": "9d0fbe8e8d9d",
            "nvflare.fuel.f3.drivers.aio_http_driver:AioHttpDriver._async_shutdown": "4742827c8672",
        },
    ),
    "loggers": Patch(
        flare="2.9.0",
        replaces=frozenset({"inspect.stack"}),
        code={
            "nvflare.fuel.utils.log_utils:get_module_logger": "10a8dbd549ca",
            "nvflare.fuel.utils.log_utils:get_script_logger": "a7786103e25f",
        },
    ),
    "own_loopback": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "socket.getaddrinfo",
                "multiprocessing.connection.Listener",
                "nvflare.fuel.f3.drivers.tcp_driver.socket",
                "nvflare.fuel.f3.drivers.tcp_driver.TcpStreamServer.address_family",
                "nvflare.fuel.f3.drivers.tcp_driver.TcpStreamServer.server_bind",
                "nvflare.private.fed.app.simulator.simulator_runner.Client",
            }
        ),
        code={
            "nvflare.fuel.f3.drivers.tcp_driver:TcpStreamServer": "74bf08c283c4",
            "nvflare.fuel.f3.drivers.tcp_driver:TcpDriver.connect": "d06a5a9f0832",
            "nvflare.private.fed.app.simulator.simulator_runner:SimulatorClientRunner": "96ef5d62cbda",
            "nvflare.private.fed.app.simulator.simulator_worker:_create_connection": "bfe7132c83c7",
        },
    ),
    "parent_pid": Patch(
        flare="2.9.0",
        replaces=frozenset({"os.getppid"}),
        code={
            "nvflare.private.fed.app.client.worker_process:main": "aa7485d637ea",
            "nvflare.private.fed.app.server.runner_process:main": "74994b5e06b1",
        },
    ),
    "parent_watch": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.private.fed.app.utils.check_parent_alive",
                "nvflare.private.fed.client.client_app_runner.ClientAppRunner.notify_job_status",
                "nvflare.private.fed.client.client_app_runner.ClientAppRunner.stop",
            }
        ),
        code={
            "nvflare.private.fed.app.utils:check_parent_alive": "f3aaee26de01",
            "nvflare.private.fed.app.utils:monitor_parent_process": "a6d3e7cfbc88",
            "nvflare.private.fed.client.client_app_runner:ClientAppRunner.start_run": "25b7304a692d",
            "nvflare.private.fed.client.client_app_runner:ClientAppRunner.notify_job_status": "ff249fdf1b76",
            "nvflare.private.fed.client.client_app_runner:ClientAppRunner.stop": "26aae4c3ff54",
        },
    ),
    "prompt_results": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.private.fed.client.client_runner.ClientRunner._try_send_result_once"}),
        code={
            "nvflare.private.fed.client.client_runner:ClientRunner._try_send_result_once": "a1ca23b17191",
            "nvflare.private.fed.client.client_runner:ClientRunner._send_task_result": "ab31be389c52",
            "nvflare.private.fed.client.client_run_manager:ClientRunManager.send_task_result": "84b4137d0101",
        },
    ),
    "proxy": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.fuel.f3.drivers.aio_http_driver.aiohttp"}),
        code={"nvflare.fuel.f3.drivers.aio_http_driver:AioHttpDriver.connect": "24fcd238f8ce"},
    ),
    "runner_timeouts": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.private.fed.client.client_runner.ClientRunner.get_task_timeout",
                "nvflare.private.fed.client.client_runner.ClientRunner.submit_task_result_timeout",
            }
        ),
        code={
            "nvflare.private.fed.client.client_runner:ClientRunner.__init__": "8040e382a3be",
            "nvflare.private.fed.client.client_runner:ClientRunner.fetch_and_run_one_task": "0a5e98441856",
            "nvflare.private.fed.client.client_runner:ClientRunner._try_send_result_once": "a1ca23b17191",
        },
    ),
    "simulator_sites": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.private.fed.app.simulator.simulator_runner.SimulatorClientRunner",
                "nvflare.private.fed.app.simulator.simulator_runner.get_open_ports",
                "nvflare.private.fed.app.simulator.simulator_runner.subprocess",
            }
        ),
        code={
            "nvflare.private.fed.app.simulator.simulator_runner:SimulatorClientRunner": "96ef5d62cbda",
            "nvflare.private.fed.app.simulator.simulator_worker:main": "0780f9581a62",
        },
    ),
    "stream_numbers": Patch(
        flare="2.9.0",
        replaces=frozenset({"nvflare.fuel.f3.streaming.stream_utils.sid_base"}),
        code={"nvflare.fuel.f3.streaming.stream_utils:gen_stream_id": "53c9d4a01184"},
    ),
    "streams": Patch(
        flare="2.9.0",
        replaces=frozenset(
            {
                "nvflare.fuel.f3.streaming.byte_streamer.TxTask",
                "nvflare.fuel.f3.streaming.byte_streamer.reliable_retry_scheduler.__class__",
                "nvflare.fuel.f3.streaming.byte_streamer.reliable_retry_scheduler.over",
                "nvflare.fuel.utils.buffer_list.ConsumableBufferList.__repr__",
            }
        ),
        code={
            "nvflare.fuel.f3.streaming.byte_streamer:ReliableRetryScheduler": "73115e41a572",
            "nvflare.fuel.f3.streaming.byte_streamer:TxTask": "4fec0d41c39a",
            "nvflare.fuel.utils.buffer_list:ConsumableBufferList": "3a72f255775b",
        },
    ),
}
