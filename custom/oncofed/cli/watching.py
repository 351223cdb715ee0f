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
from oncofed.prediction.watching.peers import Address, Peer, Tell, parse_address, parse_peer, parse_title, parse_titles
from oncofed.processes import not_ignored

if TYPE_CHECKING:
    from oncofed.prediction.watching.journal import Journal
    from oncofed.prediction.watching.sending import Outbox
    from oncofed.prediction.watching.watch import Handle, Tally, Watch

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
    send_to: Peer | None
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
        parse_title(ae_title, "--ae-title"),
        tuple(parse_titles(callers, "--from")) if callers else (),
        parse_peer(send_to, "--send-to") if send_to is not None else None,
        settle,
        once,
    )


def work_off(
    watched: Watching,
    out: Path,
    handle: Handle,
    console: Console,
    use: str,
    model: str | None = None,
    as_json: bool = False,
) -> int:
    """Predict arriving images until Ctrl-C, and return the exit status.

    Args:
        watched: options of the command.
        out: folder of the predictions.
        handle: makes the result of an input.
        console: for events, a line each.
        use: permitted use of the results, printed first.
        model: digest of the weights.
        as_json: print events as lines of JSON to stdout instead.

    Raises:
        SpecError: another process works for the same folder, it holds results of another model, or pynetdicom is not
            installed.
    """
    from oncofed.prediction.watching.arrivals import Arrivals
    from oncofed.prediction.watching.watch import Watch, alone

    if watched.listen or watched.send_to:
        _require_network()
    tell = _json_teller() if as_json else _teller(console)
    with contextlib.ExitStack() as opened:
        opened.enter_context(alone(out))
        tell("research", use)
        if watched.listen:
            from oncofed.prediction.watching.inbox import Inbox
            from oncofed.prediction.watching.receiver import Receiver

            inbox = Inbox(watched.folder)
            opened.enter_context(Receiver(inbox, watched.listen, watched.ae_title, watched.callers, tell))
        if watched.send_to and not is_loopback(watched.send_to.address.host):
            tell("sending", f"results go to {watched.send_to}: what is sent there is not encrypted")
        outbox = partial(_outbox, out, watched, tell) if watched.send_to else None
        watch = Watch(Arrivals(watched.folder, watched.settle), out, handle, tell, outbox, model)
        tell("watching", f"{watched.folder}, for results in {out}; Ctrl-C ends it")
        with _stopped_by_signals(watch, tell):
            tally = watch.run(watched.once)
        tell("ended", _summary(tally))
    return 1 if watched.once and (tally.failed or tally.unsent) else 0


def _outbox(out: Path, watched: Watching, tell: Tell, journal: Journal) -> Outbox:
    from oncofed.prediction.watching.sending import Outbox

    assert watched.send_to is not None
    return Outbox(out, journal, watched.send_to, watched.ae_title, tell)


def _require_network() -> None:
    try:
        import pynetdicom  # noqa: F401 - whether it is installed
    except ImportError:
        raise SpecError("--listen and --send-to need pynetdicom: pip install 'oncofed[dicom]'") from None


def _teller(console: Console) -> Tell:
    def tell(kind: str, text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {kind:<10}  {escape(text)}", soft_wrap=True)

    return tell


def _json_teller() -> Tell:
    def tell(kind: str, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        echo_json(json.dumps({"time": now, "event": kind, "text": text}, ensure_ascii=False))

    return tell


def _summary(tally: Tally) -> str:
    unsent = f", {tally.unsent} files not sent yet: they are when it is started again" if tally.unsent else ""
    return f"{tally.done} done, {tally.failed} set aside{unsent}"


@contextlib.contextmanager
def _stopped_by_signals(watch: Watch, tell: Tell) -> Iterator[None]:
    """End a watch after the present input on the first Ctrl-C or SIGTERM, at once on the second.

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
            tell("ending", "after the input at hand; once more ends it now, and the input is begun anew next time")

    before = {
        number: signal.signal(number, stop) for number in not_ignored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except KeyboardInterrupt:
        tell("ended", "in the middle of an input, which is begun anew next time")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
