"""``wsi2d receptive-field``: from where, around a patch, models take what they know of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi2d.explain.receptive_runs import RunField

_ARMS = ("centre", "left", "right", "up", "down")
_QUADRANTS = ("upper_left", "upper_right", "lower_left", "lower_right")


def receptive_field(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, one panel each.")],
    out: Annotated[Path, typer.Option(help="PNG, PDF or SVG; a JSON and a CSV with the numbers come beside it.")],
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Beside each also with the weights with which its training began.")
    ] = False,
    slides: Annotated[int, typer.Option(help="Slides of a run that are looked at, at most.")] = 64,
    centres: Annotated[int, typer.Option(help="Cells of a slide that are centres: the middle one, then others.")] = 1,
    probes: Annotated[int, typer.Option(help="Backward passes a centre: more leave less to chance.")] = 4,
    folds: Annotated[str | None, typer.Option(help="Whose models, with commas between. (default: all)")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of feature files. (default: the run's)")] = None,
    reach: Annotated[
        int | None, typer.Option(help="Patches shown to each side. (default: what 99 % of the gradient need)")
    ] = None,
    columns: Annotated[int, typer.Option(help="Panels beside each other.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the slides and centres that are drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Draw the effective receptive field of trained models: the gradient of a patch's embedding by all other patches.

    Each fold's model is asked about slides that it has not seen, and their mean is drawn: where a model looks for what
    it knows of a patch, in patches and in µm. Models that know no order have a single point.
    """
    import typer as t
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.cli.benchmark import whole_numbers
    from wsi2d.explain.receptive_fields import receptive_fields
    from wsi2d.explain.receptive_runs import FieldOptions, fields_json

    console.check_out(out)
    asked = None if folds is None else whole_numbers(folds, "--folds", "fold")
    options = FieldOptions(slides=slides, centres=centres, probes=probes, seed=seed)
    with console.progress_bars("slides") as bars:
        bar = bars.add_task("slides", total=None, rate="")

        def seen(name: str) -> None:
            bars.update(bar, advance=1, rate=name)

        found = receptive_fields(
            runs, out, untrained=untrained, options=options, folds=asked, features=features, columns=columns,
            reach=reach, device=device, on_slide=seen,
        )  # fmt: skip
    if json:
        t.echo(fields_json(found), nl=False)
        return
    _print_fields(found)
    others = ", ".join(f"{out.stem}-{name}" for name in ("numbers.json", "offsets.csv"))
    console.out.print(f"→ {escape(str(out))} ({escape(others)})", soft_wrap=True)


def _print_fields(fields: Sequence[RunField]) -> None:
    """How far each field reaches, and whether it is alike in both dimensions."""
    from rich.markup import escape

    from wsi2d.cli import console

    far = console.plain_table("radius that holds", "run", "50 %", "90 %", "reach", "slides")
    arms = console.plain_table("shares", "run", "centre", "left", "right", "up", "down", "row / column")
    quadrants = console.plain_table("shares", "run", *(name.replace("_", " ") for name in _QUADRANTS))
    for f in fields:
        numbers, name = f.summary, escape(f.title)
        lengths = (numbers.radius_50, numbers.radius_90, numbers.reach)
        far.add_row(name, *(_length(value, f.pitch_um) for value in lengths), str(f.field.bags))
        shares = {sector: f"{share:.1%}" for sector, share in numbers.sectors.items()}
        arms.add_row(name, *(shares[sector] for sector in _ARMS), _ratio(numbers.row_to_column))
        quadrants.add_row(name, *(shares[sector] for sector in _QUADRANTS))
    console.print_anywhere(far, arms, quadrants)
    points = [f.title for f in fields if f.field.single_point]
    if points:
        console.out.print(f"{escape(', '.join(points))}: a single point, each patch by itself alone.", soft_wrap=True)


def _length(patches: float, pitch_um: float | None) -> str:
    """In patches, and in µm where that is known."""
    return f"{patches:.3g}" + ("" if pitch_um is None else f" ({patches * pitch_um:,.0f} µm)")


def _ratio(value: float) -> str:
    """A dash where it is not defined."""
    return "–" if value != value else f"{value:.3g}"
