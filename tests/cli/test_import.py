"""`wsi2d import`: another tool's folder to feature files of ours, finished ones skipped, bad ones named."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from wsi2d.features.imports.importing import import_features
from wsi2d.features.imports.isolated import PeerReader
from wsi2d.features.locks import Locks, lock_path
from wsi2d.features.store import FeatureHeader, read_features, read_header

LAYOUTS = ("trident", *(pytest.param(name, marks=pytest.mark.slow) for name in ("clam", "stamp", "atlaspatch")))
CELLS = np.argwhere(np.ones((5, 6), bool))
ENCODER = ["--encoder", "uni_v2"]


@pytest.fixture(scope="module")
def peers(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`peers.py`: writes files as other tools lay them out."""
    return load_module("features/peers.py")


@pytest.fixture(scope="module")
def reader() -> Iterator[PeerReader]:
    """A process that reads other tools' files, kept from test to test: it takes its time to start."""
    with PeerReader(2) as kept:
        yield kept


@pytest.fixture
def own_reader() -> None:
    """The command starts and ends processes of its own, as it does outside of tests."""


@pytest.fixture(autouse=True)
def kept_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other imports read with the one that is kept."""
    if "own_reader" not in request.fixturenames:
        reader = request.getfixturevalue("reader")
        monkeypatch.setattr("wsi2d.features.imports.importing.PeerReader", lambda workers: nullcontext(reader))


@pytest.fixture
def trident(peers: ModuleType, tmp_path: Path) -> Path:
    """Three slides of TRIDENT's."""
    for seed, slide in enumerate("abc"):
        peers.write_trident(tmp_path / "trident", CELLS * 256, peers.features(30, seed=seed), slide=slide)
    return tmp_path / "trident"


@pytest.fixture
def clam(peers: ModuleType, tmp_path: Path) -> Path:
    """Three slides of CLAM's, the second with two contours that get into each other's way."""
    other = np.concatenate([CELLS * 256, CELLS[:12] * 256 + (500, 700)])
    for slide, xy in (("a", CELLS * 256 + 64), ("b", other), ("c", CELLS * 256)):
        peers.write_clam(tmp_path / "clam", xy, peers.features(len(xy)), slide=slide)
    return tmp_path / "clam"


def times(folder: Path) -> dict[str, int]:
    """When each feature file was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def failures(out: Path) -> dict[str, str]:
    """What ``failures.csv`` says, by slide."""
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        return {row["slide_id"]: row["error"] for row in csv.DictReader(file)}


def header(path: Path) -> FeatureHeader:
    """Of a file that was imported."""
    found = read_header(path)
    assert found.provenance.imported is not None
    return found


# --- what is written


@pytest.mark.usefixtures("own_reader")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(layout: str, cli: Any, peers: ModuleType, small_study: Any, tmp_path: Path) -> None:
    """Files of ours, rewritten as a tool's and imported again, hold the same features in the same cells."""
    peers.rewrite_all(small_study.features, layout, tmp_path / "theirs")
    result = cli("import", tmp_path / "theirs", "--out", tmp_path / "f", *(ENCODER if layout == "atlaspatch" else []))
    assert result.code == 0, result
    assert f"slides: {len(small_study.slide_ids)} imported, of {len(small_study.slide_ids)} →" in result.out
    for slide_id in small_study.slide_ids:
        ours, theirs = (read_features(folder / f"{slide_id}.h5") for folder in (small_study.features, tmp_path / "f"))
        assert np.array_equal(theirs.features, ours.features.astype(theirs.features.dtype))
        assert np.array_equal(theirs.grid.index - theirs.grid.index[0], ours.grid.index - ours.grid.index[0])
        assert theirs.provenance.imported is not None
        assert theirs.provenance.imported.tool.lower() == layout
        assert theirs.provenance.encoder_hash is None
    with h5py.File(tmp_path / "f" / f"{small_study.slide_ids[0]}.h5") as file:
        assert json.loads(file.attrs["imported"])["tool"].lower() == layout
        assert file.attrs["complete"]
        assert (file.attrs["encoder"] == b"") == (layout == "clam")
        assert np.isnan(file.attrs["mpp"]) == (layout == "clam")


