"""Bad input that comes in the first week: one line with what, where and the remedy, or the others done; no traceback.

The warnings that Python shows by default are errors here: on a terminal they would be lines of somebody else's code.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

pytestmark = [pytest.mark.filterwarnings(f"error::{kind}Warning") for kind in ("User", "Runtime", "Future")]

Damage = Callable[[Path], object]

PATCHES = "--patch-px 64 --mpp 0.6 --min-tissue 0.7 --device cpu"
BROKEN = ("broken.svs", "unopenable.tiff", "unreadable.svs")
ROWS = 10**14  # of 8 numbers of 4 bytes: more than any machine can address, so that nothing is ever allocated
AGAIN = r"delete it.*extract|--overwrite"  # a finished file is skipped by `wsi2d extract` until it is out of the way
# What to do, what a value must be, or what there is instead.
REMEDY = r"; |did you mean|there are|must |should |give |missing|\bvalid|, not |line \d"


def assert_says(line: str, *words: str) -> None:
    """The line holds all of these (regular expressions) and a remedy, and is short enough to be read."""
    assert [w for w in (*words, REMEDY) if not re.search(w, line)] == [], line
    assert len(line) < 700, line


def failures(out: Path) -> dict[str, str]:
    """What `failures.csv` says, by slide; each of one line that begins with the slide."""
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        found = {row["slide_id"]: row["error"] for row in csv.DictReader(file)}
    for slide_id, error in found.items():
        assert error.startswith(f"slide '{slide_id}': "), error
        assert "\n" not in error
    return found


def overwritten(content: bytes) -> Damage:
    """A damage: other content."""
    return lambda path: path.write_bytes(content)


def cut(share: float) -> Damage:
    """A damage: only the first part of a file is there."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def blotted(start: int, length: int) -> Damage:
    """A damage: bytes that are all ones."""
    return lambda path: path.write_bytes(
        path.read_bytes()[:start] + b"\xff" * length + path.read_bytes()[start + length :]
    )


def edited(pattern: str, replacement: str, count: int = 1) -> Damage:
    """A damage: text that a regular expression finds is replaced."""

    def damage(path: Path) -> None:
        before = path.read_text("utf-8")
        after = re.sub(pattern, replacement, before, count=count, flags=re.MULTILINE)
        assert after != before
        path.write_text(after, "utf-8")

    return damage


@pytest.fixture
def study(finished_run: Path, tmp_path: Path) -> Path:
    """The YAML file of a study of this test's own that nobody has trained yet."""
    shutil.copytree(finished_run.parent, tmp_path / "study", ignore=shutil.ignore_patterns("run"))
    return tmp_path / "study" / "run.yaml"


@pytest.fixture
def survival(tiny: ModuleType, study: Path) -> Path:
    """The same with the survival task."""
    return tiny.write_config(study, yaml.safe_load(study.read_text()) | {"task": tiny.TASKS["survival"]})


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that was moved: its study stayed behind."""
    return Path(shutil.copytree(finished_run, tmp_path / "far" / "away" / "run"))


@pytest.fixture
def slide_folder(tmp_path: Path, write_slide: Any) -> Path:
    """A folder with a slide file of the study's first slide."""
    folder = tmp_path / "slide files"
    folder.mkdir()
    write_slide(folder / "s00x.tiff", np.full((640, 640, 3), (226, 150, 190), np.uint8), levels=2)
    return folder


def metrics_of(run: Path) -> dict[str, Any]:
    """The content of ``metrics.json``."""
    return json.loads((run / "metrics.json").read_text("utf-8"))


# --- extract


@pytest.mark.parametrize("where", ["nowhere", "folder without slides", "folder named as a slide"])
def test_extract_finds_no_slides(fails: Any, tmp_path: Path, where: str) -> None:
    folder = {"folder named as a slide": "x.svs"}.get(where, "slides")
    if where != "nowhere":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("no slide")
    line = fails("extract", tmp_path / folder, "--out", tmp_path / "f")
    assert_says(
        line,
        re.escape(str(tmp_path / folder)),
        "does not exist" if where == "nowhere" else r"none in.*looked for.*\.svs",
    )
    assert not (tmp_path / "f").exists()


