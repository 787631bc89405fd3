"""A picture of two risk groups: Kaplan-Meier curves with their bands, and how many are still followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi2d.evaluation.evaluate import LEAK
from wsi2d.evaluation.risk_groups import RiskGroup, RiskGroups, StratifiedTest
from wsi2d.explain.canvas import check_suffix, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_FILE = "risk_groups.png"
_COLOURS = {"low": "#3b6fb6", "high": "#c1443c"}
_WHERE_CUT = {
    "given": "cut as given",
    "training": "cut at the training patients' median risk",
    "predictions": "cut at the median risk of the patients shown",
}


def survival_picture(groups: RiskGroups, out: Path, notes: Sequence[str] = ()) -> Figure:
    """Draw two risk groups and write the picture.

    Args:
        groups: from an evaluation.
        out: png, pdf or svg.
        notes: of the evaluation; those on leaked patients stand above the picture.

    Raises:
        ConfigError: the suffix is none of these.
        StorageError: it cannot be written.
    """
    from matplotlib.figure import Figure

    check_suffix(out)
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    last = max(g.curve.time[-1] for g in groups.groups)
    ticks = [last * k / 5 for k in range(6)]
    for group in groups.groups:
        label = f"{group.name} risk: {group.patients} patients, {group.events} events"
        axes.step(group.curve.time, group.curve.survival, where="post", color=_COLOURS[group.name], label=label)
        axes.fill_between(
            group.curve.time, group.curve.low, group.curve.high, step="post", color=_COLOURS[group.name], alpha=0.15
        )
    lines = [_words(groups)]
    lines += [f"stratified by fold: {_words(groups.stratified)}"] if groups.stratified is not None else []
    lines += [_WHERE_CUT[groups.cut_from], *(note for note in notes if LEAK in note)]
    axes.set_title("\n".join(lines), fontsize="medium")
    axes.set(ylim=(0, 1.02), xlim=(0, last if last > 0 else 1), ylabel="share without the event")
    followed = [[_followed(group, tick) for group in groups.groups] for tick in ticks]
    axes.set_xticks(ticks, ["\n".join((f"{t:.3g}", *map(str, n))) for t, n in zip(ticks, followed, strict=True)])
    axes.set_xlabel("time, in the cohort's unit; below it, how many are still followed: of low risk, of high risk")
    axes.legend(loc="upper right", frameon=False)
    save_figure(figure, out)
    return figure


def _words(groups: RiskGroups | StratifiedTest) -> str:
    """Hazard ratio and log-rank test in words."""
    low, high = groups.hazard_ratio_interval
    ratio = f"hazard ratio {groups.hazard_ratio:.2f} [{low:.2f}, {high:.2f}]"
    ratio = ratio if groups.hazard_ratio == groups.hazard_ratio else "hazard ratio not defined"
    test = f"log-rank p = {groups.p_value:.3g}" if groups.p_value == groups.p_value else "no log-rank test"
    return f"{ratio}; {test}"


def _followed(group: RiskGroup, time: float) -> int:
    """Patients who are followed up to a time or longer."""
    return next((n for t, n in zip(group.curve.time, group.curve.at_risk, strict=True) if t >= time), 0)