def test_what_is_said_of_each_slide(cli: Any, clam: Path, tmp_path: Path) -> None:
    result = cli("import", clam, "--out", tmp_path / "f")
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert lines[0] == "CLAM: encoder unknown, unknown resolution, patches of 256 px, 5 numbers each"
    assert lines[1] == "a: 30 patches in 30 cells, pitch 256 px (statistics)"
    assert lines[2].startswith("b: 42 patches in ")
    assert all(word in lines[2] for word in ("off the grid", "collisions"))
    assert "what is unknown is recorded so until --encoder, --mpp is given" in result.err


def test_json(cli: Any, clam: Path, tmp_path: Path) -> None:
    report = json.loads(cli("import --check --json", clam).out)
    assert (report["schema"], report["tool"]) == ("wsi2d-import/1", "CLAM")
    assert report["spec"] == {
        "encoder": None, "encoder_hash": None, "mpp": None, "patch_px": 256, "overlap_px": 0, "dim": 5
    }  # fmt: skip
    slides = {slide["slide_id"]: slide for slide in report["slides"]}
    assert {slide["outcome"] for slide in slides.values()} == {"checked"}
    two = slides["b"]
    assert two["patches"] == 42 == two["cells"] + two["dropped"] + two["duplicates"]
    assert two["collisions"] == two["moved"] + two["dropped"] > 0
    assert 0 < two["largest_shift"] <= 1
    assert (slides["a"]["origin"], slides["a"]["pitch_from"], slides["a"]["size"]) == (
        [64, 64],
        "statistics",
        [50000] * 2,
    )


