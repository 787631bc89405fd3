"""`wsi2d export`: the library's call with its options, what it says, and its exit codes."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import pytest
import torch

import wsi2d


@pytest.fixture
def features(handmade: ModuleType, tmp_path: Path) -> Path:
    """A folder of two files."""
    for name in ("a", "größe 日本"):
        handmade.write_features(tmp_path / "f" / f"{name}.h5")
    return tmp_path / "f"


@pytest.mark.parametrize(("to", "suffix"), [("pt", "pt"), ("geojson", "geojson"), ("trident", "h5"), ("zarr", "zarr")])
def test_formats(cli: Any, features: Path, tmp_path: Path, to: str, suffix: str) -> None:
    if to == "zarr" and find_spec("zarr") is None:
        pytest.skip("the package zarr is not installed")
    out = tmp_path / "out"
    result = cli("export", features, "--to", to, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"exported: 2 done, 0 already finished, of 2 → {out}\n"
    assert {p.name for p in out.iterdir()} == {f"a.{suffix}", f"größe 日本.{suffix}"}
    result = cli("export", features / "a.h5", "--to", to, "--out", out)
    assert result.out == f"exported: 0 done, 1 already finished, of 1 → {out}\n"
    assert "2 done" in cli("export", features, "--to", to, "--out", out, "--overwrite").out


def test_options_arrive(cli: Any, features: Path, tmp_path: Path) -> None:
    assert cli("export --to pt --coords", features, "--out", tmp_path / "pt").code == 0
    bag = torch.load(tmp_path / "pt" / "a.pt", weights_only=True)
    assert set(bag) == {"features", "coords"}
    with h5py.File(tmp_path / "attention.h5", "w") as file:
        file["attention"] = [0.5, 0.25, 0.25]
        file["coords"] = wsi2d.read_features(features / "a.h5").grid.coords
    result = cli(
        "export --to geojson --objects annotation --attention", tmp_path / "attention.h5", features / "a.h5",
        "--out", tmp_path / "qupath",
    )  # fmt: skip
    assert result.code == 0, result.err
    first = json.loads((tmp_path / "qupath" / "a.geojson").read_text())["features"][0]["properties"]
    assert first["objectType"] == "annotation"
    assert first["measurements"]["Attention"] == 0.5


def test_bad_files(cli: Any, fails: Any, features: Path, tmp_path: Path) -> None:
    """Named among others, with exit code 1; alone an error."""
    (features / "bad [red].h5").write_bytes(b"junk")
    result = cli("export --to pt", features, "--out", tmp_path / "out")
    assert result.code == 1
    assert result.out == f"exported: 2 done, 0 already finished, 1 failed, of 3 → {tmp_path / 'out'}\n"
    (line,) = result.err.splitlines()
    assert line.startswith(f"failed: {features / 'bad [red].h5'}: not a readable HDF5 file")
    line = fails("export --to pt", features / "bad [red].h5", "--out", tmp_path / "out")
    assert line.startswith(f"{features / 'bad [red].h5'}: not a readable HDF5 file")


def test_mistakes(cli: Any, fails: Any, features: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert "no .h5 files" in fails("export --to pt", tmp_path, *out)
    assert "it does not exist" in fails("export --to pt", tmp_path / "gone", *out)
    assert "does not take attention" in fails("export --to pt", features, *out, "--attention", tmp_path)
    assert "there is none of any slide" in fails("export --to geojson", features, *out, "--attention", tmp_path)
    assert "holds the features themselves" in fails("export --to trident", features, "--out", features)
    assert "is a file; give another --out" in fails("export --to pt", features, "--out", features / "a.h5")
    assert not (tmp_path / "out").exists()
    assert "export to 'csv': unknown; there are" in fails("export --to csv", features, *out)
    assert "objects 'cell': must be tile or annotation" in fails("export --to geojson --objects cell", features, *out)
    for arguments in (("export", features, *out), ("export --to pt", features), ("export --to pt", *out)):
        assert cli(*arguments).code == 2
