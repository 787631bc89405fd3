"""What is chosen by name: found where the registry says, told with a hint where it does not, loaded only when asked."""

import subprocess
import sys

import pytest

from wsi2d.errors import ConfigError
from wsi2d.registry import load

NAMES = {
    "histology": "wsi2d.features.histology_stats:HistologyStats",
    "counter": "collections:Counter",
    "gone": "wsi2d.no_such_module:Thing",
    "other": "collections:NoSuchClass",
}


def test_the_class_that_a_name_stands_for() -> None:
    from collections import Counter

    assert load(NAMES, "counter", "thing 'counter':") is Counter
    assert load(NAMES, "histology", "x").__name__ == "HistologyStats"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("histologi", "did you mean 'histology'?"),
        ("Counter", "did you mean 'counter'?"),
        ("xyz", "there are counter, gone, histology, other"),
        ("", "there are counter, gone, histology, other"),
        ("collections:Counter", "did you mean 'counter'?"),
        ("new\nline", "there are counter, gone, histology, other"),
    ],
)
def test_an_unknown_name_and_its_neighbour(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(NAMES, name, f"thing '{name}':")
    assert str(caught.value) == f"thing '{' '.join(name.split())}': unknown; {hint}"


@pytest.mark.parametrize(("name", "error"), [("gone", ModuleNotFoundError), ("other", AttributeError)])
def test_a_wrong_line_of_the_registry_is_no_fault_of_the_user(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        load(NAMES, name, "x")


def test_one_of_an_empty_registry() -> None:
    with pytest.raises(ConfigError, match="thing 'a': unknown"):
        load({}, "a", "thing 'a':")


def test_the_others_are_not_loaded() -> None:
    """A foundation model's packages may not be there, and need not be."""
    code = (
        "import sys; from wsi2d.registry import load\n"
        "load({'a': 'wavelike:Missing', 'b': 'fractions:Fraction', 'c': 'decimal:Decimal'}, 'b', 'x')\n"
        "print('fractions' in sys.modules, 'wavelike' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True False False\n"), done.stderr


def test_every_registry_of_the_package_opens() -> None:
    from wsi2d.features.encoders import ENCODERS
    from wsi2d.models.registry import MODELS
    from wsi2d.training.losses.registry import LOSSES

    for registry in (ENCODERS, MODELS, LOSSES):
        assert len(registry) > 0
        for name in registry:
            assert isinstance(load(registry, name, name), type), name
