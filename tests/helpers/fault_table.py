"""What was done to extractions and what became of them, for the table at the end of a run of ``test_faults.py``."""

from __future__ import annotations

ROWS: dict[str, tuple[str, int]] = {}


def note(fault: str, outcome: str) -> None:
    """One more time that a fault ended so; called once that has been checked."""
    ROWS[fault] = (outcome, ROWS.get(fault, (outcome, 0))[1] + 1)


def lines() -> list[str]:
    """The table in Markdown."""
    rows = [f"| {fault} | {times} | {outcome} |" for fault, (outcome, times) in ROWS.items()]
    return ["| what happens to an extraction | times | what becomes of it |", "|---|---|---|", *rows]