def test_a_folder_named_as_a_slide_is_a_folder(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    (slides / "x.svs").mkdir()
    write_slides(slides / "y.svs", "b")
    result = cli(f"extract {PATCHES}", slides, "--out", tmp_path / "f")
    assert result.code == 0, result
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a.h5", "b.h5"]


def set_tag(path: Path, code: int, value: int) -> None:
    """Give a tag of a TIFF's first page another value."""
    import tifffile

    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[code].overwrite(value)


BAD_SLIDES: dict[str, tuple[str, Damage]] = {
    "cut to 10 bytes": ("tiff", lambda p: p.write_bytes(p.read_bytes()[:10])),
    "cut in the header": ("tiff", lambda p: p.write_bytes(p.read_bytes()[:196])),
    "cut at 60 percent": ("tiff", cut(0.6)),
    "cut at 99 percent": ("tiff", cut(0.99)),
    "zero bytes": ("svs", overwritten(b"")),
    "text": ("svs", overwritten(b"slide_id,case_id\n")),
    "web page": ("tif", overwritten(b"<html><body>Sign in to download this file</body></html>")),
    "tags overwritten": ("tiff", blotted(8, 200)),
    "enormous width": ("tiff", lambda p: set_tag(p, 256, 2**31 - 1)),
    "enormous tiles": ("tiff", lambda p: set_tag(p, 322, 2**30)),
    "tiles of no size": ("tiff", lambda p: set_tag(p, 323, 0)),
    "unknown compression": ("tiff", lambda p: set_tag(p, 259, 12345)),
    "pixels overwritten": ("tiff", blotted(384, 34000)),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SLIDES)
def test_bad_slide_among_good_ones(cli: Any, write_slides: Any, tmp_path: Path, what: str) -> None:
    suffix, damage = BAD_SLIDES[what]
    slides = write_slides(tmp_path / "slides", "a", "bad", "z")
    damage(slides / "bad.tiff")
    (slides / "bad.tiff").rename(slides / f"bad.{suffix}")
    result = cli(f"extract {PATCHES}", slides, "--out", tmp_path / "f")
    assert result.code == 1, result
    assert "2 done" in result.out
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a.h5", "failures.csv", "z.h5"]
    assert list(failures(tmp_path / "f")) == ["bad"]
    assert [line for line in result.err.splitlines() if not line.startswith("warning: ")] == [
        f"failed: {failures(tmp_path / 'f')['bad']}"
    ]
    assert_says(failures(tmp_path / "f")["bad"], "re-copy|re-export|convert")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_slides_among_good_ones(cli: Any, write_slides: Any, tmp_path: Path, seed: int) -> None:
    """Bytes changed anywhere: a slide may still be a slide, and is a line otherwise."""
    slides = write_slides(tmp_path / "slides", "a", "z", *"bcdef")
    rng = np.random.default_rng(seed)
    for name in "bcdef":
        content = np.frombuffer((slides / f"{name}.tiff").read_bytes(), np.uint8).copy()
        end = len(content) if name in "bc" else 384  # in the others only the header's
        content[rng.integers(0, end, 8)] = rng.integers(0, 256, 8)
        (slides / f"{name}.tiff").write_bytes(content.tobytes())
    result = cli(f"extract {PATCHES} --slide-mpp 0.5", slides, "--out", tmp_path / "f")
    assert result.code in {0, 1}, result
    bad = failures(tmp_path / "f") if result.code else {}
    assert set("az") <= {p.stem for p in (tmp_path / "f").glob("*.h5")}
    assert set(bad) | {p.stem for p in (tmp_path / "f").glob("*.h5")} == set("abcdefz")
    for error in bad.values():
        assert_says(error, "re-copy|re-export|convert")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_of_the_shared_folder(
    cli: Any, write_slides: Any, shared_dir: Path, tmp_path: Path, name: str
) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    result = cli(f"extract {PATCHES}", slides, shared_dir / "slides" / name, "--out", tmp_path / "f")
    assert result.code == 1, result
    assert "1 done, 0 already finished, 1 failed" in result.out
    (error,) = failures(tmp_path / "f").values()
    assert_says(error, Path(name).stem, "re-copy|re-export|--slide-mpp")


def test_real_slide_without_a_pixel_size(cli: Any, shared_dir: Path, tmp_path: Path) -> None:
    command = ["extract", shared_dir / "slides" / "kidney-48-5.tif", "--out", tmp_path / "f"]
    result = cli(*command)
    assert result.code == 1, result
    assert_says(failures(tmp_path / "f")["kidney-48-5"], "no pixel size", "--slide-mpp", "--cohort")
    assert cli(*command, "--slide-mpp", "0.5").code == 0
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["kidney-48-5.h5"]


def test_a_slide_without_tissue_has_an_empty_feature_file(cli: Any, write_slide: Any, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "blank.tiff", np.full((600, 700, 3), 244, np.uint8))
    result = cli(f"extract {PATCHES}", tmp_path / "slides", "--out", tmp_path / "f")
    assert result.code == 0, result
    assert result.err.startswith("warning: slide 'blank': no tissue found")
    assert not (tmp_path / "f" / "failures.csv").exists()
    with h5py.File(tmp_path / "f" / "blank.h5") as file:
        assert file.attrs["complete"]
        assert file["features"].shape[0] == file["coords"].shape[0] == file["index"].shape[0] == 0


@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
def test_extract_into(fails: Any, write_slides: Any, tmp_path: Path, below: bool) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    (tmp_path / "taken").write_text("in the way")
    out = tmp_path / "taken" / "f" if below else tmp_path / "taken"
    assert_says(fails(f"extract {PATCHES}", slides, "--out", out), re.escape(str(out)), "give another --out")


@pytest.mark.parametrize("value", ["0", "nan", "-0.5", "inf"])
def test_impossible_pixel_size(fails: Any, write_slides: Any, tmp_path: Path, value: str) -> None:
    """No slide could go on, so nothing begins."""
    slides = write_slides(tmp_path / "slides", "a", "b")
    line = fails(f"extract {PATCHES} --slide-mpp={value}", slides, "--out", tmp_path / "f")
    assert_says(line, "--slide-mpp", "must be|should be|greater than 0|> 0")
    assert not list(tmp_path.rglob("*.h5"))


# --- features


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """A damage: a dataset of another content."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            values = change(file[name][()])
            del file[name]
            file[name] = values

    return damage


def changed_in(name: str, place: Any, value: float) -> Damage:
    """A damage: a number in a dataset."""

    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return replaced(name, change)


def without(name: str) -> Damage:
    """A damage: a dataset is gone."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]

    return damage


def declared_enormous(*names: str) -> Damage:
    """A damage: datasets that say they have more rows than fit into memory, and hold none of them."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name in names:
                width, dtype = file[name].shape[1], file[name].dtype
                del file[name]
                file.create_dataset(name, (ROWS, width), dtype, chunks=(1024, width))

    return damage


def grid_shape(rows: int, cols: int) -> Damage:
    """A damage: the grid is said to be of another shape."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs["grid_shape"] = np.array([rows, cols], np.int32)

    return damage


def of_something_else(path: Path) -> None:
    """A damage: an HDF5 file of another program."""
    path.unlink()
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((9, 8), np.float32)
        file["coords"] = np.ones((9, 2), int)


def far_away(path: Path) -> None:
    """A damage: a patch at the far end of a grid larger than any slide."""
    grid_shape(2**24, 2**24)(path)
    changed_in("index", -1, 2**24 - 1)(path)


BAD_FEATURES: dict[str, tuple[Damage, str]] = {
    "cut in half": (cut(0.5), "delete it and extract"),
    "zero bytes": (overwritten(b""), "delete it and extract"),
    "text": (overwritten(b"no features\n"), "delete it and extract"),
    "of something else": (of_something_else, "extract"),
    "too few rows": (replaced("features", lambda v: v[:-2]), AGAIN),
    "too few coords": (replaced("coords", lambda v: v[:-2]), AGAIN),
    "index outside the grid": (changed_in("index", -1, 77), AGAIN),
    "negative index": (changed_in("index", -1, -1), AGAIN),
    "grid too small": (grid_shape(1, 1), AGAIN),
    "grid enormous": (far_away, AGAIN),
    "features 1-D": (replaced("features", lambda v: v[:, 0]), AGAIN),
    "features 3-D": (replaced("features", lambda v: v[..., None]), AGAIN),
    "features of words": (replaced("features", lambda v: np.full(v.shape, b"x")), AGAIN),
    "features enormous": (declared_enormous("features"), AGAIN),
    "all enormous": (declared_enormous("features", "coords", "index"), AGAIN),
    "no features": (without("features"), AGAIN),
    "no coords": (without("coords"), AGAIN),
    "no index": (without("index"), AGAIN),
    "NaN": (changed_in("features", (1, 1), np.nan), AGAIN),
    "infinity": (changed_in("features", (1, 1), np.inf), AGAIN),
}


@pytest.mark.parametrize("what", BAD_FEATURES)
def test_train_on_bad_features(fails: Any, study: Path, what: str) -> None:
    damage, remedy = BAD_FEATURES[what]
    damage(study.parent / "features" / "s03x.h5")
    assert_says(fails("train", study), "s03x", remedy)


@pytest.mark.parametrize("what", BAD_FEATURES)
def test_predict_from_bad_features(fails: Any, finished_run: Path, tmp_path: Path, what: str) -> None:
    damage, remedy = BAD_FEATURES[what]
    shutil.copytree(finished_run.parent / "features", tmp_path / "new")
    damage(tmp_path / "new" / "s03x.h5")
    assert_says(fails("predict", finished_run, tmp_path / "new", "--out", tmp_path / "out.csv"), "s03x", remedy)
    assert not (tmp_path / "out.csv").exists()


OTHER_FEATURES = {
    "encoder": ({"encoder": "uni"}, "encoder uni, not tiny"),
    "weights of the encoder": ({"encoder_hash": "beef"}, "encoder_hash beef, not 0123"),
    "mpp": ({"mpp": 1.0}, r"mpp 1\.0, not 0\.5"),
    "patch size": ({"patch_px": 64}, "patch_px 64, not 128"),
    "overlap": ({"overlap_px": 32}, "overlap_px 32, not 0"),
    "width": ({}, "dim 5, not 8"),
}


@pytest.mark.parametrize("what", OTHER_FEATURES)
@pytest.mark.parametrize("command", ["train", "predict"])
def test_features_made_otherwise(
    fails: Any, tiny: ModuleType, finished_run: Path, study: Path, command: str, what: str
) -> None:
    change, words = OTHER_FEATURES[what]
    folder = study.parent / "features"
    tiny.write_features(folder, "s03x", np.ones((4, 5 if what == "width" else tiny.DIM), np.float32), **change)
    out = study.with_name("out.csv")
    line = fails("train", study) if command == "train" else fails("predict", finished_run, folder, "--out", out)
    assert_says(line, "s03x", words, "extract (it|all slides) alike")
    assert not out.exists()
    assert not study.with_name("run").exists()


def test_predict_from_nowhere(fails: Any, finished_run: Path, tmp_path: Path) -> None:
    line = fails("predict", finished_run, tmp_path / "nowhere", "--out", tmp_path / "out.csv")
    assert_says(line, re.escape(str(tmp_path / "nowhere")), "extract slides into it first")


def test_train_says_what_it_does_with_slides_without_tissue(cli: Any, tiny: ModuleType, study: Path) -> None:
    tiny.write_features(study.parent / "features", "s05x", np.zeros((0, tiny.DIM), np.float32))
    result = cli("train", study)
    assert result.code == 0, result
    assert "warning: 1 slides have no tissue and are left out: s05x\n" in result.err
    assert "note: 1 slides without tissue are left out: s05x" in " ".join(result.out.split())
    assert metrics_of(study.with_name("run"))["notes"] == ["1 slides without tissue are left out: s05x"]


def test_train_where_a_side_has_no_tissue(fails: Any, tiny: ModuleType, study: Path) -> None:
    for name in ("s10x", "s11x"):
        tiny.write_features(study.parent / "features", name, np.zeros((0, tiny.DIM), np.float32))
    assert_says(fails("train", study), "fold 0", "val side", "splits|extract|folds")


# --- cohort


BAD_COHORTS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no slide column": (edited("^slide_id", "slide"), ("no column 'slide_id'", "did you mean 'slide'")),
    "no label column": (edited(",label,", ",labels,"), ("no column 'label'", "did you mean 'labels'")),
    "no patient column": (edited(",case_id,", ",,"), ("no column 'case_id'", "case_column: slide_id")),
    "slide twice": (edited("^(s03x.*)$", r"\1\n\1"), ("slide 's03x'", "more than once", "keep one row")),
    "slide twice by suffix": (edited("^s04x", "s03x.svs"), ("slide 's03x'", "more than once", "keep one row")),
    "unknown label": (edited("^(s03x.*),b,", r"\1,c,"), ("label 'c'", "a, b", "task.classes|add|leave")),
    "one label everywhere": (edited(",b,", ",a,", 0), ("'a' everywhere", "two classes are needed")),
    "blank slide": (edited("^s03x", ""), ("no 'slide_id'", "line 7", "fill them in or leave them out")),
    "blank patient": (edited("^s03x,p03", "s03x,"), ("no 'case_id'", "line 7", "fill them in or leave them out")),
    "blank label": (edited("^(s03x.*),b,", r"\1,,"), ("no 'label'", "line 7", "fill them in or leave them out")),
    "empty file": (overwritten(b""), ("empty|no columns|No columns", "give|slide_id|columns")),
    "binary file": (overwritten(bytes(range(256)) * 9), ("not a readable CSV", "give|save|UTF-8|utf-8")),
    "spreadsheet": (overwritten(b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(128, 256))), ("not a readable CSV",)),
    "only a header": (edited(r"\n[\s\S]*", "\n"), ("has no rows",)),
    "a row too long": (edited("^(s03x.*)$", r"\1,more"), ("line 7", "not a readable CSV")),
    "all rows too long": (edited("^(s.*[0-9].*)$", r"\1,more", 0), ("more fields than its header", "name every")),
    "a row too short": (edited("^s03x.*$", "s03x,p03"), ("no 'label'", "line 7", "fill them in or leave them out")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_COHORTS)
