"""Fixtures of the kernel tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """`oracle.py` beside this file, loaded by its path, so that the folder also works where it is not on `sys.path`."""
    spec = importlib.util.spec_from_file_location("kernel_test_oracle", Path(__file__).with_name("oracle.py"))
    if spec is None or spec.loader is None:
        raise ImportError("no loader for tests/kernels/oracle.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
