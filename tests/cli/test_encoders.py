"""`wsi2d encoders`, and `wsi2d extract --encoder` with weights: from a path, by name, refused where they differ."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from wsi2d.features.encoders import ENCODERS, get_encoder
from wsi2d.features.encoders.catalogue import CATALOGUE


@pytest.fixture(scope="session")
def networks(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """Small networks as transformers saves them; skips where it is not installed."""
    pytest.importorskip("transformers", reason="encoders of transformers need it")
    return load_module("features/encoders/tiny_networks.py")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails the test."""
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail(f"the network was used: {args}"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: pytest.fail(f"the network was used: {args}"))


def attributes(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in file.attrs.items()}


def test_all_are_listed(cli: Any, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    result = cli("encoders --json")
    assert (result.code, result.err) == (0, "")
    found = {e["name"]: e for e in json.loads(result.out)}
    assert list(found) == [*ENCODERS, *CATALOGUE]
    assert found["histology-stats"] == {
        "name": "histology-stats", "backend": "wsi2d", "width": 108, "patch_px": None, "mpp": None,
        "licence": "Apache-2.0", "gated": False, "page": "", "installed": True, "cached": True, "remedy": "",
    }  # fmt: skip
    for name, spec in CATALOGUE.items():
        e = found[name]
        assert (e["backend"], e["width"], e["patch_px"], e["mpp"]) == (
            spec.backend,
            spec.width,
            spec.patch_px,
            spec.mpp,
        )
        assert (e["licence"], e["gated"], e["page"]) == (spec.licence, spec.gated, spec.page)
        assert (e["remedy"] == "") == (e["installed"] and e["cached"])
        assert "\n" not in e["remedy"]


def test_the_table_fits_and_names_remedies(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("encoders")
    assert result.code == 0
    lines = result.out.splitlines()
    for name in (*ENCODERS, *CATALOGUE):
        assert any(line.startswith(f"{name} ") and len(line) <= 80 for line in lines), name
    uni = next(line for line in lines if line.startswith("uni: "))
    assert "pip install 'wsi2d[encoders]'" in uni or "timm does not import" in uni or "hf download" in uni


def test_cached_weights_and_packages_that_do_not_import(
    cli: Any, networks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    def broken(name: str) -> ModuleType:
        if name == "timm":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return import_module(name)

    monkeypatch.setattr("wsi2d.features.encoders.packages.import_module", broken)
    monkeypatch.setattr("wsi2d.features.encoders.packages.find_spec", lambda name: name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    networks.save_dinov2(tmp_path / "net")
    networks.put_in_cache(tmp_path / "hub", "facebook/dinov2-small", tmp_path / "net")
    found = {e["name"]: e for e in json.loads(cli("encoders --json").out)}
    small, large, uni = found["dinov2-small"], found["dinov2-large"], found["uni"]
    assert (small["installed"], small["cached"], small["remedy"]) == (True, True, "")
    assert (large["installed"], large["cached"]) == (True, False)
    assert large["remedy"] == (
        "no weights here yet: they are downloaded at first use; or `hf download facebook/dinov2-large config.json "
        "model.safetensors --local-dir dinov2-large` where there is internet, then --encoder dinov2-large=dinov2-large"
    )
    assert (uni["installed"], uni["cached"]) == (False, False)
    assert uni["remedy"] == (
        "timm does not import (operator torchvision::nms does not exist); install torch, torchvision and timm that "
        "belong together"
    )
    assert "the terms on https://huggingface.co/histai/hibou-L and `hf auth login`, then" in found["hibou-l"]["remedy"]


def test_extraction_from_a_path(
    cli: Any, fails: Any, networks: ModuleType, write_slides: Any, tmp_path: Path, no_network: None
) -> None:
    """Width, provenance and features of the file; other weights of the same name do not go on in its folder."""
    slides = write_slides(tmp_path / "slides", "a")
    networks.save_dinov2(tmp_path / "net")
    command = ["extract", slides, "--patch-px", 64, "--out", tmp_path / "f", "--device", "cpu", "--workers", 1]
    result = cli(*command, "--encoder", tmp_path / "net")
    assert (result.code, result.err) == (0, "")
    encoder = get_encoder(str(tmp_path / "net"))
    found = attributes(tmp_path / "f" / "a.h5")
    assert (found["encoder"], found["encoder_hash"]) == ("local:dinov2", encoder.fingerprint)
    assert (found["patch_px"], found["mpp"]) == (64, 0.5)
    with h5py.File(tmp_path / "f" / "a.h5") as file:
        features, coords = file["features"][()], file["coords"][()]
    assert (features.dtype, features.shape[1]) == (np.float16, 32)
    assert len(features) == len(coords) > 4
    picture = np.asarray(Image.open(slides / "a.tiff"))
    inside = [k for k, (x, y) in enumerate(coords) if x + 64 <= 330 and y + 64 <= 320]
    patches = np.stack([picture[y : y + 64, x : x + 64] for x, y in coords[inside]])
    expected = encoder.encode(torch.from_numpy(patches)).numpy()
    np.testing.assert_allclose(features[inside].astype(np.float32), expected, rtol=2e-3, atol=2e-2)

    assert "1 already finished" in cli(*command, "--encoder", tmp_path / "net" / "model.safetensors").out
    networks.save_dinov2(tmp_path / "net", seed=1)
    line = fails(*command, "--encoder", tmp_path / "net")
    other = get_encoder(str(tmp_path / "net")).fingerprint
    assert f"a.h5: was made with encoder {encoder.fingerprint}, not {other}; use another --out" in line


def test_extraction_by_name_with_its_own_patches(
    cli: Any, networks: ModuleType, write_slide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--encoder NAME=PATH`, by an option and in YAML: 224 px as the encoder recommends, and a warning for others."""
    from dataclasses import replace

    rgb = np.full((700, 700, 3), 244, np.uint8)
    rgb[30:660, 30:660] = np.array([225, 150, 190]) + np.random.default_rng(0).integers(-8, 9, (630, 630, 3))
    (tmp_path / "slides").mkdir()
    slide = write_slide(tmp_path / "slides" / "a.tiff", rgb, levels=1)
    networks.save_vit_classifier(tmp_path / "net", side=224)
    monkeypatch.setitem(CATALOGUE, "phikon", replace(CATALOGUE["phikon"], width=24))
    name = f"phikon={tmp_path / 'net'}"
    command = ["extract", slide, "--workers", 1, "--device", "cpu"]
    result = cli(*command, "--out", tmp_path / "f", "--encoder", name)
    assert (result.code, result.err) == (0, "")
    found = attributes(tmp_path / "f" / "a.h5")
    assert (found["encoder"], found["patch_px"], found["mpp"]) == ("phikon", 224, 0.5)
    (tmp_path / "c.yaml").write_text(json.dumps({"encoder": name, "patch": {"mpp": 1.0}}))
    result = cli(*command, "--out", tmp_path / "g", "--config", tmp_path / "c.yaml")
    assert result.code == 0
    assert result.err == (
        "warning: encoder 'phikon' was made for patches of 224 px at 0.5 µm/px; it is given 224 px at 1 µm/px\n"
    )
    picture = cli("tissue", slide, "--out", tmp_path / "a.png", "--set", f"encoder={name}")
    assert "patches of 224 px at 0.5 µm/px" in picture.out
    assert picture.err == ""


def test_mistakes(
    fails: Any, networks: ModuleType, write_slides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    slides = write_slides(tmp_path / "slides", "a")
    command = ["extract", slides, "--out", tmp_path / "f", "--encoder"]
    assert "the hub is out of reach (HF_HUB_OFFLINE is set); `hf download owkin/phikon" in fails(*command, "phikon")
    assert "no such file or folder" in fails(*command, tmp_path / "none.safetensors")
    assert "no such file of weights" in fails(*command, f"phikon={tmp_path / 'none'}")
    assert "did you mean 'phikon-v2'" in fails(*command, "phikon-v3")
    assert "give hf:OWNER/NAME" in fails(*command, "hf:../x")
    assert not (tmp_path / "f").exists()
