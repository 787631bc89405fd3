"""What a model is asked about at once: a slide, or a patient with all of their slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsi2d.config import BagUnit
from wsi2d.data.cohort import CohortSlide
from wsi2d.errors import CohortError

SLIDES_APART = ";"  # between the slides of a patient, where a table names them in one field


@dataclass(frozen=True)
class CohortBag:
    """One bag of a study, with what is known of it.

    Attributes:
        name: the slide's id, or the patient's.
        slides: in the cohort's order; all of one patient and with one outcome.
        joined: the bag is a patient's, even where that is a single slide.

    Raises:
        CohortError: its slides differ in label, time or event.
    """

    name: str
    slides: tuple[CohortSlide, ...]
    joined: bool = False

    def __post_init__(self) -> None:
        first = self.slides[0]
        for slide in self.slides[1:]:
            for what in ("label", "time", "event"):
                values = getattr(first, what), getattr(slide, what)
                if values[0] != values[1]:
                    raise CohortError(
                        f"patient '{self.name}': {what} is {values[0]} of slide '{first.slide_id}' and {values[1]} of "
                        f"'{slide.slide_id}', so that they cannot be one bag; leave some out, or set data.bag: slide"
                    )

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Ids of its slides."""
        return tuple(slide.slide_id for slide in self.slides)

    @property
    def case_id(self) -> str:
        """Its patient."""
        return self.slides[0].case_id

    @property
    def label(self) -> str | None:
        """Its class, where it has one."""
        return self.slides[0].label

    @property
    def time(self) -> float | None:
        """Its follow-up, where that is known."""
        return self.slides[0].time

    @property
    def event(self) -> bool | None:
        """Whether the event happened, where that is known."""
        return self.slides[0].event


def bags_of(slides: Sequence[CohortSlide], unit: BagUnit) -> tuple[CohortBag, ...]:
    """Slides as bags: each by itself, or (``case``) those of each patient together, in the order of their first slides.

    Raises:
        CohortError: the slides of a patient differ in label, or bear a name that cannot stand in a list of names.
    """
    if unit == "slide":
        return tuple(CohortBag(slide.slide_id, (slide,)) for slide in slides)
    grouped: dict[str, list[CohortSlide]] = {}
    for slide in slides:
        if SLIDES_APART in slide.slide_id:
            raise CohortError(
                f"slide '{slide.slide_id}': its id holds '{SLIDES_APART}', which stands between a patient's slides in "
                "tables; rename it, or set data.bag: slide"
            )
        grouped.setdefault(slide.case_id, []).append(slide)
    return tuple(CohortBag(case, tuple(found), joined=True) for case, found in grouped.items())
