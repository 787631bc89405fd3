"""What became of each slide when feature files were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

Outcome = Literal["done", "empty", "skipped", "failed", "checked", "elsewhere"]


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide: ``done``, ``empty`` (no tissue), ``skipped`` (was finished), ``failed``, ``checked``
    where nothing was to be written, or ``elsewhere`` where another run has it in hand."""

    slide_id: str
    path: Path
    outcome: Outcome
    patches: int = 0
    error: str = ""


OneSlide = TypeVar("OneSlide", bound=SlideOutcome)


@dataclass(frozen=True)
class Report(Generic[OneSlide]):
    """What became of all slides, in order of their ids."""

    slides: tuple[OneSlide, ...]

    def count(self, outcome: Outcome) -> int:
        """Number of slides with that outcome."""
        return sum(s.outcome == outcome for s in self.slides)

    @property
    def failures(self) -> tuple[OneSlide, ...]:
        """The slides that failed."""
        return tuple(s for s in self.slides if s.outcome == "failed")


@dataclass(frozen=True)
class ExtractReport(Report[SlideOutcome]):
    """What became of all slides that were extracted, in order of their ids."""


class ExtractProgress:
    """Told what happens; the base class says nothing. The command line draws bars from it."""

    def slide_started(self, slide_id: str, patches: int) -> None:
        """A slide's patches are known and their encoding begins."""

    def patches_done(self, count: int) -> None:
        """That many more patches of the current slide are encoded."""

    def slide_finished(self, outcome: SlideOutcome) -> None:
        """A slide is done with, one way or the other."""
