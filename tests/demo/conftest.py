"""Fixtures of the demo's tests."""

import pytest

from wsi2d.demo import cohort
from wsi2d.demo.painting import Painter


@pytest.fixture(scope="module", autouse=True)
def on_one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session")
def painter() -> Painter:
    """Built once, as for a cohort."""
    return Painter()


@pytest.fixture
def small_slides(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides of seven or eight cells a side instead of about twenty, for tests of what does not depend on it."""
    monkeypatch.setattr(cohort, "_CELLS_A_SIDE", (7, 8))
    monkeypatch.setattr(cohort, "Painter", lambda: painter)