def test_train_on_a_bad_cohort(fails: Any, study: Path, what: str) -> None:
    damage, words = BAD_COHORTS[what]
    cohort = study.with_name("cohort.csv")
    damage(cohort)
    classes = ["--set", "task.classes=[a, b]"] if what == "unknown label" else []
    assert_says(fails("train", study, *classes), re.escape(f"cohort {cohort}: "), *words)
    assert not study.with_name("run").exists()


@pytest.mark.parametrize("what", [w for w in BAD_COHORTS if w not in {"unknown label", "no patient column"}])
def test_splits_of_a_bad_cohort(fails: Any, study: Path, what: str) -> None:
    damage, words = BAD_COHORTS[what]
    cohort = study.with_name("cohort.csv")
    damage(cohort)
    line = fails("splits make --label label --folds 2", cohort, "--out", study.with_name("made"))
    assert_says(line, re.escape(f"cohort {cohort}: "), *words)
    assert not study.with_name("made").exists()


def test_a_class_that_no_slide_has(fails: Any, study: Path) -> None:
    assert_says(fails("train", study, "--set", "task.classes=[a, b, c]"), "cohort", "'c'", "task.classes|leave it out")
    assert not study.with_name("run").exists()


BAD_SURVIVAL: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "time no number": (edited("^(s03x.*),8.0,", r"\1,8 months,"), ("line 7", "months '8 months'", "a number >= 0")),
    "negative time": (edited("^(s03x.*),8.0,", r"\1,-8,"), ("line 7", "months '-8'", "a number >= 0")),
    "blank time": (edited("^(s03x.*),8.0,", r"\1,,"), ("line 7", "no 'months'", "fill them in or leave them out")),
    "infinite time": (edited("^(s03x.*),8.0,", r"\1,inf,"), ("line 7", "months 'inf'", "a number >= 0")),
    "no event": (edited(",dead$", ",alive", 0), ("no row has status=dead", "holds alive")),
    "other value for the event": (edited(",dead$", ",deceased", 0), ("no row has status=dead", "alive, deceased")),
    "a third value": (edited("^(s03x.*),dead$", r"\1,lost"), ("must hold two values", "alive, dead, lost")),
    "blank event": (edited("^(s03x.*),dead$", r"\1,"), ("line 7", "no 'status'", "fill them in or leave them out")),
    "no time column": (edited(",months,", ",month,"), ("no column 'months'", "did you mean 'month'")),
    "no event column": (edited(",status$", ",vital_status"), ("no column 'status'", "did you mean 'vital_status'")),
    "one patient, two times": (edited("^(s00y.*),30.0,", r"\1,31,"), ("patient 'p00'", "different times or events")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SURVIVAL)
