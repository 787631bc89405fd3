"""`wsi2d inspect`: one file in full with its grid, several in a table; damaged and foreign files in one line."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest


@pytest.fixture
def features(handmade: ModuleType, tmp_path: Path) -> Path:
    """A folder of two files that agree."""
    handmade.write_features(tmp_path / "f" / "a.h5", [(0, 0), (0, 1), (2, 3)])
    handmade.write_features(tmp_path / "f" / "größe 日本.h5", ())
    return tmp_path / "f"


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how wide the terminal is."""
    from wsi2d.cli import console

    return lambda columns: monkeypatch.setattr(console.out, "_width", columns)


def test_one_file(cli: Any, handmade: ModuleType, features: Path, width: Any) -> None:
    numbers = np.arange(15, dtype=np.float32).reshape(3, 5)
    numbers[1] = numbers[0]
    path = handmade.write_features(features / "a.h5", [(0, 0), (0, 1), (2, 3)], numbers)
    width(300)
    result = cli("inspect", path)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    told = {line.split()[0]: line for line in lines if line[0].isalpha()}
    assert list(told) == ["file", "slide", "encoder", "patches", "grid", "tissue", "features", "values", "odd"]
    for topic, words in {
        "file": (str(path), "schema wsi2d/1", "written by wsi2d 0.1.0", f"{path.stat().st_size / 1e3:.3g} kB"),
        "slide": ("a, 256 × 192 px of 0.5 µm (header)",),
        "encoder": ("by hand, fingerprint 0f1e2d",),
        "patches": ("3 of 64 px at 0.5 µm/px; 64 px of the slide, one every 64",),
        "grid": ("3 × 4 cells, 25% hold a patch; they lie within 3 × 4, of which 25%",),
        "tissue": ("close_um 32.0, min_tissue 0.25, threshold 0.1",),
        "features": ("3 × 5, float32",),
        "values": (f"mean {numbers.mean():.4g}, sd {numbers.std():.4g}, from 0 to 14",),
        "odd": ("duplicate patches: 1",),
    }.items():
        for word in words:
            assert word in told[topic]
    assert lines[-5:] == ["┌────────┐", "│████    │", "│        │", "│      ██│", "└────────┘"]


