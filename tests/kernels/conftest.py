"""Fixtures of the kernel tests."""

import importlib.util
import sys
from collections.abc import Iterator
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


# Name, range of the steps, range of every other decay.
EXTREMES = (
    ("large steps", (20.0, 80.0), (-1.0, -0.05)),
    ("tiny steps", (5e-7, 2e-6), (-1.0, -0.05)),
    ("steps of zero", (0.0, 0.0), (-1.0, -0.05)),
    ("steps of either sign", (-0.4, 0.4), (-1.0, -0.05)),
    ("A near zero", (0.1, 0.5), (-1e-6, -1e-9)),
    ("A zero", (0.1, 0.5), (0.0, 0.0)),
    ("A very negative", (0.1, 0.5), (-1e4, -1e4)),
    ("A positive", (0.1, 0.5), (1e-3, 3e-2)),
)


@pytest.fixture(params=[extreme[1:] for extreme in EXTREMES], ids=[extreme[0] for extreme in EXTREMES])
def extreme(request: pytest.FixtureRequest) -> Any:
    """Each extreme kind of steps and decays in turn, as two ranges."""
    return request.param


@pytest.fixture
def restore_determinism() -> Iterator[None]:
    """Whether torch asks for deterministic algorithms is as it was."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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
