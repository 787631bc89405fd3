"""The catalogue of encoders by name: consistent in itself, and each entry builds what it says from fitting weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from wsi2d.errors import ConfigError, ModelError
from wsi2d.features.encoders import ENCODERS, get_encoder
from wsi2d.features.encoders.catalogue import CATALOGUE, EncoderSpec
from wsi2d.features.encoders.pretrained import hub_files, parse_name

Patches = Callable[[int, int], torch.Tensor]
TRANSFORMERS = sorted(name for name, spec in CATALOGUE.items() if spec.backend == "transformers")


def test_the_names_that_were_promised() -> None:
    assert set(CATALOGUE) == {
        "uni", "uni2-h", "virchow", "virchow2", "gigapath", "h-optimus-0", "h-optimus-1", "resnet50", "phikon",
        "phikon-v2", "hibou-b", "hibou-l", "dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant", "conch-v1.5",
    }  # fmt: skip
    assert not set(CATALOGUE) & set(ENCODERS)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_an_entry_is_consistent(name: str) -> None:
    spec = CATALOGUE[name]
    assert spec.name == name
    assert spec.hub.count("/") == 1
    assert spec.page == f"https://huggingface.co/{spec.hub}"
    assert spec.patch_px >= spec.preprocess.crop_px, "nothing is enlarged at the recommended size"
    if spec.preprocess.crop_px < spec.preprocess.resize_px:
        assert spec.patch_px == spec.preprocess.resize_px, "and nothing is resized before it is cropped"
    assert 0.1 < spec.mpp <= 1.0
    assert spec.mpp not in spec.also_mpp
    assert spec.licence
    assert parse_name(name).spec is spec
    assert parse_name(f"{name}=a/b=c.bin").path == Path("a/b=c.bin")
    assert (spec.architecture == "") == (spec.backend == "transformers" and not name.startswith("hibou"))
    remedy = hub_files(spec).remedy
    assert spec.hub in remedy
    assert f"--encoder {name}=" in remedy
    assert ("accept the terms" in remedy) == (spec.gated is not False)


def test_the_documentation_says_the_same() -> None:
    page = Path(__file__).parents[3] / "docs" / "encoders.md"
    if not page.exists():
        pytest.skip("the tests run without the documentation")
    asked = {True: "yes", False: "no", None: "?"}
    rows = []
    for s in CATALOGUE.values():
        cells = (f"`{s.name}`", s.backend, s.width, s.patch_px, f"{s.mpp:g}", s.licence, asked[s.gated], s.precision)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    text = page.read_text("utf-8")
    assert [row for row in rows if row not in text] == []
    assert text.count("| timm | ") + text.count("| transformers | ") == len(rows)


@pytest.fixture
def small(networks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Weights for a catalogued encoder of transformers, in a folder; its entry has their width within the test."""

    def make(name: str, **changes: Any) -> Path:
        spec = CATALOGUE[name]
        if name == "phikon":
            networks.save_vit_classifier(tmp_path / name)
        else:
            networks.save_dinov2(tmp_path / name, registers=4 * name.startswith("hibou"))
        shrunk: EncoderSpec = replace(spec, width=24 if name == "phikon" else 32, **changes)
        monkeypatch.setitem(CATALOGUE, name, shrunk)
        side = spec.preprocess.crop_px
        config = json.loads((tmp_path / name / "config.json").read_text()) | {"image_size": side}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        _fit_positions(tmp_path / name / "model.safetensors", (side // 14) ** 2 + 1)
        (tmp_path / name / "preprocessor_config.json").unlink()
        return tmp_path / name

    return make


def _fit_positions(path: Path, count: int) -> None:
    """Give a file of weights position embeddings for so many tokens."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    (key,) = (k for k in weights if k.endswith("position_embeddings"))
    weights[key] = torch.randn(1, count, weights[key].shape[2], generator=torch.Generator().manual_seed(0))
    save_file(weights, path)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_encoder_of_transformers_from_a_path(
    small: Callable[[str], Path], real_patches: Patches, no_network: None, name: str
) -> None:
    """Its own preprocessing and its class token, from a folder and from a file beside config.json."""
    from transformers import AutoModel, Dinov2WithRegistersModel

    folder = small(name)
    encoder = get_encoder(f"{name}={folder}")
    assert (encoder.name, encoder.dim, encoder.store_dtype) == (name, CATALOGUE[name].width, "float16")
    kind: Any = Dinov2WithRegistersModel if name.startswith("hibou") else AutoModel
    model = kind.from_pretrained(folder)
    patches = real_patches(2, CATALOGUE[name].patch_px)
    with torch.inference_mode():
        expected = model(pixel_values=CATALOGUE[name].preprocess(patches)).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode(patches), expected, rtol=1e-5, atol=1e-5)
    assert get_encoder(f"{name}={folder / 'model.safetensors'}").fingerprint == encoder.fingerprint


def test_a_cached_encoder_needs_no_network_and_is_the_one_of_its_path(
    networks: ModuleType, small: Callable[[str], Path], hub_cache: Path, no_network: None
) -> None:
    folder = small("phikon")
    networks.put_in_cache(hub_cache, "owkin/phikon", folder)
    assert get_encoder("phikon").fingerprint == get_encoder(f"phikon={folder}").fingerprint


def test_the_model_type_of_hibou_is_not_asked_of_its_own_code(small: Callable[[str], Path], tmp_path: Path) -> None:
    folder = small("hibou-b")
    before = get_encoder(f"hibou-b={folder}")
    config = json.loads((folder / "config.json").read_text())
    own = {
        "model_type": "hibou",
        "auto_map": {"AutoModel": "modeling_hibou.HibouModel"},
        "architectures": ["HibouModel"],
    }
    (folder / "config.json").write_text(json.dumps(config | own))
    patches = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert torch.equal(get_encoder(f"hibou-b={folder}").encode(patches), before.encode(patches))


def test_weights_of_another_width(small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small("phikon")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="describes a network of width 24, not 768; it is not the one of https://hug"):
        get_encoder(f"phikon={folder}")


def test_paths_that_do_not_have_what_a_name_needs(small: Callable[[str], Path], tmp_path: Path) -> None:
    folder = small("phikon-v2")
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "model.safetensors", tmp_path / "alone")
    with pytest.raises(ModelError, match=r"config\.json: no such file; it belongs beside the weights"):
        get_encoder(f"phikon-v2={tmp_path / 'alone'}")
    for name in ("nowhere", "nowhere/", "nowhere.bin"):
        with pytest.raises(ModelError, match="no such file of weights"):
            get_encoder(f"phikon-v2={tmp_path}/{name}")
