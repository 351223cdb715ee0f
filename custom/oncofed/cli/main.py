"""``oncofed``: entry point and common options."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from oncofed import __version__
from oncofed.cli import alliance, bench, data, demo, evaluate, export, job, new, predict, report, site
from oncofed.cli.common import fail, options
from oncofed.cli.terminal import fit_output
from oncofed.errors import OncofedError
from oncofed.lean_imports import import_monai_leanly

_NETWORK = frozenset(
    {
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)

app = typer.Typer(
    help="Federated training for medical imaging: MONAI models, NVIDIA FLARE federations, images stay at their sites.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 the work failed, 2 wrong usage, 3 refused by a policy or a check. Without a "
    "terminal, tables are printed as one line a row, with tabs between cells; --json is for programs.",
)
app.add_typer(job.app, name="job")
app.add_typer(data.app, name="data")
app.add_typer(alliance.app, name="alliance")
app.add_typer(site.app, name="site")
app.add_typer(report.app, name="report")
app.add_typer(new.app, name="new")
bench.add_to(app)
app.command("demo")(demo.demo)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"oncofed {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated training for medical imaging."""
    options.debug = debug


def main() -> None:
    """Run a command; print an expected error as one message."""
    fit_output()
    import_monai_leanly()
    try:
        app()
    except OncofedError as error:
        if options.debug:
            raise
        sys.exit(fail(error))
    except OSError as error:
        if options.debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(fail(OncofedError(f"{where}{error.strerror or error}. {_advice(error)}")))


def _advice(error: OSError) -> str:
    if error.errno in _NETWORK or isinstance(error, ConnectionError):
        return "Expected a network on which this machine reaches itself and the server; see: oncofed site doctor"
    if error.errno == errno.ENOLCK:
        return "Expected a folder in which files can be locked: name one on a disk of this machine."
    return "Expected a folder that can be written to and has space; name another with --workspace or --out."


if __name__ == "__main__":
    main()