def test_check_writes_nothing(cli: Any, trident: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for more in ([], ["--out", tmp_path / "f"]):
        result = cli("import --check", trident, *more)
        assert result.code == 0, result
        assert "slides: 3 can be imported, of 3\n" in result.out
        assert sorted(tmp_path.rglob("*")) == before


def test_the_library_call_is_the_same(cli: Any, trident: Path, tmp_path: Path) -> None:
    import wsi2d

    report = wsi2d.import_features(trident, tmp_path / "python")
    assert [(slide.slide_id, slide.outcome, slide.patches) for slide in report.slides] == [
        (name, "done", 30) for name in "abc"
    ]
    assert cli("import", trident, "--out", tmp_path / "command").code == 0
    for name in "abc":
        one, other = (read_features(tmp_path / folder / f"{name}.h5") for folder in ("python", "command"))
        assert one.features.tobytes() == other.features.tobytes()
        assert (one.provenance, one.grid.origin) == (other.provenance, other.grid.origin)


def test_an_empty_slide_is_no_failure(cli: Any, peers: ModuleType, trident: Path, tmp_path: Path) -> None:
    peers.write_trident(trident, np.zeros(0), np.zeros(0), slide="blank")
    result = cli("import", trident, "--out", tmp_path / "f")
    assert result.code == 0, result
    assert "slides: 3 imported, 1 imported without patches, of 4" in result.out
    assert len(read_features(tmp_path / "f" / "blank.h5").grid) == 0


def test_clams_patches_are_given(cli: Any, clam: Path, tmp_path: Path) -> None:
    shutil.move(clam / "patches", tmp_path / "cut")
    assert "patches of unknown size" in cli("import --check", clam).out
    assert "patches of 256 px" in cli("import --check", clam, "--patches", tmp_path / "cut").out


# --- what their files do not say


def test_unknowns_are_filled_in_later(cli: Any, fails: Any, clam: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "f"]
    first = cli("import", clam, *out)
    assert "--encoder, --mpp is given, now or later" in first.err
    assert header(tmp_path / "f" / "a.h5").provenance.encoder is None
    before = times(tmp_path / "f")
    second = cli("import --encoder resnet50 --mpp 0.25", clam, *out)
    assert "slides: 3 imported, of 3" in second.out
    assert second.err == ""
    assert all(times(tmp_path / "f")[name] != before[name] for name in before)
    found = header(tmp_path / "f" / "a.h5")
    assert (found.provenance.encoder, found.geometry.mpp, found.provenance.slide_mpp) == ("resnet50", 0.25, 0.25)
    before = times(tmp_path / "f")
    for again in ("import --encoder resnet50 --mpp 0.25", "import"):
        assert "slides: 3 already finished, of 3" in cli(again, clam, *out).out
    assert times(tmp_path / "f") == before
    assert "says encoder resnet50, not uni" in fails("import --encoder uni", clam, *out)
    assert "says mpp 0.25, not 0.5" in fails("import --mpp 0.5", clam, *out)
    assert cli("import --encoder uni --mpp 0.5 --overwrite", clam, *out).code == 0
    assert header(tmp_path / "f" / "a.h5").provenance.encoder == "uni"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--mpp -1", "mpp: must be > 0"),
        ("--mpp nan", "mpp: must be > 0"),
        ("--patch-px 0", "patch_px must be > 0"),
        ("--encoder ' '", "encoder: is blank"),
    ],
)
def test_impossible_options(options: str, words: str, fails: Any, clam: Path, tmp_path: Path) -> None:
    assert words in fails(f"import {options}", clam, "--out", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_tools_own_words_stand(cli: Any, trident: Path, tmp_path: Path) -> None:
    result = cli("import --encoder conch", trident, "--out", tmp_path / "f")
    assert result.code == 1
    assert all("says encoder uni_v2, not conch" in error for error in failures(tmp_path / "f").values())


# --- what else reads the files


def test_inspect_says_what_is_unknown(cli: Any, clam: Path, peers: ModuleType, tmp_path: Path) -> None:
    assert cli("import", clam, "--out", tmp_path / "f").code == 0
    result = cli("inspect", tmp_path / "f" / "b.h5")
    assert result.code == 0, result
    said = " ".join(result.out.split())
    for words in (
        "encoder unknown, fingerprint unknown",
        "256 px at unknown µm/px",
        "imported from CLAM, pitch from stat",
    ):
        assert words in said
    result = cli("inspect", tmp_path / "f")
    assert (result.code, "differ" in result.out) == (0, False), result
    assert json.loads(cli("inspect --json", tmp_path / "f" / "a.h5").out)["files"][0]["encoder"] is None


@pytest.mark.slow
def test_exports_and_back(cli: Any, trident: Path, clam: Path, peers: ModuleType, tmp_path: Path) -> None:
    """What we write as TRIDENT's is TRIDENT's; what is not known cannot be written so."""
    assert cli("import", trident, "--out", tmp_path / "f").code == 0
    assert cli("export --to trident", tmp_path / "f", "--out", tmp_path / "t").code == 0
    assert cli("import", tmp_path / "t", "--out", tmp_path / "again").code == 0
    for name in "abc":
        one, other = (read_features(tmp_path / folder / f"{name}.h5") for folder in ("f", "again"))
        assert np.array_equal(one.features, other.features)
        assert np.array_equal(one.grid.index, other.grid.index)
        assert (one.provenance, one.grid.mpp) == (other.provenance, other.grid.mpp)
    assert cli("import", clam, "--out", tmp_path / "c").code == 0
    result = cli("export --to trident", tmp_path / "c", "--out", tmp_path / "tc")
    assert result.code == 1
    assert "does not say at which magnification its patches were cut" in result.err
    assert cli("export --to geojson", tmp_path / "c", "--out", tmp_path / "g").code == 0


@pytest.mark.slow
def test_places_in_micrometres_are_no_pixels(cli: Any, peers: ModuleType, tmp_path: Path) -> None:
    peers.write_stamp(tmp_path / "stamp", CELLS * 256, peers.features(30))
    assert cli("import", tmp_path / "stamp", "--out", tmp_path / "f").code == 0
    for target in ("geojson", "trident"):
        result = cli(f"export --to {target}", tmp_path / "f", "--out", tmp_path / target)
        assert result.code == 1
        assert "its places are known in micrometres" in result.err


# --- what must not be mixed


@pytest.mark.parametrize(
    "what",
    [
        "encoder",
        "known beside unknown",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mpp", "patch size", "width")),
    ],
)
def test_one_folder_holds_features_of_one_kind(
    what: str, cli: Any, fails: Any, peers: ModuleType, clam: Path, tmp_path: Path
) -> None:
    def write(root: str, slide: str, **how: Any) -> Path:
        dim = how.pop("dim", 5)
        peers.write_clam(tmp_path / root, CELLS * 256, peers.features(30, dim), slide=slide, **how)
        return tmp_path / root

    options, other = {
        "encoder": (("--encoder a --mpp 1", "--encoder b --mpp 1"), {}),
        "mpp": (("--encoder a --mpp 1", "--encoder a --mpp 0.5"), {}),
        "patch size": (("", ""), {"patch_px": 128}),
        "known beside unknown": (("--encoder a", ""), {}),
        "width": (("", ""), {"dim": 7}),
    }[what]
    words = {"encoder": "encoder b, not a", "mpp": "mpp 0.5, not 1.0", "patch size": "patch_px 128, not 256",
             "known beside unknown": "encoder unknown, not a", "width": "dim 7, not 5"}[what]  # fmt: skip
    out = ["--out", tmp_path / "f"]
    assert cli(f"import {options[0]}", write("one", "x"), *out).code == 0
    line = fails(f"import {options[1]}", write("two", "y", **other), *out)
    assert words in line
    assert "'x'" in line
    assert "give another --out" in line
    assert sorted(times(tmp_path / "f")) == ["x.h5"]


def test_a_slide_unlike_the_others_fails(cli: Any, peers: ModuleType, trident: Path, tmp_path: Path) -> None:
    peers.write_trident(trident, CELLS * 512, peers.features(30), slide="b", patch_level0=512, mags=(20, 10))
    for said in ("2 imported, 1 failed, of 3", "2 already finished, 1 failed, of 3"):
        result = cli("import", trident, "--out", tmp_path / "f")
        assert (result.code, f"slides: {said} " in result.out) == (1, True), result
        assert "has mpp 1.0, not 0.5 as most slides" in failures(tmp_path / "f")["b"]
        assert sorted(times(tmp_path / "f")) == ["a.h5", "c.h5"]


@pytest.mark.slow
def test_two_kinds_in_equal_parts(fails: Any, peers: ModuleType, trident: Path, tmp_path: Path) -> None:
    peers.write_trident(trident, CELLS * 512, peers.features(30), slide="b", patch_level0=512, mags=(20, 10))
    peers.write_trident(trident, CELLS * 512, peers.features(30), slide="d", patch_level0=512, mags=(20, 10))
    assert "as many slides have mpp" in fails("import", trident, "--out", tmp_path / "f")


def test_not_beside_our_own(fails: Any, cli: Any, trident: Path, small_study: Any, tmp_path: Path) -> None:
    shutil.copytree(small_study.features, tmp_path / "f")
    assert "encoder uni_v2, not random as" in fails("import", trident, "--out", tmp_path / "f")
    shutil.copy(small_study.features / f"{small_study.slide_ids[0]}.h5", tmp_path / "f" / "a.h5")
    assert "a.h5: was extracted by wsi2d" in fails("import", trident, "--out", tmp_path / "f")


# --- what goes wrong


def test_bad_slides_are_named_and_only_they_are_done_again(
    cli: Any, peers: ModuleType, trident: Path, tmp_path: Path
) -> None:
    folder = trident / peers.FOLDERS["trident"]
    (folder / "torn.h5").write_bytes((folder / "a.h5").read_bytes()[:700])
    out = ["--out", tmp_path / "f"]
    result = cli("import", trident, *out)
    assert result.code == 1
    assert "slides: 3 imported, 1 failed, of 4" in result.out
    assert list(failures(tmp_path / "f")) == ["torn"]
    assert f"failed: {failures(tmp_path / 'f')['torn']}" in result.err.splitlines()
    before = times(tmp_path / "f")
    again = cli("import", trident, *out)
    assert (again.code, times(tmp_path / "f")) == (1, before)
    assert "slides: 3 already finished, 1 failed, of 4" in again.out
    (folder / "torn.h5").write_bytes((folder / "a.h5").read_bytes())
    mended = cli("import", trident, *out)
    assert mended.code == 0
    assert "slides: 1 imported, 3 already finished, of 4" in mended.out
    assert not (tmp_path / "f" / "failures.csv").exists()


def test_names_of_files(cli: Any, peers: ModuleType, trident: Path, tmp_path: Path) -> None:
    """Of any language; what is no text, no file or hidden is named or passed over."""
    folder = trident / peers.FOLDERS["trident"]
    for name in (b"b\xff.h5", "Schnitt ü (1) – 中.h5".encode(), b".hidden.h5"):
        os.link(folder / "a.h5", os.fsencode(folder) + b"/" + name)
    os.mkfifo(folder / "pipe.h5")
    (folder / "folder.h5").mkdir()
    (folder / "gone.h5").symlink_to(tmp_path / "nowhere")
    result = cli("import", trident, "--out", tmp_path / "f")
    assert result.code == 1
    assert "slides: 4 imported, 1 failed, of 5" in result.out
    (error,) = failures(tmp_path / "f").values()
    assert "its name is no UTF-8; rename the file" in error
    assert (tmp_path / "f" / "Schnitt ü (1) – 中.h5").is_file()


def test_a_finished_file_that_is_damaged_is_written_again(cli: Any, trident: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "f"]
    assert cli("import", trident, *out).code == 0
    whole = (tmp_path / "f" / "b.h5").read_bytes()
    (tmp_path / "f" / "b.h5").write_bytes(whole[:900])
    (tmp_path / "f" / ".b.h5.partial").write_bytes(b"of a process that was killed")
    assert "slides: 1 imported, 2 already finished" in cli("import", trident, *out).out
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a.h5", "b.h5", "c.h5"]
    assert read_features(tmp_path / "f" / "b.h5").features.shape == (30, 5)


@pytest.mark.slow
def test_a_slide_that_fails_now_keeps_its_earlier_file(
    cli: Any, peers: ModuleType, trident: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "f"]
    assert cli("import", trident, *out).code == 0
    (trident / peers.FOLDERS["trident"] / "b.h5").write_bytes(b"torn")
    assert cli("import --overwrite", trident, *out).code == 1
    assert list(failures(tmp_path / "f")) == ["b"]
    assert read_features(tmp_path / "f" / "b.h5").features.shape == (30, 5)


def test_the_tools_files_are_never_written_over(
    cli: Any, fails: Any, peers: ModuleType, trident: Path, clam: Path, tmp_path: Path
) -> None:
    folder = trident / peers.FOLDERS["trident"]
    before = {path: path.read_bytes() for path in trident.rglob("*.h5")}
    for options in ("", "--overwrite", "--check"):
        line = fails(f"import {options}", trident, "--out", folder)
        assert "is no feature file of wsi2d; give another --out" in line
    assert "is no feature file of wsi2d" in fails("import --overwrite", clam, "--out", folder)
    assert {path: path.read_bytes() for path in trident.rglob("*.h5")} == before
    result = cli("import", trident, "--out", trident / "ours")
    assert result.code == 0, result
    assert "slides: 3 already finished" in cli("import", trident, "--out", trident / "ours").out, "ours are passed over"


def test_mistakes(fails: Any, trident: Path, tmp_path: Path) -> None:
    assert "give --out, or --check" in fails("import", trident)
    assert "does not exist" in fails("import", tmp_path / "nowhere", "--out", tmp_path / "f")
    (tmp_path / "taken").write_text("in the way")
    assert "give another --out" in fails("import", trident, "--out", tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    assert "no .h5 files" in fails("import", tmp_path / "empty", "--out", tmp_path / "f")


# --- real files


@pytest.mark.usefixtures("own_reader")
@pytest.mark.parametrize(("tool", "patches"), [("trident", 58), pytest.param("clam", 50, marks=pytest.mark.slow)])
def test_real_files(tool: str, patches: int, cli: Any, shared_dir: Path, tmp_path: Path) -> None:
    result = cli("import", shared_dir / "peers" / tool, "--out", tmp_path / "f")
    assert result.code == 0, result
    assert f"cmu-1-small-region: {patches} patches in {patches} cells, pitch 256 px" in result.out
    bag = read_features(tmp_path / "f" / "cmu-1-small-region.h5")
    (source,) = (path for path in (shared_dir / "peers" / tool).rglob("*.h5") if "patches" not in str(path))
    with h5py.File(source) as file:
        by_place = {tuple(xy): row for xy, row in zip(file["coords"][()].tolist(), file["features"][()], strict=True)}
    assert all(
        np.array_equal(by_place[tuple(xy)], row) for xy, row in zip(bag.grid.coords.tolist(), bag.features, strict=True)
    )
    assert (bag.provenance.level0_width, bag.provenance.level0_height) == (2220, 2967)


# --- several runs on one folder


def test_what_another_run_is_writing_is_left_to_it(cli: Any, trident: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    out.mkdir()
    (out / ".b.h5.partial").write_bytes(b"the other's")
    with Locks() as locks:
        assert locks.take(out / "b.h5") is not None
        result = cli("import", trident, "--out", out)
        assert result.code == 0
        assert "slides: 2 imported, 1 in progress elsewhere, of 3" in result.out
        assert "another run is writing 'b'; left to it" in result.err
        assert (out / ".b.h5.partial").read_bytes() == b"the other's"
        assert not (out / "b.h5").exists()
    assert "slides: 1 imported, 2 already finished, of 3" in cli("import", trident, "--out", out).out
    assert sorted(p.name for p in out.iterdir()) == ["a.h5", "b.h5", "c.h5"]


def test_a_half_file_that_another_began_meanwhile(
    cli: Any, trident: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two imports never write into one file: it would be published with rows of zeros."""
    out, half = tmp_path / "f", tmp_path / "f" / ".b.h5.partial"
    monkeypatch.setattr("wsi2d.features.imports.importing.remove", lambda path: None)
    out.mkdir()
    half.write_bytes(b"the other's")
    result = cli("import", trident, "--out", out)
    assert "slides: 2 imported, 1 in progress elsewhere, of 3" in result.out
    assert half.read_bytes() == b"the other's"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_made_meanwhile_is_not_made_again(
    trident: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out, made, take = tmp_path / "f", [0], Locks.take
    if overwrite:
        import_features(trident, out)
        made = [(out / "b.h5").stat().st_mtime_ns]

    def takes_its_time(self: Locks, path: Path) -> Any:
        if path.name == "b.h5" and len(made) == 1:
            made.append(0)
            import_features(trident, out, overwrite=overwrite)
            made.append(path.stat().st_mtime_ns)
        return take(self, path)

    monkeypatch.setattr(Locks, "take", takes_its_time)
    report = import_features(trident, out, overwrite=overwrite)
    assert {s.slide_id: s.outcome for s in report.slides}["b"] == "skipped"
    assert (out / "b.h5").stat().st_mtime_ns == made[2] > made[0]
    assert sorted(p.name for p in out.iterdir()) == ["a.h5", "b.h5", "c.h5"]


def test_what_killed_imports_left_is_cleared(cli: Any, trident: Path, tmp_path: Path) -> None:
    """Their locks, also of slides that are not asked for, and their half of a slide that is finished by now."""
    out = tmp_path / "f"
    assert cli("import", trident, "--out", out).code == 0
    with Locks() as locks:
        assert locks.take(out / "a.h5") is not None
        dead = {**json.loads(lock_path(out / "a.h5").read_text()), "pid": 2**22 + 1, "token": "d" * 32}
    for name in ("a", "gone"):
        lock_path(out / f"{name}.h5").write_text(json.dumps(dead))
    (out / ".a.h5.partial").write_bytes(b"half")
    assert "slides: 3 already finished, of 3" in cli("import", trident, "--out", out).out
    assert sorted(p.name for p in out.iterdir()) == ["a.h5", "b.h5", "c.h5"]


def test_a_name_that_is_too_long_for_a_feature_file(cli: Any, peers: ModuleType, tmp_path: Path) -> None:
    """The tool's file can bear it, and what is written here on the way to ours cannot."""
    for slide in ("a", "x" * 250):
        peers.write_trident(tmp_path / "trident", CELLS * 256, peers.features(30), slide=slide)
    result = cli("import", tmp_path / "trident", "--out", tmp_path / "f")
    assert result.code == 1
    assert "slides: 1 imported, 1 failed, of 2" in result.out
    (error,) = failures(tmp_path / "f").values()
    assert error.endswith(": its name has 250 bytes, and its feature file can bear 240; rename the file")


@pytest.mark.parametrize("what", ["features", "patches"])
def test_what_the_tool_has_made_anew_is_imported_again(
    cli: Any, peers: ModuleType, clam: Path, tmp_path: Path, what: str
) -> None:
    arguments = ["import", clam, *ENCODER, "--out", tmp_path / "f"]
    assert cli(*arguments).code == 0
    assert " already finished, of" in cli(*arguments).out
    file = next(path for path in sorted(clam.rglob("*.h5")) if (path.parent.name == "patches") == (what == "patches"))
    made = max(path.stat().st_mtime_ns for path in (tmp_path / "f").iterdir()) + 10**9
    os.utime(file, ns=(made, made))
    assert "slides: 1 imported, " in cli(*arguments).out