@pytest.mark.parametrize("command", ["train", "splits make"])
def test_bad_cohort_for_survival(fails: Any, survival: Path, command: str, what: str) -> None:
    damage, words = BAD_SURVIVAL[what]
    cohort, made = survival.with_name("cohort.csv"), survival.with_name("made")
    damage(cohort)
    options = ["--time", "months", "--event", "status=dead", "--folds", 2, "--out", made]
    line = fails("train", survival) if command == "train" else fails(command, cohort, *options)
    assert_says(line, re.escape(f"cohort {cohort}: "), *words)
    assert not made.exists()
    assert not survival.with_name("run").exists()


def test_no_patient_column_that_is_declared(cli: Any, fails: Any, study: Path) -> None:
    edited(",case_id,", ",other,")(study.with_name("cohort.csv"))
    made = ["splits", "make", study.with_name("cohort.csv"), "--label", "label", "--folds", 2]
    made += ["--out", study.with_name("splits of slides")]
    assert_says(fails(*made), "no column 'case_id'", "--case-column slide_id")
    assert cli(*made, "--case-column", "slide_id").code == 0
    command = ["train", study, "--set", f"data.splits={study.with_name('splits of slides')}"]
    assert_says(fails(*command), "no column 'case_id'", "data.case_column: slide_id")
    result = cli(*command, "--set", "data.case_column=slide_id", "--set", "training.epochs=1")
    assert result.code == 0, result
    assert metrics_of(study.with_name("run"))["cases"] == 14


def test_a_slide_without_features(cli: Any, fails: Any, study: Path) -> None:
    (study.parent / "features" / "s05x.h5").unlink()
    line = fails("train", study)
    assert_says(line, re.escape(str(study.parent / "features")), "1 of 14", "'s05x'", "data.missing_features: skip")
    assert not study.with_name("run").exists()
    result = cli("train", study, "--set", "data.missing_features=skip", "--set", "training.epochs=1")
    assert result.code == 0, result
    assert "warning: 1 slides have no features and are left out: s05x\n" in result.err
    assert metrics_of(study.with_name("run"))["notes"] == ["1 slides without features are left out: s05x"]


# --- splits


