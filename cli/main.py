"""The ``wsi2d`` command. Verbs parse, call the library and print; each stands in a file of its own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wsi2d.cli import demo, evaluate, extract, heatmap, predict, splits, train

app = typer.Typer(
    name="wsi2d",
    help="Whole-slide images in, slide-level answers out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("extract")(extract.extract)
app.add_typer(splits.app, name="splits")
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("heatmap")(heatmap.heatmap)
app.command("demo")(demo.demo)


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
    from wsi2d.errors import Wsi2dError

    # Wherever it stands, so that it can be added at the end of a command that failed.
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    show_log()
    try:
        app(arguments)
    except (Wsi2dError, OSError) as error:  # OSError: a folder that cannot be made, a full disk; it names the file
        if debug:
            raise
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as done:
        if done.code == 130:  # what typer makes of an interrupt
            err.print("interrupted; run the same command again to go on")
        raise


if __name__ == "__main__":
    main()
