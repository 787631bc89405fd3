"""The ``wsi2d`` command. Verbs parse, call the library and print; each stands in a file of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated, NoReturn

import typer

from wsi2d.cli import (
    benchmark,
    compare,
    demo,
    doctor,
    encoders,
    evaluate,
    export,
    extract,
    heatmap,
    import_,
    inspect,
    models,
    predict,
    receptive_field,
    splits,
    tissue,
    train,
)

# Exit codes that are not the command's own: what typer makes of an interrupt, and a termination.
_STOPPED: dict[object, str] = {130: "interrupted", 143: "terminated"}
_asked: list[int] = []  # signals that asked the command to end

app = typer.Typer(
    name="wsi2d",
    help="Whole-slide images in, slide-level answers out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("tissue")(tissue.tissue)
app.command("extract")(extract.extract)
app.command("import")(import_.import_)
app.command("encoders")(encoders.encoders)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.add_typer(splits.app, name="splits")
app.command("models")(models.models)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("benchmark")(benchmark.benchmark)
app.command("predict")(predict.predict)
app.command("heatmap")(heatmap.heatmap)
app.command("receptive-field")(receptive_field.receptive_field)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from wsi2d import __version__

        typer.echo(f"wsi2d {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Whole-slide images in, slide-level answers out."""


def main() -> None:
    """Run the command line: errors that a user can mend end in one line and exit code 2."""
    from rich.markup import escape

    from wsi2d.cli.console import err, show_log
    from wsi2d.errors import Wsi2dError, one_line

    # Wherever it stands, so that it can be added at the end of a command that failed.
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    show_log()
    _end_on_request()
    try:
        app(arguments)
    except Exception as error:
        if _asked:  # compiled code, as pandas' reader of tables, may turn what a signal raises into an error of its own
            _stopped(128 + _asked[0])
        if debug or not isinstance(error, Wsi2dError | OSError | MemoryError):
            raise
        line = str(error)
        if isinstance(error, OSError):  # a folder that cannot be made, a full disk
            line = _refused(error)
        elif isinstance(error, MemoryError):
            line = one_line(f"out of memory ({line or 'no more is said'}); patches of a coarser mpp make smaller grids")
        err.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:  # before typer listens for it
        _stopped(130)
    except SystemExit as done:
        if done.code in _STOPPED:
            _stopped(int(str(done.code)))
        raise


def _stopped(code: int) -> NoReturn:
    """Say that the command was stopped, and end; whoever asks again after that, while it ends, is obeyed at once."""
    from wsi2d.cli.console import err

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    err.print(f"{_STOPPED[code]}; run the same command again to go on")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def _end_on_request() -> None:
    """A termination, as batch systems send it when time is up, ends the command as an interrupt does: what is half
    written is removed, and processes that were started end. A handler that someone else has set stays."""
    _asked.clear()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _ask_again


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    signal.default_int_handler(number, frame)


def _ask_again(lost: sys.UnraisableHookArgs) -> None:
    """An interrupt that came while Python was clearing up an object is lost to it: send it again."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
    if number is None:
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _refused(error: OSError) -> str:
    """What the file system refuses, as a line: where, what, the remedy."""
    from wsi2d.errors import one_line

    where = f"{error.filename}: " if error.filename is not None else ""
    what = error.strerror or str(error)
    return one_line(
        f"{where}cannot be read or written ({what}); check the path, who may use it, and the room on the disk"
    )


if __name__ == "__main__":
    main()