PATIENTS_A = ["p00", "p04"]  # of fold 1's train side, all of class a; p00 died, p04 did not
TEST_1 = ["p02", "p03", "p08", "p09", "p10", "p11"]


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ({"train": ["p00", "p99"]}, ("train side", "'p99'", "case_id or slide_id")),
        ({"val": ["p06", "P07"]}, ("val side", "'P07'", "case_id or slide_id")),
        ({"test": ["p02", "s03z"]}, ("test side", "'s03z'", "case_id or slide_id")),
        ({"train": []}, ("train side is empty", "needs train, val and test")),
        ({"val": []}, ("val side is empty", "needs train, val and test")),
        ({"val": [], "test": []}, ("side is empty", "needs train, val and test")),
        ({"train": ["p00", "p01", "p04", "p09"]}, ("1 patients are on two sides", "'p09'", "mend the splits")),
        ({"train": ["s00x", "s01x", "p04"], "val": ["s00y", "p07"]}, ("1 patients", "'p00'", "mend the splits")),
        ({"train": PATIENTS_A}, ("train side has no slide of class 'b'", "splits|folds")),
        ({"train": ["p00"], "val": [], "test": [*TEST_1, "p01"]}, ("val side is empty",)),
        ({"train": ["p00"], "test": [], "val": ["p00", "p01"]}, ("every patient.*held out", "mend the splits")),
        ({"train": ["p00"], "test": []}, ("inner_val|mend",)),
    ],
    ids=["unknown patient", "unknown by case", "unknown slide", "empty train", "empty val", "only train",
         "patient on two sides", "patient on two sides by slides", "one class in train", "empty val beside a test",
         "all held out", "too few for an inner val"],
)  # fmt: skip
def test_bad_fold(
    fails: Any, tiny: ModuleType, study: Path, sides: dict[str, list[str]], words: tuple[str, ...]
) -> None:
    """The second fold is bad; it is told before the first one has been trained."""
    fold = {"train": ["p00", "p01", "p04", "p05"], "val": ["p06", "p07"], "test": TEST_1}
    tiny.write_fold(study.parent / "splits", 1, **(fold | sides))
    assert_says(fails("train", study), "fold 1", *words)
    assert not list(study.parent.rglob("model.safetensors")), "nothing is trained before all folds are checked"


def test_no_event_on_the_train_side(fails: Any, tiny: ModuleType, survival: Path) -> None:
    tiny.write_fold(survival.parent / "splits", 1, train=["p04"], val=["p06", "p07"], test=TEST_1)
    assert_says(fails("train", survival), "fold 1", "no event", "train", "fewer folds or other splits")
    assert not list(survival.parent.rglob("model.safetensors")), "nothing is trained before all folds are checked"


BAD_SPLITS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "empty folder": (lambda p: [f.unlink() for f in p.glob("*")], (r"splits_0\.csv", "wsi2d splits make")),
    "other files": (lambda p: [f.rename(f"{f}.bak") for f in p.glob("*")], (r"splits_0\.csv", "wsi2d splits make")),
    "a file": (lambda p: [shutil.rmtree(p), p.write_text("train,val,test\n")], ("fold 0", "side is empty")),
    "no train column": (lambda p: edited("train", "training")(p / "splits_1.csv"), (r"splits_1\.csv", "'train'")),
    "no val column": (lambda p: edited(",val", ",valid")(p / "splits_1.csv"), (r"splits_1\.csv", "'val'")),
    "empty file": (lambda p: overwritten(b"")(p / "splits_1.csv"), (r"splits_1\.csv", "not a readable")),
    "binary file": (lambda p: overwritten(b"\xff\xfe\x00")(p / "splits_1.csv"), (r"splits_1\.csv", "not a readable")),
    "only a header": (lambda p: overwritten(b",train,val,test\n")(p / "splits_1.csv"), ("fold 1", "side is empty")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SPLITS)
def test_bad_splits(fails: Any, study: Path, what: str) -> None:
    damage, words = BAD_SPLITS[what]
    damage(study.parent / "splits")
    assert_says(fails("train", study), *words)
    assert not study.with_name("run").exists()


@pytest.mark.parametrize("select", ["loss", "metric"])
@pytest.mark.parametrize("side", ["val", "test"])
@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_metric_that_a_side_does_not_define(
    cli: Any, tiny: ModuleType, study: Path, survival: Path, kind: str, side: str, select: str
) -> None:
    """One class, or no event, in val or in test: the fold is trained, and what is not defined is a dash."""
    alone = {"val": ["p04"], "test": ["p09"]} if kind == "survival" else {"val": ["p06"], "test": ["p08", "p10"]}
    if kind == "classification":
        tiny.write_config(study, yaml.safe_load(study.read_text()) | {"task": tiny.TASKS[kind]})
    sides = {"train": ["p00", "p01", "p05"], "val": ["p06", "p07"], "test": TEST_1} | {side: alone[side]}
    tiny.write_fold(study.parent / "splits", 1, **sides)
    result = cli("train", study, "--set", "training.epochs=1", "--set", f"training.select={select}")
    assert result.code == 0, result
    name = "auc" if kind == "classification" else "c_index"
    values = metrics_of(study.with_name("run"))["metrics"][name]
    assert values["per_fold"][0] is not None
    assert (values["per_fold"][1] is None) == (side == "test")
    of_folds = result.out.partition("each fold")[2]
    row = next(line.split() for line in of_folds.splitlines() if line.strip().startswith(f"{name} "))
    assert ("–" in row) == (side == "test"), result.out
    assert "nan" not in result.out.lower()


