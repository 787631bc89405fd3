"""``wsi2d models``: the aggregators that a run can take, and their options."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="One of them: its options as well.")] = None,
    in_dim: Annotated[int, typer.Option(help="Width of a patch embedding, for which parameters are counted.")] = 1024,
    classes: Annotated[int, typer.Option(help="Classes (or time bins), likewise.")] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the aggregators: what they see of a slide, parameters, cost, source."""
    from json import dumps

    from wsi2d.cli.console import print_model, print_models
    from wsi2d.models.catalogue import describe_model, list_models

    if name is None:
        found = list_models(in_dim=in_dim, out_dim=classes)
    else:
        found = [describe_model(name, in_dim=in_dim, out_dim=classes)]
    if json:
        whole = {"in_dim": in_dim, "classes": classes, "models": [entry.to_dict() for entry in found]}
        typer.echo(dumps(whole, indent=2, ensure_ascii=False))
    elif name is None:
        print_models(found, in_dim, classes)
    else:
        print_model(found[0], in_dim, classes)
