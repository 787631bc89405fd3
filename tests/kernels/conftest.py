"""Fixtures of the kernel tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

# A backend added later joins here, with the full-precision dtypes that it takes, the widest first, and is held to the
# same tolerances.
BACKENDS = {"torch": (torch.float64, torch.float32), "native": (torch.float32,)}
OPERATORS = ("selective", "wavefront")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` is each backend in turn; with `full`, each backend with each of its full-precision dtypes."""
    if "full" in metafunc.fixturenames:
        pairs = [(backend, dtype) for backend, dtypes in BACKENDS.items() for dtype in dtypes]
        metafunc.parametrize(("backend", "full"), pairs, ids=[f"{b}-{str(d).rpartition('.')[2]}" for b, d in pairs])
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS)


@pytest.fixture
def widest(backend: str) -> torch.dtype:
    """The most precise dtype that the backend takes."""
    return BACKENDS[backend][0]


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest, harness: ModuleType) -> Any:
    """Each scan in turn, a `harness.Operator`."""
    return getattr(harness, request.param.upper())


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """`oracle.py`: the float64 loops that say what is right."""
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
