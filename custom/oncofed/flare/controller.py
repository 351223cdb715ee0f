"""The round loop as a FLARE controller on the server."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificate
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.utils.tensor_disk_offload_context import cleanup_tensor_disk_offload, setup_tensor_disk_offload
from nvflare.widgets.info_collector import InfoCollector

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.folder import sole_owner
from oncofed.errors import FederationError, OncofedError
from oncofed.flare import wire
from oncofed.flare.communicator import PullCommunicator
from oncofed.flare.folders import against_model, hand_over, initial_model, note_end, state_folder
from oncofed.flare.runtime.malloc import forget_what_stays
from oncofed.flare.secure_aggregation import verify_for_server
from oncofed.flare.security.recording import name_and_person
from oncofed.flare.security.revocation import list_and_root, read_revoked
from oncofed.flare.transfer.decomposer import SMALLEST_BYTES, begin_transfer, cell_tls_context, end_transfer
from oncofed.flare.transfer.server import TransferServer
from oncofed.privacy.outbound import progress_that_may_leave
from oncofed.rounds.events import EVENTS_FILE, STATS_GROUP, Dropped, Event, EventLog, Failed, SiteProgress, Stopped
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.rounds.sites import StoppedError
from oncofed.tasks.calibration import Calibration
from oncofed.training import Plan

_LARGE_MODEL = 32 << 20
# In models: an update takes two with the extra tensors that an algorithm may request.
_LARGEST_UPDATE = 3


class FederatedTraining(Controller):
    """Runs a ``RoundLoop`` in FLARE's job process.

    Args:
        plan: the job's ``Plan`` as a dictionary.
        federation: the job's ``FederationPlan`` as a dictionary.
        evaluate_only: score the job's model on every site's test cases without training.
        calibration: of that model, a ``Calibration`` as a dictionary; None where unknown.
        test: score the best model on test cases.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        federation: dict[str, Any],
        evaluate_only: bool = False,
        calibration: dict[str, Any] | None = None,
        test: bool = True,
    ) -> None:
        super().__init__()
        self._plan = Plan.model_validate(plan)
        self._federation = FederationPlan.model_validate(federation)
        self._evaluate_only, self._test = evaluate_only, test
        self._calibration = Calibration.model_validate(calibration) if calibration else None
        self._pull_communicator = PullCommunicator()
        self._held = contextlib.ExitStack()
        self._log: EventLog | None = None

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Use ``PullCommunicator`` instead of FLARE's own."""
        del communicator
        super().set_communicator(self._pull_communicator)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Open the run's record before the first round."""
        wire.register_tensors()
        folder = state_folder(fl_ctx)
        self._held.enter_context(sole_owner(folder))
        self._log = EventLog(folder / EVENTS_FILE)
        self._offload = setup_tensor_disk_offload(fl_ctx.get_engine(), True, str(fl_ctx.get_job_id()))

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Close the run's record, and hand it over to FLARE."""
        note_end(fl_ctx)
        if self._log:
            self._log.close()
        end_transfer(fl_ctx.get_engine().get_cell())
        cleanup_tensor_disk_offload(fl_ctx.get_engine(), self._offload)
        hand_over(fl_ctx)
        self._held.close()

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run all rounds, and record the reason of a failure."""
        try:
            with contextlib.closing(self._loop(abort_signal, fl_ctx)) as loop:
                loop.run()
        except StoppedError:
            self._record(Stopped())
        except (OncofedError, OSError) as error:
            reason = f"the server: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            self._record(Failed(reason=reason))
            self.system_panic(reason, fl_ctx)
        except Exception as error:
            self._record(Failed(reason=f"the server: {type(error).__name__}; its own log says more"))
            raise

    def _loop(self, abort_signal: Signal, fl_ctx: FLContext) -> RoundLoop:
        """Return the job's round loop."""
        engine = fl_ctx.get_engine()
        name, person = name_and_person(fl_ctx)
        return RoundLoop(
            plan=self._plan,
            federation=self._federation,
            transport=self._pull_communicator,
            folder=state_folder(fl_ctx),
            server=Server(
                record=self._record,
                sites=lambda: {client.name for client in engine.get_clients()},
                synchronize=partial(self._synchronize, fl_ctx),
                is_stopped=lambda: bool(abort_signal.triggered),
                free_memory=forget_what_stays,
                let_sites_fetch=partial(self._let_sites_fetch, fl_ctx),
                keys=Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()) / "startup",
                verify=verify_for_server(fl_ctx),
                job={"id": str(fl_ctx.get_job_id()), "job": name, "submitted_by": person},
            ),
            model=JobModel(self._plan, initial_model(fl_ctx), against_model(fl_ctx)),
            evaluate_only=self._evaluate_only,
            calibration=self._calibration,
            test=self._test,
        )

    def _let_sites_fetch(self, fl_ctx: FLContext, nbytes: int) -> None:
        """Let sites transfer large tensors outside FLARE's messages."""
        communicator = self._pull_communicator
        communicator.tidy = nbytes > _LARGE_MODEL
        cell = fl_ctx.get_engine().get_cell()
        context = cell_tls_context(cell, str(fl_ctx.get_job_id()), server=True)
        if context and nbytes >= SMALLEST_BYTES:
            largest = _LARGEST_UPDATE * nbytes + _LARGE_MODEL
            server = TransferServer(
                state_folder(fl_ctx), context, is_participant=communicator.is_welcome, max_bytes=largest
            )
            begin_transfer(cell, server)

    def _synchronize(self, fl_ctx: FLContext) -> None:
        """Fetch changes in revoked and registered sites.

        Only the server's main process knows of them.
        """
        self._keep_out_revoked(fl_ctx)
        sync = getattr(fl_ctx.get_engine(), "sync_clients_from_main_process", None)
        if sync:
            # It fails while the main process restarts, which soon ends this process.
            with contextlib.suppress(RuntimeError):
                sync()

    def _keep_out_revoked(self, fl_ctx: FLContext) -> None:
        """Ban sites that the alliance revoked.

        The server's main process reports an invalid list.
        """
        path, root = list_and_root(fl_ctx)
        if path.is_file() and root.is_file():
            with contextlib.suppress(FederationError, OSError):
                revoked = read_revoked(path, load_pem_x509_certificate(root.read_bytes()))
                self._pull_communicator.ban(revoked.names)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Record progress and lost sites; report the run's status."""
        if event_type == wire.PROGRESS_EVENT:
            self._record_progress(fl_ctx)
        elif event_type == InfoCollector.EVENT_TYPE_GET_STATS and self._log:
            collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
            collector.set_info(STATS_GROUP, {"events": self._log.digest()})
        elif event_type == EventType.CLIENT_DISCONNECTED:
            site = str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME))
            self._pull_communicator.lose(site, "its process ended")

    def _record_progress(self, fl_ctx: FLContext) -> None:
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        # The name comes from the site's certificate, not from the event.
        site = data.get_peer_prop(ReservedKey.IDENTITY_NAME, None) if isinstance(data, Shareable) else None
        if site is not None and site in self._pull_communicator.known():
            self._record(SiteProgress(site=site, **progress_that_may_leave(data)))

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop a result that nothing waits for."""
        self._record(Dropped(site=client.name, task=task_name))

    def _record(self, event: Event) -> None:
        if self._log:
            self._log.write(event)
