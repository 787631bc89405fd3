"""Which files of a folder are slides, and under which names."""

import shutil
from pathlib import Path

import pytest

from wsi2d.errors import SlideError
from wsi2d.slides.discovery import SlideFile, find_slides
from wsi2d.slides.reader import open_slide


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(*paths: Path) -> dict[str, Path]:
    slides = find_slides(paths)
    assert [s.slide_id for s in slides] == sorted(s.slide_id for s in slides)
    assert len({s.slide_id for s in slides}) == len(slides)
    return {s.slide_id: s.path for s in slides}


def test_folders_are_searched_to_the_bottom(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a/c.ndpi", "a/deep/er/d.TIFF", "e.png", "f.jpeg", "notes.txt", "table.csv", "g.h5")
    assert found(tmp_path) == {
        "b": tmp_path / "b.svs",
        "c": tmp_path / "a" / "c.ndpi",
        "d": tmp_path / "a" / "deep" / "er" / "d.TIFF",
        "e": tmp_path / "e.png",
        "f": tmp_path / "f.jpeg",
    }


def test_files_and_folders_together(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.svs", "two/b.svs", "three/c.svs")
    assert set(found(tmp_path / "one", tmp_path / "three" / "c.svs")) == {"a", "c"}
    assert [s.slide_id for s in find_slides([str(tmp_path / "two")])] == ["b"]


def test_a_file_is_taken_at_its_word_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan.weird", "a.svs")
    assert set(found(tmp_path / "scan.weird")) == {"scan"}
    assert set(found(tmp_path)) == {"a"}


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "._a.svs", ".hidden.svs", ".cache/b.svs", ".cache/deep/c.svs")
    assert set(found(tmp_path)) == {"a"}


def test_pictures_beside_features_are_no_slides(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.svs",
        "features/a.h5",
        "features/thumbnails/a.jpg",
        "more/thumbnails/b.jpg",
        "c.h5",
        "thumbnails.svs",
    )
    assert set(found(tmp_path)) == {"a", "b", "thumbnails"}
    assert set(found(tmp_path / "features" / "thumbnails")) == {"a"}, "unless they are asked for"


def test_an_mrxs_stands_for_its_companion_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0001.dat", "a/preview.jpg", "b.MRXS", "b/preview.png", "c/d.svs")
    assert set(found(tmp_path)) == {"a", "b", "d"}


@pytest.mark.parametrize("other", ["two/a.svs", "a.tiff", "deep/er/a.png"])
def test_two_slides_of_one_name_are_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "a.svs", other, "b.svs")
    with pytest.raises(SlideError, match="slide 'a': two slides bear this name") as error:
        find_slides([tmp_path])
    assert str(tmp_path / "a.svs") in str(error.value)
    assert str(tmp_path / other) in str(error.value)
    assert "rename one" in str(error.value)


def test_one_file_named_twice_is_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.svs", "in/b.svs")
    a = tmp_path / "in" / "a.svs"
    assert set(found(a, a)) == {"a"}
    assert set(found(tmp_path, a)) == {"a", "b"}
    assert set(found(tmp_path / "in", tmp_path)) == {"a", "b"}
    assert set(found(tmp_path / "in" / ".." / "in" / "a.svs", a)) == {"a"}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.svs", "in/b.svs")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "c.svs").symlink_to(tmp_path / "store" / "a.svs")
    assert set(found(tmp_path / "in")) == {"a", "b", "c"}


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    with pytest.raises(SlideError, match=r"slides: .*gone does not exist"):
        find_slides([tmp_path, tmp_path / "gone"])


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(SlideError, match=r"slides: none in .*looked for .*\.svs"):
        find_slides([tmp_path])


def test_a_dicom_series_is_one_slide_named_after_its_folder(tmp_path: Path, shared_dir: Path) -> None:
    series = tmp_path / "case-7"
    series.mkdir()
    for name in ("level_1.dcm", "level_0.dcm"):
        shutil.copyfile(shared_dir / "slides" / "boxes_0.dcm", series / name)
    touch(tmp_path, "b.svs")
    assert found(tmp_path) == {"b": tmp_path / "b.svs", "case-7": series / "level_0.dcm"}
    with open_slide(series / "level_0.dcm", slide_id="case-7") as reader:
        assert (reader.slide.width, reader.slide.mpp, reader.slide.mpp_source) == (16, 0.499, "header")


def test_a_lone_dicom_file_bears_its_own_name(tmp_path: Path, shared_dir: Path) -> None:
    shutil.copyfile(shared_dir / "slides" / "boxes_0.dcm", tmp_path / "scan.dcm")
    assert found(tmp_path) == {"scan": tmp_path / "scan.dcm"}
    assert found(tmp_path / "scan.dcm", tmp_path / "scan.dcm") == {"scan": tmp_path / "scan.dcm"}


def test_a_damaged_dicom_file_is_a_slide_of_its_own(tmp_path: Path, shared_dir: Path) -> None:
    shutil.copyfile(shared_dir / "slides" / "boxes_0.dcm", tmp_path / "good.dcm")
    (tmp_path / "bad.dcm").write_bytes((shared_dir / "slides" / "boxes_0.dcm").read_bytes()[:400])
    assert find_slides([tmp_path]) == [
        SlideFile("bad", tmp_path / "bad.dcm"),
        SlideFile("good", tmp_path / "good.dcm"),
    ]


def test_real_slides(shared_dir: Path) -> None:
    assert set(found(shared_dir / "slides")) == {
        "boxes", "boxes_0", "broken", "cmu-1-small-region", "kidney-48-5", "tcga-cr-7395-01a-01-ts1",
        "unopenable", "unreadable",
    }  # fmt: skip
