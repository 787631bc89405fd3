"""Fixtures of the kernel tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# A backend added later joins here and is held to the same tolerances.
BACKENDS = ("torch",)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """`oracle.py`: the float64 loop that says what is right."""
    return load_beside("oracle")


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    """`harness.py`: random arguments, one call with all gradients, the comparison with the oracle."""
    return load_beside("harness")


def load_beside(name: str) -> ModuleType:
    """The module `name` of this folder, by its path, so that it is found wherever the folder stands and whatever
    pytest's import mode puts on `sys.path`."""
    spec = importlib.util.spec_from_file_location(f"kernel_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {name}.py beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
