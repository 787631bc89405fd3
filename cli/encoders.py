"""``wsi2d encoders``: what can stand behind ``--encoder``, and whether it can be used here."""

from __future__ import annotations

from typing import Annotated

import typer


def encoders(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List patch encoders by name: width, patches, licence, whether they are installed and their weights are here.

    No network is used. Besides these, --encoder takes timm:MODEL, hf:OWNER/NAME, the PATH of a folder or of a file of
    weights, and NAME=PATH for a named one whose weights lie there.
    """
    from dataclasses import asdict
    from json import dumps

    from rich.markup import escape
    from rich.table import Table

    from wsi2d.cli.console import out
    from wsi2d.features.encoders.status import list_encoders

    found = list_encoders()
    if json:
        typer.echo(dumps([asdict(e) for e in found], indent=2, ensure_ascii=False))
        return
    known = {True: "yes", False: "no", None: "?"}
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("encoder", "backend", "width", "px", "mpp", "licence", "gated", "package", "cached"):
        table.add_column(name, overflow="fold", no_wrap=name != "licence")
    for e in found:
        patches = ("any", "any") if e.patch_px is None else (str(e.patch_px), f"{e.mpp:g}")
        state = (known[v] for v in (e.gated, e.installed, e.cached))
        table.add_row(*map(escape, (e.name, e.backend, str(e.width), *patches, e.licence, *state)))
    out.print(table)
    out.print("px, mpp: the patches it was made for. package: whether the backend imports. cached: weights are here.")
    for e in found:
        if e.remedy:
            out.print(f"[bold]{escape(e.name)}[/]: {escape(e.remedy)}", soft_wrap=True)
