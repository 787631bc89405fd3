"""``wsi2d export``: features in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Feature files, or folders of them.")],
    to: Annotated[str, typer.Option(help="The format: zarr, pt, geojson or trident.")],
    out: Annotated[Path, typer.Option(help="Folder of what is written.")],
    attention: Annotated[
        Path | None, typer.Option(help="geojson: a run, or a folder or file of its attention, to go with the patches.")
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="geojson: what patches become in QuPath, tile or annotation. (default: tile)")
    ] = None,
    coords: Annotated[
        bool, typer.Option("--coords", help="pt: a dict of features and coords, not the features alone.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write finished ones again too.")] = False,
) -> None:
    """Write features for other tools, a file a slide: Zarr, tensors, polygons for QuPath, TRIDENT's files.

    Finished ones are skipped. Feature files that fail are named, the others go on, and the exit code is 1.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.errors import FeatureStoreError
    from wsi2d.exports.export import export as run
    from wsi2d.exports.target import ExportOptions
    from wsi2d.features.listing import feature_files

    console.check_out(out, folder=True)
    options = ExportOptions(attention=attention, objects=objects, coords=coords or None)
    with console.progress_bars("slides") as bars:
        bar = bars.add_task("slides", total=len(feature_files(sources)), rate="")
        report = run(sources, out, to, options, overwrite=overwrite, progress=lambda _: bars.advance(bar))
    if report.failures and len(sources) == 1 and sources[0].is_file():
        raise FeatureStoreError(report.failures[0].error)
    counts = [f"{report.count('done')} done", f"{report.count('skipped')} already finished"]
    counts += [f"{report.count('failed')} failed"] * bool(report.failures)
    console.out.print(f"exported: {', '.join(counts)}, of {len(report.slides)} → {escape(str(out))}", soft_wrap=True)
    for failure in report.failures:
        console.err.print(f"[red]failed:[/] {escape(failure.error)}", soft_wrap=True)
    if report.failures:
        raise typer.Exit(1)