def test_a_slide_without_tissue(cli: Any, features: Path) -> None:
    result = cli("inspect", features / "größe 日本.h5")
    assert (result.code, result.err) == (0, "")
    assert "3 × 4 cells, 0% hold a patch\n" in result.out
    assert result.out.splitlines()[-4:-1] == ["│        │"] * 3


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_it_fits(cli: Any, handmade: ModuleType, features: Path, width: Any, columns: int) -> None:
    """Each line within the terminal, the picture within 30 lines, and no colour codes in a pipe."""
    index = np.argwhere(np.random.default_rng(0).random((200, 170)) < 0.5)
    path = handmade.write_features(features / f"{'long name ' * 9}.h5", index, shape=(200, 170), tissue="{}")
    width(columns)
    for arguments in ((path,), (features,), (features, "--values")):
        result = cli("inspect", *arguments)
        assert (result.code, result.err) == (0, "")
        assert "\x1b" not in result.out
        assert max(map(len, result.out.splitlines())) <= columns
        assert not any(line.endswith(" ") for line in result.out.splitlines())
    alone = cli("inspect", path).out.splitlines()
    top = next(i for i, line in enumerate(alone) if line.startswith("┌"))
    bottom = next(i for i, line in enumerate(alone) if line.startswith("└"))
    assert 15 < bottom - top < 30
    assert alone[-1] == "a mark is 2 × 2 cells"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_where_letters_are_missing(cli: Any, features: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Blocks become plain letters, and what cannot be spelled a question mark."""
    for arguments in ((features / "a.h5",), (features / "größe 日本.h5",), (features, "--values")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
        assert cli("inspect", *arguments).code == 0
        sys.stdout.flush()
        out = raw.getvalue().decode(encoding)
        monkeypatch.undo()
        if arguments[0] == features / "a.h5":
            assert out.endswith("+--------+\n|####    |\n|        |\n|      ##|\n+--------+\n")
            size = "256 x 192 px of 0.5 um" if encoding == "ascii" else "256 × 192 px of 0.5 µm"
            assert size in out
        elif arguments[0] == features:
            assert "gr??e ??" in out or "größe ??" in out


def test_a_folder(cli: Any, features: Path) -> None:
    result = cli("inspect", features)
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines() if line.startswith((" a ", " gr"))]
    size = {p.stem: p.stat().st_size for p in features.iterdir()}
    assert rows[0] == ["a", "3", "3×4", "25%", f"{size['a'] / 1e3:.3g}", "kB"]
    assert rows[1][-5:] == ["0", "3×4", "0%", f"{size['größe 日本'] / 1e3:.3g}", "kB"]
    assert f"2 files: 3 patches, {sum(size.values()) / 1e3:.3g} kB; 1 without tissue" in result.out
    assert "all 64 px at 0.5 µm/px, 0 px of overlap\n" in result.out
    assert "all by by hand (0f1e2d)\n" in result.out
    assert "all 5 × float32" in result.out


def test_what_disagrees_is_told(cli: Any, handmade: ModuleType, features: Path) -> None:
    handmade.write_features(features / "c.h5", encoder="uni", patch_px=128, slide_id="renamed")
    handmade.write_features(features / "d.h5", features=np.full((3, 5), np.nan))
    out = cli("inspect", features, "--values").out
    assert "they differ in\n" in out
    assert "  encoder: by hand in 3, uni in 1 (c.h5)\n" in out
    assert "  patch_px: 64 in 3, 128 in 1 (c.h5)\n" in out
    assert "all 64 px" not in out
    assert "c.h5 is of slide 'renamed'\n" in out
    assert "d.h5: NaN: 15, constant columns: 5, constant patches: 3, duplicate patches: 2\n" in out
    assert "NaN" not in cli("inspect", features).out, "a folder's features are read where asked"


def test_a_terminals_commands_in_a_file_are_not_passed_on(cli: Any, handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(
        tmp_path / "f" / "a.h5", slide_id="x\x1b[2Jy\nz", encoder="[red]e\x07", tissue='{"a\\u001b": "\\r\\n"}'
    )
    with h5py.File(path, "r+") as file:
        file.attrs["note\x1b[1m"] = np.bytes_(b"\x1b]0;title\x07")
    handmade.write_features(tmp_path / "f" / "b.h5", encoder="[bold]f\x1b")
    for arguments in ((path,), (tmp_path / "f", "--values")):
        result = cli("inspect", *arguments)
        assert result.code == 0
        assert not set(result.out) & {"\x1b", "\x07", "\r"}
        assert "[red]e" in result.out
    assert json.loads(cli("inspect --json", path).out)["files"][0]["slide_id"] == "x\x1b[2Jy\nz"


def test_json(cli: Any, features: Path, tmp_path: Path) -> None:
    result = cli("inspect --json", features / "a.h5")
    assert (result.code, result.err) == (0, "")
    (file,) = json.loads(result.out)["files"]
    assert (file["slide_id"], file["patches"], file["statistics"]["nan"]) == ("a", 3, 0)
    (features / "bad.h5").write_text("junk")
    result = cli("inspect --json", features)
    assert result.code == 1
    told = json.loads(result.out)
    assert [f["slide_id"] for f in told["files"]] == ["a", "größe 日本"]
    assert [f["path"] for f in told["failures"]] == [str(features / "bad.h5")]


def bad_files(handmade: ModuleType, folder: Path) -> dict[str, str]:
    """Files of all sorts, and what is said of each."""
    folder.mkdir()
    (folder / "junk.h5").write_bytes(b"\x89HDF no")
    (folder / "empty.h5").touch()
    handmade.damage(handmade.write_features(folder / "damaged.h5"))
    whole = handmade.write_features(folder / "cut.h5", dim=500)
    whole.write_bytes(whole.read_bytes()[:-700])
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["features"] = np.zeros((3, 4), np.float32)
    return {
        "junk.h5": "not a readable HDF5 file", "empty.h5": "not a readable HDF5 file", "damaged.h5": "damaged",
        "cut.h5": "", "foreign.h5": "it is no wsi2d feature file",
    }  # fmt: skip


def test_bad_files_alone(fails: Any, handmade: ModuleType, tmp_path: Path) -> None:
    for name, words in bad_files(handmade, tmp_path / "bad").items():
        for option in ("", "--json"):
            line = fails(f"inspect {option}", tmp_path / "bad" / name)
            assert line.startswith(f"{tmp_path / 'bad' / name}: ")
            assert words in line
    assert "no .h5 files" in fails("inspect", tmp_path)
    assert "gone.h5: no .h5 files, it does not exist" in fails("inspect", tmp_path / "gone.h5")


def test_bad_files_among_others(cli: Any, handmade: ModuleType, tmp_path: Path) -> None:
    bad = bad_files(handmade, tmp_path / "f")
    handmade.write_features(tmp_path / "f" / "good.h5")
    result = cli("inspect --values", tmp_path / "f")
    assert result.code == 1
    assert "good" in result.out
    assert "1 files: 3 patches" in result.out
    lines = result.err.splitlines()
    assert len(lines) == len(bad)
    for name, words in bad.items():
        (line,) = (x for x in lines if x.startswith(f"failed: {tmp_path / 'f' / name}: "))
        assert words in line
    only_bad = cli("inspect", *(tmp_path / "f" / name for name in ("junk.h5", "empty.h5")))
    assert only_bad.code == 1
    assert only_bad.out == ""
    assert len(only_bad.err.splitlines()) == 2


def test_several_files_by_name(cli: Any, features: Path) -> None:
    result = cli("inspect", features / "a.h5", features / "größe 日本.h5", features)
    assert result.code == 0
    assert "2 files: 3 patches" in result.out


def test_peers_files_are_foreign(cli: Any, shared_dir: Path) -> None:
    result = cli("inspect", *sorted((shared_dir / "peers").rglob("*.h5")))
    assert result.code == 1
    assert all("is no wsi2d feature file" in line for line in result.err.splitlines())
    assert len(result.err.splitlines()) == 4
