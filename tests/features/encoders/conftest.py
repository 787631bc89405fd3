"""Fixtures of the encoders' tests: small networks, real pixels, a cache of their own, packages that may be absent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def on_one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session")
def networks(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`tiny_networks.py`; skips where transformers is not installed."""
    pytest.importorskip("transformers", reason="encoders of transformers need it")
    return load_module("features/encoders/tiny_networks.py")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The package; skips where it does not import, as beside a torch for which there is no torchvision."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"encoders of timm need it, and it does not import ({error})")
    return timm  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def real_patches() -> Callable[[int, int], torch.Tensor]:
    """Patches of a real picture of tissue: ``real_patches(count, side)``, uint8 ``[count, side, side, 3]``."""
    from skimage.data import immunohistochemistry

    picture = immunohistochemistry()

    def cut(count: int, side: int) -> torch.Tensor:
        step = (len(picture) - side) // max(count - 1, 1)
        return torch.from_numpy(np.stack([picture[k * step :, k * step :][:side, :side] for k in range(count)]))

    return cut


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, which the test's process uses."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub's cache is its own")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection or looks up a name fails the test."""
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail(f"the network was used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def hub(networks: ModuleType, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine that the test's process asks instead of the real one, with an empty cache."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with networks.serve_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield served
