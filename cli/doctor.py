"""``wsi2d doctor``: what this machine has, and whether the scans are right on it."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    scan: Annotated[
        bool, typer.Option("--scan", help="Hold every backend of the 2D scans against the equations, and time it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show machine, versions, devices, encoders and cluster; exit code 1 where something is wrong."""
    from itertools import groupby

    from rich.markup import escape
    from rich.table import Table

    from wsi2d.cli.console import err, out
    from wsi2d.doctor import examine
    from wsi2d.kernels.check import TIMED

    diagnosis = examine(scan=scan)
    if json:
        typer.echo(diagnosis.to_json(), nl=False)
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for topic, findings in groupby(diagnosis.findings, lambda finding: finding.topic):
            for k, finding in enumerate(findings):
                value = f"[red]{escape(finding.value)}[/]" if finding.problem else escape(finding.value)
                table.add_row("" if k else topic, escape(finding.name), value)
        out.print(table)
        if scan:
            _, height, width, dim, state = TIMED
            out.print()
            checks = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
            for name in ("scan", "backend", "device"):
                checks.add_column(name)
            for name in ("output", "gradients", "seconds"):
                checks.add_column(name, justify="right")
            checks.add_column("")
            for check in diagnosis.scans:
                verdict = "[green]right[/]" if check.ok else "[red]wrong[/]"
                numbers = (f"{check.output:.1e}", f"{check.gradient:.1e}", f"{check.seconds:.3f}")
                checks.add_row(check.scan, check.backend, check.device, *numbers, verdict)
            out.print(checks)
            out.print(
                "Relative errors against the equations in float64; seconds of forward and backward at "
                f"{height}×{width} cells, {dim} channels, {state} states."
            )
        for problem in diagnosis.problems:
            err.print(f"[red]wrong:[/] {escape(problem)}", soft_wrap=True)
    if diagnosis.problems:
        raise typer.Exit(1)
