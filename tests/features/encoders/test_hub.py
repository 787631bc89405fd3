"""Weights of the hub: from the cache without a network, downloaded, refused, out of reach; always in one line."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from wsi2d.errors import ConfigError, ModelError, StorageError, Wsi2dError
from wsi2d.features.encoders import get_encoder
from wsi2d.features.encoders import hub as hub_module
from wsi2d.features.encoders.hub import HubFiles

REPOSITORY = "owner/small-net"
FILES = HubFiles("x", REPOSITORY, ("model.safetensors", "pytorch_model.bin"), ("config.json",), "--encoder x=FOLDER")


@pytest.fixture
def saved(networks: ModuleType, tmp_path: Path) -> Path:
    """A folder with a small DINOv2."""
    networks.save_dinov2(tmp_path / "saved")
    return tmp_path / "saved"


def refused(name: str, kind: type[Wsi2dError] = ModelError) -> str:
    with pytest.raises(kind) as error:
        get_encoder(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def upload(hub: Any, folder: Path, *names: str) -> None:
    for path in folder.iterdir():
        if not names or path.name in names:
            hub.files[f"{REPOSITORY}/{path.name}"] = path.read_bytes()


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_in_the_cache_needs_no_network(
    networks: ModuleType, saved: Path, hub_cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    networks.put_in_cache(hub_cache, REPOSITORY, saved)
    encoder = get_encoder(f"hf:{REPOSITORY}")
    assert (encoder.name, encoder.dim) == (f"hf:{REPOSITORY}", 32)
    assert encoder.fingerprint == get_encoder(str(saved)).fingerprint
    assert encoder.encode(torch.zeros(2, 80, 80, 3, dtype=torch.uint8)).shape == (2, 32)


def test_a_process_of_its_own_that_is_offline(networks: ModuleType, saved: Path, tmp_path: Path) -> None:
    """As on a compute node: a cache that was copied there, HF_HOME, and a hub that is nowhere."""
    networks.put_in_cache(tmp_path / "home" / "hub", REPOSITORY, saved)
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from wsi2d.features.encoders import get_encoder\n"
        "from wsi2d.errors import Wsi2dError\n"
        f"print(get_encoder('hf:{REPOSITORY}').dim)\n"
        "try: get_encoder('phikon')\n"
        "except Wsi2dError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    width, line = done.stdout.splitlines()
    assert width == "32"
    assert line.startswith("encoder 'phikon': its weights are not on this machine, and the hub is out of reach (HF_HUB")


def test_files_are_downloaded_once(networks: ModuleType, saved: Path, hub: Any) -> None:
    upload(hub, saved)
    first = get_encoder(f"hf:{REPOSITORY}")
    assert first.fingerprint == get_encoder(str(saved)).fingerprint
    assert any(a.startswith("GET ") and a.endswith("/model.safetensors") for a in hub.asked)
    hub.asked.clear()
    assert get_encoder(f"hf:{REPOSITORY}").fingerprint == first.fingerprint
    assert hub.asked == []


def test_a_repository_without_safetensors(networks: ModuleType, saved: Path, hub: Any) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    upload(hub, saved, "config.json", "preprocessor_config.json", "pytorch_model.bin")
    assert get_encoder(f"hf:{REPOSITORY}").fingerprint == get_encoder(str(saved)).fingerprint


def test_weights_in_several_files_of_a_repository(networks: ModuleType, saved: Path, hub: Any) -> None:
    import json

    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    places = {name: f"part-{k % 2}.safetensors" for k, name in enumerate(weights)}
    for part in set(places.values()):
        save_file({n: w for n, w in weights.items() if places[n] == part}, saved / part)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    upload(hub, saved)
    del hub.files[f"{REPOSITORY}/model.safetensors"]
    expected = get_encoder(str(saved)).fingerprint
    assert get_encoder(f"hf:{REPOSITORY}").fingerprint == expected


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("name", ["phikon", "hibou-l", f"hf:{REPOSITORY}"])
def test_a_refusal_names_the_page_and_the_way_by_hand(hub: Any, status: int, name: str) -> None:
    hub.status, hub.error = status, "GatedRepo"
    line = refused(name)
    page = {"phikon": "owkin/phikon", "hibou-l": "histai/hibou-L"}.get(name, REPOSITORY)
    assert line.startswith(f"encoder '{name}': https://huggingface.co/{page} refuses its files ({status}); accept the ")
    assert "`hf auth login`" in line
    folder = page.split("/")[1].lower()
    files = "" if name.startswith("hf:") else "config.json model.safetensors "
    assert f"`hf download {page} {files}--local-dir {folder}`" in line
    assert line.endswith(f"--encoder {folder}" if name.startswith("hf:") else f"--encoder {name}={folder}")
    assert len(hub.asked) == 1, "asked once, not again and again"


def test_what_is_not_there(hub: Any) -> None:
    hub.status, hub.error = 401, "RepoNotFound"
    assert "is not there, or is private; check the name, or `hf auth login`" in refused(f"hf:{REPOSITORY}")
    hub.status, hub.error = 0, ""
    assert refused(f"hf:{REPOSITORY}").endswith(f"{REPOSITORY} has no config.json; check the name")
    hub.files[f"{REPOSITORY}/config.json"] = b'{"model_type": "dinov2"}'
    assert "has no model.safetensors or model.safetensors.index.json or pytorch_model.bin" in refused(
        f"hf:{REPOSITORY}"
    )


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_ill(hub: Any, status: int) -> None:
    hub.status = status
    line = refused("phikon")
    assert f"its weights are not on this machine, and the hub is out of reach (it answers {status}); `hf down" in line
    assert len(hub.asked) == 1


def test_a_hub_that_refuses_connections(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    start = time.monotonic()
    line = refused("hibou-l")
    assert "and the hub is out of reach (" in line
    assert "; accept the terms on https://huggingface.co/histai/hibou-L, `hf download histai/hibou-L" in line
    assert time.monotonic() - start < 5


def test_a_hub_that_never_answers(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_LIMIT_S", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        start = time.monotonic()
        assert "the hub is out of reach (" in refused("phikon")
        assert time.monotonic() - start < 10


def test_a_disk_that_does_not_take_the_files(
    networks: ModuleType, saved: Path, hub: Any, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    upload(hub, saved)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(StorageError, match=r"hub: cannot be written \(No space left on device\)"):
        get_encoder(f"hf:{REPOSITORY}")


def test_a_cache_that_holds_only_some_of_the_files(
    networks: ModuleType, saved: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    networks.put_in_cache(hub_cache, REPOSITORY, saved, "model.safetensors")
    assert FILES.cached() is None
    networks.put_in_cache(hub_cache, REPOSITORY, saved, "config.json")
    assert FILES.cached() is not None
    assert "the hub is out of reach (HF_HUB_OFFLINE is set)" in refused(f"hf:{REPOSITORY}")


def test_another_spelling_of_the_repository(networks: ModuleType, saved: Path, hub_cache: Path) -> None:
    networks.put_in_cache(hub_cache, "owner/Small-Net", saved)
    assert FILES.cached() is None
    also = HubFiles("x", REPOSITORY, FILES.weights, FILES.others, FILES.use, also=("owner/Small-Net",))
    assert also.cached() == also.fetch()


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:a/../b", "hf:a b/c", "hf:--/x"])
def test_what_can_be_no_repository(name: str, networks: ModuleType, no_network: None) -> None:
    assert "give hf:OWNER/NAME" in refused(name, ConfigError)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    def lacks(*names: str) -> Callable[[str], Any]:
        return lambda name, *rest: None if name in names else find_spec(name, *rest)

    monkeypatch.setattr("wsi2d.features.encoders.packages.find_spec", lacks("transformers", "huggingface_hub", "timm"))
    for name in ("phikon", "uni", "timm:resnet18", "hf:owner/name"):
        line = refused(name, ConfigError)
        assert line.startswith(f"encoder '{name}': ")
        assert line.endswith("is not installed; pip install 'wsi2d[encoders]'")
