"""Folders and files of weights with their description: the network they hold, and none where they hold none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi2d.errors import ConfigError, ModelError, Wsi2dError
from wsi2d.features.encoders import get_encoder, has_name
from wsi2d.features.encoders.transformers_models import folder_preprocess

Patches = Callable[[int, int], torch.Tensor]


@pytest.fixture
def dinov2(networks: ModuleType, tmp_path: Path) -> Path:
    """A folder with a small DINOv2."""
    networks.save_dinov2(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def refused(path: Path | str) -> str:
    with pytest.raises(Wsi2dError) as error:
        get_encoder(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "vit"])
def test_the_class_token_of_a_folder_of_transformers(
    networks: ModuleType, tmp_path: Path, real_patches: Patches, kind: str
) -> None:
    model: Any
    if kind == "vit":
        model = networks.save_vit_classifier(tmp_path / "net").vit
    else:
        model = networks.save_dinov2(tmp_path / "net", registers=4 * kind.endswith("registers"))
    encoder = get_encoder(str(tmp_path / "net"))
    assert (encoder.name, encoder.store_dtype) == (f"local:{kind}", "float16")
    patches = real_patches(3, 96)
    with torch.inference_mode():
        expected = model(pixel_values=folder_preprocess("x", networks.PROCESSOR)(patches)).last_hidden_state[:, 0]
    features = encoder.encode(patches)
    assert features.shape == (3, encoder.dim)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert expected.std(0).min() > 1e-3, "patches differ"


def test_what_a_convolutional_network_pools(networks: ModuleType, tmp_path: Path, real_patches: Patches) -> None:
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    model = ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 40])).eval()
    networks.save(model, tmp_path / "net")
    patches = real_patches(2, 96)
    with torch.inference_mode():
        expected = model(pixel_values=folder_preprocess("x", networks.PROCESSOR)(patches)).pooler_output
    torch.testing.assert_close(get_encoder(str(tmp_path / "net")).encode(patches), expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_weights_beside_its_description(dinov2: Path) -> None:
    whole = get_encoder(str(dinov2))
    torch.save(load_file(dinov2 / "model.safetensors"), dinov2 / "weights.pt")
    by_file = [get_encoder(str(dinov2 / name)) for name in ("model.safetensors", "weights.pt")]
    assert {e.fingerprint for e in by_file} == {whole.fingerprint}
    moved = dinov2.with_name("elsewhere")
    shutil.copytree(dinov2, moved)
    assert (get_encoder(str(moved)).name, get_encoder(str(moved)).fingerprint) == (whole.name, whole.fingerprint)


def test_other_weights_make_another_fingerprint(networks: ModuleType, dinov2: Path) -> None:
    first = get_encoder(str(dinov2)).fingerprint
    networks.save_dinov2(dinov2, seed=1)
    second = get_encoder(str(dinov2)).fingerprint
    edit(dinov2 / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    third = get_encoder(str(dinov2)).fingerprint
    edit(dinov2 / "config.json", layer_norm_eps=1e-5)
    fourth = get_encoder(str(dinov2)).fingerprint
    edit(dinov2 / "config.json", transformers_version="9.9", _name_or_path="x")
    assert len({first, second, third, fourth}) == 4
    assert get_encoder(str(dinov2)).fingerprint == fourth, "who saved it does not change numbers"


def test_a_folder_that_lacks_something(dinov2: Path) -> None:
    (dinov2 / "preprocessor_config.json").rename(dinov2 / "p")
    assert "no preprocessor_config.json says how patches are prepared" in refused(dinov2)
    (dinov2 / "p").rename(dinov2 / "preprocessor_config.json")
    (dinov2 / "config.json").rename(dinov2 / "c")
    assert "no config.json says which network it is" in refused(dinov2)
    assert "or give NAME=PATH with one of `wsi2d encoders`" in refused(dinov2 / "model.safetensors")
    (dinov2 / "c").rename(dinov2 / "config.json")
    (dinov2 / "model.safetensors").unlink()
    assert "holds no file of weights (model.safetensors or pytorch_model.bin)" in refused(dinov2)


def test_code_in_a_folder_is_not_run(dinov2: Path, tmp_path: Path) -> None:
    (dinov2 / "modeling_own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Own: pass\n")
    edit(dinov2 / "config.json", auto_map={"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.Own"})
    assert get_encoder(str(dinov2)).name == "local:dinov2"
    edit(dinov2 / "config.json", model_type="own")
    assert "model type 'own' is not supported, and code from a repository is not run; there are " in refused(dinov2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": None}, "names no model_type (transformers) and no architecture (timm)"),
        ({"model_type": "bert"}, "model type 'bert' is not supported"),
        ({"model_type": "x" * 5000}, "is not supported"),
        ({"hidden_size": 64}, "belong to another network"),
        ({"num_hidden_layers": 3}, "they lack"),
        ({"num_hidden_layers": "three"}, ""),
        ({"num_attention_heads": 5}, ""),
        ({"patch_size": 10}, "belong to another network"),
        ({"hidden_size": -4}, ""),
    ],
)
def test_a_description_that_does_not_fit_its_weights(dinov2: Path, changes: dict[str, Any], line: str) -> None:
    edit(dinov2 / "config.json", **changes)
    found = refused(dinov2)
    assert line in found
    assert len(found) < 800


def test_weights_that_lack_a_layer_or_are_of_another_network(networks: ModuleType, dinov2: Path) -> None:
    weights = load_file(dinov2 / "model.safetensors")
    dropped = "encoder.layer.1.norm1.weight"
    save_file({k: v for k, v in weights.items() if k != dropped}, dinov2 / "model.safetensors")
    line = refused(dinov2)
    assert "config.json describes; they lack " in line
    assert "1.norm1.weight" in line
    networks.save_vit_classifier(dinov2.with_name("vit"))
    shutil.copy(dinov2.with_name("vit") / "model.safetensors", dinov2)
    assert "the weights belong to another network" in refused(dinov2)


def test_names_and_paths() -> None:
    with pytest.raises(ConfigError, match=r"encoder \./none: no such file or folder"):
        get_encoder("./none")
    with pytest.raises(ConfigError, match=r"encoder none\.safetensors: no such file or folder"):
        get_encoder("none.safetensors")
    with pytest.raises(ConfigError, match="encoder 'virchow3': unknown; did you mean 'virchow'"):
        get_encoder("virchow3")
    with pytest.raises(ConfigError, match="encoder nothing=/tmp: no such file"):
        get_encoder("nothing=/tmp")
    for name in ("x" * 5000, "a/" * 5000, "~nobody/x", "a\0b", "\n"):
        assert len(refused(name)) < 600
    assert has_name("uni")
    assert has_name("hf:owner/name")
    assert has_name("histology-stats")
    assert not has_name("local:dinov2")


def test_a_name_goes_before_a_folder_of_that_name(
    networks: ModuleType, dinov2: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dinov2.rename(dinov2.with_name("phikon"))
    monkeypatch.chdir(dinov2.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get_encoder("./phikon").name == "local:dinov2"
    with pytest.raises(ModelError, match="encoder 'phikon': its weights are not on this machine"):
        get_encoder("phikon")
