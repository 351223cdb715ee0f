"""``oncofed predict --watch`` and ``--listen``: what arrives is predicted as it comes."""

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
from oncofed.processes import heeded

if TYPE_CHECKING:
    from oncofed.prediction.watching.journal import Journal
    from oncofed.prediction.watching.store_scu import SendQueue
    from oncofed.prediction.watching.watcher import FolderWatcher, ProcessItem, WatchCounts

INBOX = "inbox"  # in the folder of predictions, where images that are sent lie
AE_TITLE = "ONCOFED"
SETTLE_SECONDS = 10.0
_PANEL = "Watching (for research only)"

WatchFolder = Annotated[
    Path | None,
    typer.Option(
        "--watch",
        rich_help_panel=_PANEL,
        help="Predict what arrives in this folder, until Ctrl-C. Each file and each folder in it is one input; "
        "names that end in .part or .tmp wait until they are renamed.",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="[HOST:]PORT",
        rich_help_panel=_PANEL,
        help="Predict what is sent by DICOM C-STORE to this port, until Ctrl-C. Without HOST, from this machine alone. "
        "Images lie in inbox/ in --out.",
    ),
]
AETitle = Annotated[
    str, typer.Option("--ae-title", rich_help_panel=_PANEL, help="AE title of this receiver and sender.")
]
Callers = Annotated[
    str | None,
    typer.Option("--from", metavar="AE[,AE]", rich_help_panel=_PANEL, help="AE titles that may send; others may not."),
]
SendTo = Annotated[
    str | None,
    typer.Option(
        "--send-to",
        metavar="AE@HOST:PORT",
        rich_help_panel=_PANEL,
        help="Send each DICOM result there by C-STORE, again until it is acknowledged.",
    ),
]
Settle = Annotated[
    float,
    typer.Option(
        "--settle", min=0.5, rich_help_panel=_PANEL, help="Seconds without a change after which an input is whole."
    ),
]
Once = Annotated[
    bool, typer.Option("--once", rich_help_panel=_PANEL, help="With --watch: end when what is there is worked off.")
]


@dataclass(frozen=True)
class Watching:
    """What a command asks for.

    Attributes:
        folder: that is watched.
        listen: where to listen; None: nowhere.
        ae_title: of this machine.
        callers: AE titles of those who may send.
        send_to: who gets the results; None: nobody.
        settle: seconds after which what does not change is whole.
        once: end when what is there is worked off.
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
    """Return what the options ask for; None where nothing is to be watched.

    Args:
        out: folder of the predictions.
        watch: folder.
        listen: address.
        ae_title: of this machine.
        callers: AE titles, separated by commas.
        send_to: peer.
        settle: seconds.
        once: end when what is there is worked off.

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
    asked: Watching,
    out: Path,
    process_item: ProcessItem,
    console: Console,
    use: str,
    model: str | None = None,
    as_json: bool = False,
) -> int:
    """Work off what arrives until Ctrl-C, and return the command's exit status.

    Args:
        asked: by the command.
        out: folder of the predictions.
        process_item: makes a result of what arrived.
        console: where events go, a line each.
        use: what the results may be used for, which is told first.
        model: its digest.
        as_json: print each event as a line of JSON to stdout instead.

    Raises:
        SpecError: another process works for the same folder, it holds results of another model, or what is needed to
            send or receive is not installed.
    """
    from oncofed.prediction.watching.folder_scanner import FolderScanner
    from oncofed.prediction.watching.watcher import FolderWatcher, lock_output

    if asked.listen or asked.send_to:
        _require_network()
    notify = _json_teller() if as_json else _teller(console)
    with contextlib.ExitStack() as opened:
        opened.enter_context(lock_output(out))
        notify("research", use)
        if asked.listen:
            from oncofed.prediction.watching.inbox import Inbox
            from oncofed.prediction.watching.storage_scp import StorageSCP

            inbox = Inbox(asked.folder)
            opened.enter_context(StorageSCP(inbox, asked.listen, asked.ae_title, asked.callers, notify))
        if asked.send_to and not is_loopback(asked.send_to.address.host):
            notify("sending", f"results go to {asked.send_to}: what is sent there is not encrypted")
        send_queue = partial(_send_queue, out, asked, notify) if asked.send_to else None
        watch = FolderWatcher(
            FolderScanner(asked.folder, asked.settle),
            out,
            process_item,
            notify,
            make_send_queue=send_queue,
            model=model,
        )
        notify("watching", f"{asked.folder}, for results in {out}; Ctrl-C ends it")
        with _stopped_by_signals(watch, notify):
            counts = watch.run(asked.once)
        notify("ended", _summary(counts))
    return 1 if asked.once and (counts.failed or counts.unsent) else 0


def _send_queue(out: Path, asked: Watching, notify: Notify, journal: Journal) -> SendQueue:
    from oncofed.prediction.watching.store_scu import SendQueue

    assert asked.send_to is not None
    return SendQueue(out, journal, asked.send_to, asked.ae_title, notify)


def _require_network() -> None:
    try:
        import pynetdicom  # noqa: F401 - whether it is there
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
    """Let the first Ctrl-C or SIGTERM end a watch after the input at hand, and the second at once.

    Raises:
        typer.Exit: it ended at once; the status is a shell's for an interrupted program, 130.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        watch.stop()
        # A stream that is being written to at this very moment cannot be written to.
        with contextlib.suppress(RuntimeError):
            notify("ending", "after the input at hand; once more ends it now, and the input is begun anew next time")

    before = {number: signal.signal(number, stop) for number in heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        notify("ended", "in the middle of an input, which is begun anew next time")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
