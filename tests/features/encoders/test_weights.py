"""Files of weights: read whatever their format, told apart by their content; what is no weights ends in one line."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi2d.errors import ModelError
from wsi2d.features.encoders.weights import INDEX_FILE, find_weights, read_json, read_weights, weights_hash


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights of every kind that a file may hold."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "block.weight": torch.randn(3, 4, generator=generator),
        "block.half": torch.randn(5, generator=generator).half(),
        "block.brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "norm.count": torch.tensor(7 + seed),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        read_weights(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def write(path: Path, weights: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pt", "a.pth"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    found = read_weights(write(tmp_path / name, tensors()))
    assert found.keys() == tensors().keys()
    for key, value in tensors().items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert weights_hash(found) == weights_hash(tensors()), "the same in every format"


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_that_lie_beside_other_things(tmp_path: Path, key: str) -> None:
    found = read_weights(write(tmp_path / "a.pt", {key: tensors(), "epoch": 3, "loss": 0.5}))
    assert weights_hash(found) == weights_hash(tensors())


def test_a_file_of_the_older_layout(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "a.bin")
    assert weights_hash(read_weights(tmp_path / "a.bin")) == weights_hash(tensors())


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    whole = tensors()
    changed = [
        {k: v for k, v in whole.items() if k != "mask"},
        {("mask2" if k == "mask" else k): v for k, v in whole.items()},
        {**whole, "block.weight": whole["block.weight"].reshape(4, 3)},
        {**whole, "block.half": whole["block.half"].float()},
        {**whole, "block.weight": torch.nextafter(whole["block.weight"], torch.tensor(torch.inf))},
        {**whole, "norm.count": torch.tensor(8)},
    ]
    hashes = {weights_hash(w) for w in [whole, *changed]}
    assert len(hashes) == len(changed) + 1
    assert weights_hash(dict(reversed(whole.items()))) == weights_hash(whole)
    assert weights_hash({**whole, "block.weight": whole["block.weight"].T.contiguous().T}) == weights_hash(whole)


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth"])
def test_code_in_a_file_is_not_run(tmp_path: Path, name: str) -> None:
    torch.save({"weight": torch.zeros(2), "more": Trap(tmp_path / "ran")}, tmp_path / name)
    assert "code from a file is not run; convert it to safetensors" in refused(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    refused(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    assert "no such file of weights" in refused(tmp_path / "none.safetensors")
    assert "no such file of weights" in refused(tmp_path / "none.bin")
    (tmp_path / "a.txt").write_text("x")
    assert "no file of weights by its name; there are .safetensors, .bin, .pt, .pth" in refused(tmp_path / "a.txt")
    for name in ("a.safetensors", "a.bin"):
        for content in (b"", b"no weights at all" * 10, b"\x00" * 100):
            (tmp_path / name).write_bytes(content)
            line = refused(tmp_path / name)
            assert "not readable weights" in line or "code from a file is not run" in line
    sparse, meta = torch.eye(3).to_sparse(), torch.zeros(3, device="meta")
    for held in ([1, 2], {}, {"a": 3}, torch.zeros(3), {"a": sparse}, {"a": meta}):
        torch.save(held, tmp_path / "b.pt")
        assert "it holds no plain tensors by name" in refused(tmp_path / "b.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_a_file_that_was_cut_off(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, tensors()).read_bytes()
    for share in (0.3, 0.7, 0.95):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        assert "not readable weights" in refused(tmp_path / name)


def test_weights_in_several_files(tmp_path: Path) -> None:
    names = list(tensors())
    places = {n: f"model-{k % 2}.safetensors" for k, n in enumerate(names)}
    for file in set(places.values()):
        save_file({n: v for n, v in tensors().items() if places[n] == file}, tmp_path / file)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    assert weights_hash(read_weights(find_weights(tmp_path))) == weights_hash(tensors())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match="no such file of weights"):
        read_weights(tmp_path / INDEX_FILE)


@pytest.mark.parametrize("places", [{}, {"a": "../a.safetensors"}, {"a": "/a.safetensors"}, {"a": "a.bin"}, "a", None])
def test_an_index_that_names_no_files_beside_it(tmp_path: Path, places: Any) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    assert "names no safetensors files beside it" in refused(tmp_path / INDEX_FILE)


def test_the_file_in_a_folder(tmp_path: Path) -> None:
    def lack(*names: str) -> str:
        with pytest.raises(ModelError) as error:
            find_weights(tmp_path, names)
        return str(error.value)

    assert lack() == f"{tmp_path}: holds no file of weights; give the folder or file that has them"
    assert "holds no file of weights (a.bin or b.bin)" in lack("a.bin", "b.bin")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".hidden.bin").touch()
    (tmp_path / "folder.bin").mkdir()
    assert "holds no file of weights" in lack()
    (tmp_path / "other.bin").touch()
    assert find_weights(tmp_path).name == "other.bin"
    (tmp_path / "pytorch_model.bin").touch()
    assert "several files of weights (other.bin, pytorch_model.bin)" in lack()
    assert find_weights(tmp_path, ["model.safetensors", "pytorch_model.bin"]).name == "pytorch_model.bin"
    (tmp_path / "some.safetensors").touch()
    assert find_weights(tmp_path, ["pytorch_model.bin"]).name == "some.safetensors", "safetensors go first"
    (tmp_path / "more.safetensors").touch()
    assert find_weights(tmp_path, ["some.safetensors"]).name == "some.safetensors"
    assert "several files of weights (more.safetensors, some.safetensors)" in lack("pytorch_model.bin")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[" * 10**5, "not readable JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('"a"', "must hold a JSON object, got str"),
    ],
)
def test_descriptions_that_are_none(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=line):
        read_json(tmp_path / "config.json")


def test_a_description_that_is_no_text_or_huge(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not readable JSON"):
        read_json(tmp_path / "a.json")
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ModelError, match="too large"):
        read_json(tmp_path / "b.json")
    with pytest.raises(ModelError, match="no such file"):
        read_json(tmp_path / "c.json")


def test_a_named_file_beside_a_repositorys_own_model(tmp_path: Path) -> None:
    """As CONCH v1.5 in a clone of TITAN, whose own weights are no patch encoder's."""
    names = ["pytorch_model_vision.bin", "conch_v1_5_pytorch_model.bin"]
    for name in ("model.safetensors", "conch_v1_5_pytorch_model.bin", "config.json"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path, names).name == "conch_v1_5_pytorch_model.bin"
    (tmp_path / "model.safetensors").rename(tmp_path / INDEX_FILE)
    assert find_weights(tmp_path, names).name == "conch_v1_5_pytorch_model.bin"
    (tmp_path / INDEX_FILE).rename(tmp_path / "model.safetensors")
    assert find_weights(tmp_path, ["model.safetensors", "pytorch_model.bin"]).name == "model.safetensors"
    assert find_weights(tmp_path).name == "model.safetensors"
