"""Errors: one tree, one line each whatever a name or a value brings into it, the same in another process."""

import copy
import pickle

import pytest

from wsi2d import errors
from wsi2d.errors import Wsi2dError, one_line

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
# Everything that ends a line, for Python or for a terminal, and what moves its cursor or changes its colours.
BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
CONTROLS = ["\x00", "\x07", "\x08", "\x1b", "\x7f", "\x9b", "\t", "\u202e", "\u200b", "\ud800", "\ufeff"]


@pytest.mark.parametrize("between", BREAKS + CONTROLS, ids=ascii)
def test_breaks_and_controls_become_blanks(between: str) -> None:
    line = one_line(f"slide 'a{between}b'")
    assert line == "slide 'a b'"
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("\n\n", ""),
        ("  plain  words ", "plain words"),
        ("a\n\n\t b", "a b"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("µm² → café, 日本 🔬", "µm² → café, 日本 🔬"),
        ("C:\\slides\\new.svs", "C:\\slides\\new.svs"),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
    assert one_line(line) == line


def test_the_tree() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert names >= {
        "Wsi2dError", "ConfigError", "StorageError", "SlideError", "FeatureStoreError", "CohortError", "SplitError",
        "ModelError", "RunError",
    }  # fmt: skip
    assert all(issubclass(kind, Wsi2dError) for kind in KINDS)
    assert not issubclass(Wsi2dError, OSError | ValueError), "or a clause for the system's errors would catch ours"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_line(kind: type[Wsi2dError]) -> None:
    text = "slide 'a': " + "".join(f"x{c}" for c in BREAKS + CONTROLS)
    error = kind(text)
    assert str(error) == "slide 'a': " + " ".join("x" * len(BREAKS + CONTROLS))
    assert error.args == (str(error),)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_travels(kind: type[Wsi2dError]) -> None:
    """Folds train in processes of their own, and what stops one is told by another."""
    error = kind("fold 1: its train side has no slide\nof class 'b'")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error) == "fold 1: its train side has no slide of class 'b'"