# --- configuration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainning": {"epochs": 3}}, ("trainning: unknown key", "did you mean 'training'")),
        ({"training": {"learning_rate": 0.1}}, ("training.learning_rate: unknown key", "there are|did you mean")),
        ({"data": {"feature": "f"}}, ("data.feature: unknown key", "did you mean 'features'")),
        ({"model": {"name": "mamba2d-mil", "dims": 8}}, ("model", "dims: unknown key", "did you mean 'dim'")),
        ({"training": {"epochs": "ten"}}, ("training.epochs", "valid integer", "'ten'")),
        ({"training": [1, 2]}, ("training", "dictionary|mapping", r"\[1, 2\]")),
        ({"data": ["cohort.csv"]}, ("data", "dictionary|mapping")),
        ({"data": {"cohort": None}}, ("data.cohort", "path", "None")),
        ({"out": None}, ("out", "path", "None")),
        ({"task": None}, ("task", "dictionary|mapping|missing|kind")),
        ({"training": {"epochs": 0}}, ("training.epochs", "greater than or equal to 1", "got 0")),
        ({"training": {"lr": -1}}, ("training.lr", "greater than 0", "got -1")),
        ({"model": {"name": "abmil", "dropout": 1.5}}, ("model", "dropout", "less than 1", r"got 1\.5")),
        ({"model": {"name": "mamba2d-mil", "dropout": 1.5}}, ("model", "dropout", "less than 1", r"got 1\.5")),
        ({"evaluation": {"confidence": 2}}, ("evaluation.confidence", "less than 1", "got 2")),
        ({"task": {"bins": 4}}, ("task.bins: unknown key",)),
        ({"model": {"name": "mamba3d"}}, ("'mamba3d' is unknown", "did you mean 'mamba2d-mil'")),
        ({"model": {"name": 3}}, ("model", "'3' is unknown", "there are|did you mean")),
        ({"model": ["abmil"]}, ("model", "dictionary|mapping|name")),
        ({"training": {"loss": "focal"}}, ("loss 'focal' is unknown", "there are|did you mean", "cross-entropy")),
        ({"training": {"loss": {"name": "cross-entropy", "alpha": 1}}}, ("alpha: unknown key", "class_weights")),
        ({"preset": "publish"}, ("preset 'publish': unknown", "published")),
        ({"preset": {"name": "demo"}}, ("preset", "unknown|string", "demo")),
    ],
    ids=["unknown key at the top", "unknown key", "misspelt key", "unknown key of the model", "string for integer",
         "list for section", "list for data", "null for path", "null for out", "null for task", "no epochs",
         "negative lr", "dropout of abmil", "dropout of mamba2d-mil", "confidence of 2", "key of another section",
         "unknown model", "number for model", "list for model", "unknown loss", "option of another loss",
         "unknown preset", "section for preset"],
)  # fmt: skip
def test_bad_configuration(
    fails: Any, tiny: ModuleType, study: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    tiny.write_config(study, yaml.safe_load(study.read_text()), **change)
    assert_says(fails("train", study), *words)
    assert not study.with_name("run").exists()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "regression", "label": "label"}, ("task.kind: 'regression' is unknown", "classification, survival")),
        ({"label": "label"}, ("task.kind: missing", "classification, survival")),
        ({"kind": "classification"}, ("task.label: missing",)),
        ({"kind": "survival", "time": "months", "event": "status=dead", "bins": 1}, ("task.bins", "or equal to 2")),
        ({"kind": "survival", "time": "months", "event": "status"}, ("task.event|event", "COLUMN=VALUE")),
        ({"kind": "classification", "label": "label", "classes": ["a"]}, ("task.classes|classes", "at least two")),
    ],
    ids=["unknown kind", "no kind", "no label", "one bin", "event without a value", "one class"],
)  # fmt: skip
def test_bad_task(fails: Any, study: Path, task: dict[str, Any], words: tuple[str, ...]) -> None:
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"task": task}))
    assert_says(fails("train", study), re.escape(f"config {study}: "), *words)


@pytest.mark.parametrize("section", ["out", "data", "task"])
def test_missing_section(fails: Any, study: Path, section: str) -> None:
    values = yaml.safe_load(study.read_text())
    del values[section]
    study.write_text(yaml.safe_dump(values))
    assert_says(fails("train", study), re.escape(f"config {study}: {section}: missing"))


