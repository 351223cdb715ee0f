"""``oncofed predict --watch`` and ``--listen``: predict arriving images."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oncofed.cli.common import escape
from oncofed.cli.terminal import echo_json
from oncofed.errors import SpecError
from oncofed.loopback import is_loopback
from oncofed.prediction.watching.application_entity import (
    Address,
    ApplicationEntity,
    Notify,
    parse_address,
    parse_ae_title,
    parse_ae_titles,
    parse_application_entity,
)
from oncofed.processes import not_ignored

if TYPE_CHECKING:
    from oncofed.prediction.watching.journal import Journal
    from oncofed.prediction.watching.store_scu import SendQueue
    from oncofed.prediction.watching.watcher import FolderWatcher, ProcessItem, WatchCounts

INBOX = "inbox"  # of received images, in the folder of predictions
AE_TITLE = "ONCOFED"
SETTLE_SECONDS = 10.0
_PANEL = "Watching (for research only)"

WatchFolder = Annotated[
    Path | None,
    typer.Option(
        "--watch",
        rich_help_panel=_PANEL,
        help="Predict images that arrive in this folder, until Ctrl-C. Each file and each folder in it is one input; "
        "names that end in .part or .tmp wait until they are renamed.",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="[HOST:]PORT",
        rich_help_panel=_PANEL,
        help="Predict images sent by DICOM C-STORE to this port, until Ctrl-C. Without HOST, from this machine alone. "
        "Images are kept in inbox/ in --out.",
    ),
]
AETitle = Annotated[
    str, typer.Option("--ae-title", rich_help_panel=_PANEL, help="AE title of this receiver and sender.")
]
Callers = Annotated[
    str | None,
    typer.Option("--from", metavar="AE[,AE]", rich_help_panel=_PANEL, help="AE titles that may send."),
]
SendTo = Annotated[
    str | None,
    typer.Option(
        "--send-to",
        metavar="AE@HOST:PORT",
        rich_help_panel=_PANEL,
        help="Send each DICOM result there by C-STORE, until it is acknowledged.",
    ),
]
Settle = Annotated[
    float,
    typer.Option(
        "--settle", min=0.5, rich_help_panel=_PANEL, help="Seconds without a change after which an input is complete."
    ),
]
Once = Annotated[
    bool, typer.Option("--once", rich_help_panel=_PANEL, help="With --watch: end after the present inputs.")
]


@dataclass(frozen=True)
class Watching:
    """Options of a command that watches.

    Attributes:
        folder: to watch.
        listen: address to listen at; None: none.
        ae_title: of this machine.
        callers: AE titles that may send.
        send_to: receiver of the results; None: none.
        settle: seconds without a change after which an input is complete.
        once: end after the present inputs.
    """

    folder: Path
    listen: Address | None
    ae_title: str
    callers: tuple[str, ...]
    send_to: ApplicationEntity | None
    settle: float
    once: bool


def watching(
    out: Path,
    watch: Path | None,
    listen: str | None,
    ae_title: str,
    callers: str | None,
    send_to: str | None,
    settle: float,
    once: bool,
) -> Watching | None:
    """Return checked options; None without ``--watch`` and ``--listen``.

    Args:
        out: folder of the predictions.
        watch: folder.
        listen: address.
        ae_title: of this machine.
        callers: AE titles, separated by commas.
        send_to: peer.
        settle: seconds.
        once: end after the present inputs.

    Raises:
        SpecError: they do not fit together.
    """
    if watch is None and listen is None:
        given = {"--from": callers, "--send-to": send_to, "--once": once or None}
        idle = [option for option, value in given.items() if value is not None]
        if idle:
            raise SpecError(
                f"{' and '.join(idle)}: of use with --watch FOLDER or --listen PORT alone. Give one of them"
            )
        return None
    if watch is not None and listen is not None:
        raise SpecError("--watch and --listen: expected one of them. Start a second command, with another --out")
    if callers and listen is None:
        raise SpecError("--from: of use with --listen PORT alone. Give both, or neither")
    if listen is not None and not callers:
        raise SpecError("--listen: expected who may send, as --from AE[,AE]: the AE titles of the scanner or archive")
    if listen is not None and once:
        raise SpecError("--once: a port is listened to until Ctrl-C. Leave out --once, or --listen")
    if watch is not None and not watch.is_dir():
        raise SpecError(f"{watch}: no such folder. Expected one in which images arrive")
    folder = watch or out / INBOX
    if watch is not None and out.resolve().is_relative_to(watch.resolve()):
        raise SpecError(f"--out {out} lies in --watch {watch}: results would be watched too. Name a folder beside it")
    return Watching(
        folder,
        parse_address(listen, "--listen") if listen is not None else None,
        parse_ae_title(ae_title, "--ae-title"),
        tuple(parse_ae_titles(callers, "--from")) if callers else (),
        parse_application_entity(send_to, "--send-to") if send_to is not None else None,
        settle,
        once,
    )


def work_off(
    watched: Watching,
    out: Path,
    process_item: ProcessItem,
    console: Console,
    use: str,
    model: str | None = None,
    as_json: bool = False,
) -> int:
    """Predict arriving images until Ctrl-C, and return the exit status.

    Args:
        watched: options of the command.
        out: folder of the predictions.
        process_item: makes a result of what arrived.
        console: where events go, a line each.
        use: what the results may be used for, which is told first.
        model: its digest.
        as_json: print each event as a line of JSON to stdout instead.

    Raises:
        SpecError: another process works for the same folder, it holds results of another model, or pynetdicom is not
            installed.
    """
    from oncofed.prediction.watching.folder_scanner import FolderScanner
    from oncofed.prediction.watching.watcher import FolderWatcher, lock_output

    if watched.listen or watched.send_to:
        _require_network()
    notify = _json_teller() if as_json else _teller(console)
    with contextlib.ExitStack() as opened:
        opened.enter_context(lock_output(out))
        notify("research", use)
        if watched.listen:
            from oncofed.prediction.watching.inbox import Inbox
            from oncofed.prediction.watching.storage_scp import StorageSCP

            inbox = Inbox(watched.folder)
            opened.enter_context(StorageSCP(inbox, watched.listen, watched.ae_title, watched.callers, notify))
        if watched.send_to and not is_loopback(watched.send_to.address.host):
            notify("sending", f"results go to {watched.send_to}: what is sent there is not encrypted")
        send_queue = partial(_send_queue, out, watched, notify) if watched.send_to else None
        watch = FolderWatcher(
            FolderScanner(watched.folder, watched.settle),
            out,
            process_item,
            notify,
            make_send_queue=send_queue,
            model=model,
        )
        notify("watching", f"{watched.folder}, for results in {out}; Ctrl-C ends it")
        with _stopped_by_signals(watch, notify):
            counts = watch.run(watched.once)
        notify("ended", _summary(counts))
    return 1 if watched.once and (counts.failed or counts.unsent) else 0


def _send_queue(out: Path, watched: Watching, notify: Notify, journal: Journal) -> SendQueue:
    from oncofed.prediction.watching.store_scu import SendQueue

    assert watched.send_to is not None
    return SendQueue(out, journal, watched.send_to, watched.ae_title, notify)


def _require_network() -> None:
    try:
        import pynetdicom  # noqa: F401 - whether it is installed
    except ImportError:
        raise SpecError("--listen and --send-to need pynetdicom: pip install 'oncofed[dicom]'") from None


def _teller(console: Console) -> Notify:
    def notify(kind: str, text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {kind:<10}  {escape(text)}", soft_wrap=True)

    return notify


def _json_teller() -> Notify:
    def notify(kind: str, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        echo_json(json.dumps({"time": now, "event": kind, "text": text}, ensure_ascii=False))

    return notify


def _summary(counts: WatchCounts) -> str:
    unsent = f", {counts.unsent} files not sent yet: they are when it is started again" if counts.unsent else ""
    return f"{counts.done} done, {counts.failed} set aside{unsent}"


@contextlib.contextmanager
def _stopped_by_signals(watch: FolderWatcher, notify: Notify) -> Iterator[None]:
    """Stop a watch on Ctrl-C or SIGTERM.

    The first signal lets the current input finish, the second stops at once.

    Raises:
        typer.Exit: at once, with 130, a shell's status for an interrupted program.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        watch.stop()
        # The signal may come in the middle of a write to the same stream.
        with contextlib.suppress(RuntimeError):
            notify("ending", "after the input at hand; once more ends it now, and the input is begun anew next time")

    before = {
        number: signal.signal(number, stop) for number in not_ignored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except KeyboardInterrupt:
        notify("ended", "in the middle of an input, which is begun anew next time")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
