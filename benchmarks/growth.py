"""How aggregators grow with the patches of a slide: a table, and a picture, of what `models.py` has measured.

    python benchmarks/growth.py FILE.json [--from 3000] [--picture FILE.png]

For each model: seconds and memory of forward and backward at the largest number of patches that it was measured at, the
ratio to TransMIL's there, and the exponents of growth: the slope of a straight line through the logarithms of time (of
memory) against those of patches, by least squares over all numbers from `--from` on. 1 is linear, 2 quadratic; below
that number fixed costs would be taken for slow growth. The table is Markdown, as in `docs/models.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
TIME, MEMORY = "forward_backward_s", "forward_backward_mb"
# Drawn in colour; the others are grey, and named in the legend alone.
COLOURS = {
    "mamba2d-mil": "#1f4e79", "m2d-mil": "#3f8fc4", "bimamba-mil": "#2e8b57", "s4-mil": "#8fbc5a",
    "abmil": "#b58900", "torchmil:transmil": "#000000", "torchmil:transformer-abmil": "#c1443c",
}  # fmt: skip


def exponent(rows: list[Row], key: str, least: int) -> float:
    """The slope of log(key) over log(patches) from ``least`` patches on; NaN where fewer than two sizes are there."""
    used = [row for row in rows if row["patches"] >= least and row[key] > 0]
    if len(used) < 2:
        return math.nan
    x, y = (np.log([row[k] for row in used]) for k in ("patches", key))
    return float(np.polyfit(x, y, 1)[0])


def by_model(result: dict[str, Any]) -> dict[str, list[Row]]:
    """The measurements of each model from few patches to many, in the order in which models were measured."""
    found: dict[str, list[Row]] = {name: [] for name in result["weights"]}
    for row in sorted(result["measured"], key=lambda row: row["patches"]):
        found.setdefault(row["model"], []).append(row)
    return {name: rows for name, rows in found.items() if rows}


def table(result: dict[str, Any], least: int) -> list[str]:
    """Lines of a Markdown table, a model each."""
    models = by_model(result)
    yardstick = {row["patches"]: row for row in models.get(result["yardstick"], [])}
    lines = [
        "| name | patches | seconds | of TransMIL's | MB | of TransMIL's | time grows with | memory with |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in models.items():
        last = rows[-1]
        other = yardstick.get(last["patches"])
        cells = [f"`{name}`", f"{last['patches']:,}"]
        for key in (TIME, MEMORY):
            cells += [_figure(last[key]), "–" if other is None else f"{last[key] / other[key]:.2f}"]
        cells += [_power(exponent(rows, key, least)) for key in (TIME, MEMORY)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figure(value: float) -> str:
    """Two digits or more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _power(value: float) -> str:
    return "–" if math.isnan(value) else f"n^{value:.2f}"


def draw(result: dict[str, Any], out: Path) -> None:
    """Time and memory against patches, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    models = by_model(result)
    for axes, key, label in zip(
        figure.subplots(1, 2), (TIME, MEMORY), ("forward + backward, s", "the same, MB"), strict=True
    ):
        for name, rows in models.items():
            colour = COLOURS.get(name)
            axes.plot(
                [row["patches"] for row in rows], [row[key] for row in rows], "o-", ms=3.5,
                color=colour or "#bbbbbb", lw=1.6 if colour else 0.9, zorder=2 if colour else 1,
                label=name if colour and key == TIME else None,
            )  # fmt: skip
        sizes = np.array(sorted({row["patches"] for row in result["measured"]}))
        start = min(row[key] for rows in models.values() for row in rows if row["patches"] == sizes[0])
        axes.plot(sizes, start / 2 * sizes / sizes[0], ":", color="0.3", label="linear" if key == TIME else None)
        axes.set(xscale="log", yscale="log", xlabel="patches", ylabel=label)
        axes.grid(which="major", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].plot([], [], "o-", color="#bbbbbb", ms=3.5, label="the others")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(out, dpi=100)


def main() -> None:
    """Print the table; draw where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--from", type=int, default=3000, dest="least", help="the fewest patches that exponents use")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    result = json.loads(options.file.read_text("utf-8"))
    print("\n".join(table(result, options.least)))
    for left in result["left_out"]:
        print(f"{left['model']}: not measured at {left['patches']:,} patches, {left['why']}")
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
