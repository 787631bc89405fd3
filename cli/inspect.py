"""``wsi2d inspect``: what feature files hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi2d.features.inspection import Inspection, Survey
    from wsi2d.slides.patching import GridGeometry

_PICTURE_LINES = 30


def inspect(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Feature files, or folders of them.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read the features of several files too, which one file's are always.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show where features come from, how the slide was cut, what is odd about the numbers, and the grid.

    Of several files, a line each, and in what they differ. Files that cannot be read are named, and the exit code is 1.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.errors import FeatureStoreError
    from wsi2d.features.inspection import inspect_features

    survey = inspect_features(sources, values=values or None)
    alone = len(sources) == 1 and sources[0].is_file()
    if alone and survey.failures:
        raise FeatureStoreError(survey.failures[0][1])
    if json:
        typer.echo(survey.to_json(), nl=False)
    elif alone:
        _print_file(survey.files[0])
    elif survey.files:
        _print_survey(survey)
    for _, error in survey.failures:
        console.err.print(f"[red]failed:[/] {escape(error)}", soft_wrap=True)
    if survey.failures:
        raise typer.Exit(1)


def _print_file(file: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from wsi2d.cli import console
    from wsi2d.errors import one_line
    from wsi2d.explain.text_picture import text_picture

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, said in _about(file):
        words = escape(one_line(said))  # a stranger's file may hold a terminal's commands
        table.add_row(escape(one_line(topic)), f"[red]{words}[/]" if topic == "odd" else words)
    parts: list[Table | Text] = [table]
    if file.index is not None:
        grid = file.header.geometry
        picture = text_picture(
            file.index, grid.shape,
            columns=console.out.width, lines=_PICTURE_LINES, unicode=console.can_print("█▀▄⣿┌┐└┘│─"),
        )  # fmt: skip
        parts.append(Text("\n".join(picture.lines), no_wrap=True, overflow="crop"))
        if picture.cells > 1:
            parts.append(Text(f"a mark is {picture.cells} × {picture.cells} cells"))
    console.print_anywhere(*parts)


def _about(file: Inspection) -> Iterator[tuple[str, str]]:
    """What is told of one file, by topic."""
    from wsi2d.cli.console import size_text
    from wsi2d.features.store import SCHEMA

    header, grid, made = file.header, file.header.geometry, file.header.provenance
    by = f", written by wsi2d {file.version}" if file.version else ""
    yield "file", f"{file.path}, {size_text(file.size)}, schema {SCHEMA}{by}"
    size = f"{made.level0_width} × {made.level0_height} px of {_known(made.slide_mpp, '.4g')} µm ({made.mpp_source})"
    yield "slide", f"{made.slide_id}, {size}"
    yield "encoder", f"{_known(made.encoder)}, fingerprint {_known(made.encoder_hash)}"
    if made.imported is not None:
        counts = ", ".join(f"{name} {count}" for name, count in made.imported.counts.items() if count)
        yield "imported", f"from {made.imported.tool}, pitch from {made.imported.pitch_from}; {counts}"
    overlap = f", {grid.overlap_px} px of them overlap" if grid.overlap_px else ""
    level0 = f"{grid.patch_level0:.6g} px of the slide, one every {grid.stride_level0:.6g}"
    yield "patches", f"{header.patches} of {_cut(grid)}{overlap}; {level0}"
    rows, cols = grid.shape
    box = "" if file.box is None else f"; they lie within {file.box[0]} × {file.box[1]}, of which "
    box += "" if file.box is None else f"{header.patches / (file.box[0] * file.box[1]):.0%}"
    yield "grid", f"{rows} × {cols} cells, {file.occupied:.0%} hold a patch{box}"
    yield "tissue", ", ".join(f"{name} {value}" for name, value in file.tissue.items()) or "not told"
    yield "features", f"{header.patches} × {header.dim}, {header.dtype}"
    found = file.statistics
    if found is not None and header.patches:
        yield "values", f"mean {found.mean:.4g}, sd {found.sd:.4g}, from {found.minimum:.4g} to {found.maximum:.4g}"
        if found.oddities():
            yield "odd", found.oddities()
    for name, value in file.other.items():
        yield name, str(value)


def _cut(grid: GridGeometry) -> str:
    return f"{_known(grid.patch_px)} px at {_known(grid.mpp, 'g')} µm/px"


def _known(value: str | float | None, form: str = "") -> str:
    """What a file of imported features may not say."""
    return "unknown" if value is None else format(value, form)


def _print_survey(survey: Survey) -> None:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    from wsi2d.cli import console
    from wsi2d.errors import one_line

    files = survey.files
    table = console.plain_table("", "slide", "patches", "grid", "filled", "size")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for file in files:
        rows, cols = file.header.geometry.shape
        size = console.size_text(file.size)
        name = escape(one_line(file.path.stem))
        table.add_row(name, f"{file.header.patches:,}", f"{rows}×{cols}", f"{file.occupied:.0%}", size)
    told = [Text(one_line(line)) for line in _in_all(files)]
    differ = [Padding(Text(one_line(found.describe())), (0, 0, 0, 2)) for found in survey.disagreements]
    console.print_anywhere(table, *told, *([Text("they differ in")] * bool(differ)), *differ)


def _in_all(files: Sequence[Inspection]) -> Iterator[str]:
    """What is told of all files together, and what is odd about one of them."""
    from wsi2d.cli.console import size_text

    patches, size = sum(f.header.patches for f in files), sum(f.size for f in files)
    empty = sum(not f.header.patches for f in files)
    yield f"{len(files)} files: {patches:,} patches, {size_text(size)}" + (f"; {empty} without tissue" if empty else "")
    made = {f"{_known(p.encoder)} ({_known(p.encoder_hash)})" for p in (f.header.provenance for f in files)}
    cut = {f"{_cut(g)}, {_known(g.overlap_px)} px of overlap" for g in (f.header.geometry for f in files)}
    kept = {f"{f.header.dim} × {f.header.dtype}" for f in files}
    yield from (f"all {alike.pop()}" for alike in (cut, kept) if len(alike) == 1)
    yield from (f"all by {alike.pop()}" for alike in (made,) if len(alike) == 1)
    for file in files:
        if file.slide_id != file.path.stem:
            yield f"{file.path.name} is of slide '{file.slide_id}'"
        if file.statistics is not None and file.statistics.oddities():
            yield f"{file.path.name}: {file.statistics.oddities()}"