BAD_YAML: dict[str, tuple[Damage, str]] = {
    "no YAML": (overwritten(b"out: run\ndata: [cohort\n"), "not valid YAML.*line 3"),
    "tabs": (overwritten(b"out: run\ndata:\n\tcohort: c.csv\n"), "not valid YAML.*line 3"),
    "binary": (overwritten(b"\xff\xfe\x00\x80" * 9), "not valid YAML"),
    "control characters": (overwritten(b"out: \x00\x01\n"), "not valid YAML"),
    "a list": (overwritten(b"- out: run\n"), "must be a mapping.*got list"),
    "empty": (overwritten(b""), "must be a mapping"),
    "a folder": (lambda path: [path.unlink(), path.mkdir()], "Is a directory.*give the path of a YAML file"),
    "numbers for keys": (overwritten(b"3: x\nout: run\n"), "3: unknown key|data: missing"),
    "a date for a path": (overwritten(b"out: 2024-01-01\ndata: {}\n"), "out|data"),
    "the cohort": (lambda path: shutil.copyfile(path.with_name("cohort.csv"), path), "mapping|not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_YAML)
def test_file_that_is_no_configuration(fails: Any, study: Path, what: str) -> None:
    damage, words = BAD_YAML[what]
    damage(study)
    assert_says(fails("train", study), re.escape(f"config {study}: "), words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("=3", ("'=3'", "must be key=value")),
        ("epochs=3", ("epochs: unknown key",)),
        ("training.epochs.more=3", ("training.epochs.more=3", "'epochs' is a value, not a section")),
        ("training.epochs=[1", ("not valid YAML",)),
        ("training.epochs=", ("training.epochs", "valid integer")),
        ("data=3", ("data", "dictionary|mapping")),
        ("training=3", ("training", "dictionary|mapping")),
        ("task.kind=regression", ("task.kind", "'regression' is unknown")),
        ("out=", ("out", "path")),
    ],
)
def test_bad_override(fails: Any, study: Path, override: str, words: tuple[str, ...]) -> None:
    assert_says(fails("train", study, "--set", override), *words)


@pytest.mark.parametrize(
    ("change", "override", "found"),
    [
        ({"model": "abmil"}, "model.dim=8", lambda kept: (kept["model"]["name"], kept["model"]["dim"]) == ("abmil", 8)),
        (
            {"training": {"loss": "cross-entropy"}},
            "training.loss.class_weights=balanced",
            lambda kept: kept["training"]["loss"] == {"name": "cross-entropy", "class_weights": "balanced"},
        ),
    ],
    ids=["model", "loss"],
)
def test_a_name_alone_takes_options_on_the_line(
    cli: Any, tiny: ModuleType, study: Path, change: dict[str, Any], override: str, found: Callable[[Any], bool]
) -> None:
    values = {**yaml.safe_load(study.read_text()), "model": {"name": "abmil", "dim": 4, "attention_dim": 4}}
    values["training"] |= {"epochs": 1} | change.pop("training", {})
    study.write_text(yaml.safe_dump(values | change))
    result = cli("train", study, "--set", override)
    assert result.code == 0, result
    assert found(yaml.safe_load((study.parent / "run" / "config.yaml").read_text()))


# --- run folder


COMMANDS = {
    "evaluate": lambda run, beside: ["evaluate", run],
    "predict": lambda run, beside: ["predict", run, beside / "features", "--out", run.parent / "out.csv"],
    "heatmap": lambda run, beside: ["heatmap", run, "s00x", "--out", run.parent / "out.png"],
    "receptive-field": lambda run, beside: ["receptive-field", run, "--out", run.parent / "out.png"],
}
NO_RUNS: dict[str, Damage] = {
    "no run": lambda path: [path.mkdir(), (path / "thesis.txt").write_text("words")],
    "empty": lambda path: path.mkdir(),
    "nowhere": lambda path: None,
    "a file": lambda path: path.write_text("words"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", NO_RUNS)
def test_folder_that_is_no_run(fails: Any, finished_run: Path, tmp_path: Path, what: str, command: str) -> None:
    NO_RUNS[what](tmp_path / "run")
    line = fails(*COMMANDS[command](tmp_path / "run", finished_run.parent))
    assert_says(line, re.escape(f"run {tmp_path / 'run'}: "), "give the folder that `wsi2d train` wrote")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("trained", [0, 1, 2], ids=["no fold", "one fold", "all folds but not joined"])
def test_unfinished_run(
    fails: Any, finished_run: Path, run: Path, slide_folder: Path, trained: int, command: str
) -> None:
    for name in ("predictions.csv", "metrics.json"):
        (run / name).unlink()
    for fold in range(trained, 2):
        shutil.rmtree(run / f"fold-{fold}")
    more = ["--slides", slide_folder] if command == "heatmap" else []
    line = fails(*COMMANDS[command](run, finished_run.parent), *more)
    assert_says(line, re.escape(f"run {run}: "), "train.* to the end")


def save_weights(path: Path, *, keep_card: bool) -> None:
    """Put weights of something else in a model's place, with or without its card."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        card = file.metadata()
    save_file({"layer.weight": torch.ones(2, 2)}, path, card if keep_card else None)


BAD_MODELS: dict[str, Damage] = {
    "cut": cut(0.5),
    "zero bytes": overwritten(b""),
    "text": overwritten(b"no weights " * 9),
    "a folder": lambda path: [path.unlink(), path.mkdir()],
    "header enormous": overwritten(b"\xff" * 64),
    "other weights": lambda path: save_weights(path, keep_card=True),
    "weights of another program": lambda path: save_weights(path, keep_card=False),
}


@pytest.mark.parametrize("command", ["predict", "heatmap"])
@pytest.mark.parametrize("what", BAD_MODELS)
def test_damaged_model(fails: Any, finished_run: Path, run: Path, slide_folder: Path, what: str, command: str) -> None:
    for fold in (0, 1):
        BAD_MODELS[what](run / f"fold-{fold}" / "model.safetensors")
    more = ["--slides", slide_folder] if command == "heatmap" else []
    line = fails(*COMMANDS[command](run, finished_run.parent), *more)
    assert_says(line, re.escape(str(run)), r"fold-\d/model\.safetensors", "train")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["cut", "zero bytes", "binary", "other words"])
def test_damaged_configuration_of_a_run(fails: Any, finished_run: Path, run: Path, what: str, command: str) -> None:
    damages = {
        "cut": cut(0.1), "zero bytes": overwritten(b""), "binary": overwritten(b"\xff\x00" * 99),
        "other words": edited("epochs", "epoch"),
    }  # fmt: skip
    damages[what](run / "config.yaml")
    assert_says(fails(*COMMANDS[command](run, finished_run.parent)), re.escape(f"config {run / 'config.yaml'}: "))


BAD_PREDICTIONS: dict[str, Damage] = {
    "zero bytes": overwritten(b""),
    "binary": overwritten(b"\xff\xfe\x00" * 99),
    "only a header": edited(r"\n[\s\S]*", "\n"),
    "no slide column": edited("^slide_id", "slide"),
    "no fold column": edited(",fold,", ",part,"),
    "no scores": edited("prob_", "score_", 0),
    "cut in the last row": edited(r",[^,\n]*,[^,\n]*\n\Z", ""),
    "a row too long": edited(r"\n\Z", ",1,2,3\n"),
    "score no number": edited(r"[^,\n]*\n\Z", "high\n"),
    "score blank": edited(r"[^,\n]*\n\Z", "\n"),
    "unknown label": edited("(^s03x,.*),b,", r"\1,c,"),
    "fold no number": edited("(^s03x,p03),.,", r"\1,first,"),
}


@pytest.mark.parametrize("command", ["evaluate", "heatmap"])
@pytest.mark.parametrize("what", BAD_PREDICTIONS)
def test_damaged_predictions(
    fails: Any, finished_run: Path, run: Path, slide_folder: Path, what: str, command: str
) -> None:
    BAD_PREDICTIONS[what](run / "predictions.csv")
    more = ["--slides", slide_folder] if command == "heatmap" else []
    line = fails(*COMMANDS[command](run, finished_run.parent), *more)
    assert_says(line, re.escape(f"predictions {run / 'predictions.csv'}: "))


@pytest.mark.parametrize("what", ["notes.json", "metrics.json"])
def test_damaged_notes(cli: Any, run: Path, what: str) -> None:
    """Notes that cannot be read are a line; metrics are made anew."""
    (run / what).write_text('["fold 0: 3 pat')
    result = cli("evaluate --json", run)
    if what == "metrics.json":
        assert result.code == 0, result
        assert json.loads(result.out)["slides"] == 14
    else:
        assert result.code == 2, result
        assert_says(result.err, f"error: .*{re.escape(str(run / what))}")


# --- a run that was moved


def times(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_moved_run_is_evaluated(cli: Any, run: Path) -> None:
    assert cli("evaluate", run).code == 0


def test_moved_run_predicts(cli: Any, finished_run: Path, run: Path, tmp_path: Path) -> None:
    features = finished_run.parent / "features"
    result = cli("predict", run, features, "--out", tmp_path / "out.csv")
    assert result.code == 0, result
    assert "14 slides predicted" in result.out


@pytest.mark.parametrize("given", ["id", "file"])
def test_heatmap_of_a_moved_run(
    cli: Any, fails: Any, finished_run: Path, run: Path, slide_folder: Path, tmp_path: Path, given: str
) -> None:
    slide, out = ("s00x" if given == "id" else slide_folder / "s00x.tiff"), tmp_path / "a.png"
    if given == "id":
        assert_says(fails("heatmap", run, slide, "--out", out), "'s00x'", "give --slides")
    options = ["--slides", slide_folder] if given == "id" else []
    line = fails("heatmap", run, slide, *options, "--out", out)
    assert_says(line, re.escape(str(run.parent / "features")), "--features")
    assert not out.exists()
    result = cli("heatmap", run, slide, *options, "--features", finished_run.parent / "features", "--out", out)
    assert result.code == 0, result
    assert out.stat().st_size > 1000


def test_heatmap_of_a_run_whose_slides_stayed_behind(
    cli: Any, fails: Any, finished_run: Path, run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    edited(r"slides: null", "slides: ../slides")(run / "config.yaml")
    command = ["heatmap", run, "s00x", "--features", finished_run.parent / "features", "--out", tmp_path / "a.png"]
    assert_says(fails(*command), re.escape(str(run.parent / "slides")), "--slides")
    assert cli(*command, "--slides", slide_folder).code == 0


def test_a_study_moves_as_a_whole(cli: Any, finished_run: Path, slide_folder: Path, tmp_path: Path) -> None:
    """With its run in it: nothing is given anew, and nothing is trained again."""
    moved = Path(shutil.copytree(finished_run.parent, tmp_path / "moved"))
    before = times(moved / "run")
    result = cli("train", moved / "run.yaml")
    assert result.code == 0, result
    assert {n for n, t in times(moved / "run").items() if t != before[n]} == {"metrics.json", "predictions.csv"}
    assert cli("heatmap", moved / "run", "s00x", "--slides", slide_folder, "--out", tmp_path / "a.png").code == 0
    assert cli("predict", moved / "run", moved / "features", "--out", tmp_path / "a.csv").code == 0


@pytest.mark.parametrize("config", ["the run's", "the study's"])
def test_training_of_a_moved_run_goes_on(
    cli: Any, tiny: ModuleType, finished_run: Path, run: Path, tmp_path: Path, config: str
) -> None:
    """Its data lie elsewhere now; the finished fold is kept and the other one trained."""
    shutil.rmtree(run / "fold-1")
    for name in ("predictions.csv", "metrics.json"):
        (run / name).unlink()
    before = times(run / "fold-0")
    data = Path(shutil.copytree(finished_run.parent, tmp_path / "data", ignore=shutil.ignore_patterns("run")))
    options = [f"data.cohort={data}/cohort.csv", f"data.features={data}/features", f"data.splits={data}/splits"]
    options += [f"out={run}"]
    path = run / "config.yaml" if config == "the run's" else data / "run.yaml"
    result = cli("train", path, *(word for option in options for word in ("--set", option)))
    assert result.code == 0, result
    assert times(run / "fold-0") == before
    assert tiny.result_bytes(run) == tiny.result_bytes(finished_run)


def test_training_of_a_moved_run_without_its_data(fails: Any, run: Path) -> None:
    line = fails("train", run / "config.yaml")
    assert_says(line, re.escape(f"cohort {run.parent / 'cohort.csv'}"), "no such file", r"--set|data\.cohort|give")


# --- heatmap


def test_heatmap_of_an_unknown_slide(fails: Any, finished_run: Path, slide_folder: Path, tmp_path: Path) -> None:
    line = fails("heatmap", finished_run, "s00", "--slides", slide_folder, "--out", tmp_path / "a.png")
    assert_says(line, "'s00'", re.escape(str(slide_folder)), "did you mean 's00x'|give ")


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.bak"])
def test_heatmap_of_another_suffix(
    fails: Any, finished_run: Path, slide_folder: Path, tmp_path: Path, name: str
) -> None:
    line = fails("heatmap", finished_run, "s00x", "--slides", slide_folder, "--out", tmp_path / name)
    assert_says(line, re.escape(str(tmp_path / name)), r"must end in \.png, \.pdf or \.svg")


def test_heatmap_into_a_folder_that_cannot_be(
    fails: Any, finished_run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("in the way")
    line = fails("heatmap", finished_run, "s00x", "--slides", slide_folder, "--out", tmp_path / "taken" / "a.png")
    assert_says(line, re.escape(str(tmp_path / "taken")), "--out")


def test_heatmap_of_a_slide_without_features(
    fails: Any, finished_run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    """Its encoder is not known here, so that it cannot be extracted on the way."""
    (slide_folder / "s00x.tiff").rename(slide_folder / "new.tiff")
    line = fails("heatmap", finished_run, "new", "--slides", slide_folder, "--out", tmp_path / "a.png")
    assert_says(line, "'new'", "encoder 'tiny'", "--features")


@pytest.mark.parametrize("what", ["cut in half", "too few rows", "all enormous", "grid enormous", "NaN"])
def test_heatmap_of_bad_features(fails: Any, finished_run: Path, slide_folder: Path, tmp_path: Path, what: str) -> None:
    damage, remedy = BAD_FEATURES[what]
    shutil.copytree(finished_run.parent / "features", tmp_path / "f")
    damage(tmp_path / "f" / "s00x.h5")
    options = ["--slides", slide_folder, "--features", tmp_path / "f", "--out", tmp_path / "a.png"]
    assert_says(fails("heatmap", finished_run, "s00x", *options), "s00x", remedy)
