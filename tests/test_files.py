"""Files that are complete or absent, whatever stops their writing; one line for what the disk refuses."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi2d.errors import ConfigError, StorageError
from wsi2d.files import (
    discard,
    make_folder,
    partial_path,
    remove,
    remove_partials,
    unwritable,
    whole_file,
    whole_folder,
    write_text,
)

OLD = "what stood here before"


class Stop(Exception):
    """What stops a writing and is no fault of the disk."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file that is to be written, in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "table.csv"


def refusal(action: Callable[[], object]) -> str:
    """The one line of the StorageError that an action ends in."""
    with pytest.raises(StorageError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, error: BaseException | None = None) -> None:
    """Write half of a file and then the rest, or raise in between."""
    with whole_file(path) as partial, partial.open("w") as file:
        file.write("first,")
        file.flush()
        if error is not None:
            raise error
        file.write("second")


# --- written whole


def test_the_file_appears_under_its_name(place: Path) -> None:
    write(place)
    assert place.read_text() == "first,second"
    assert os.listdir(place.parent) == ["table.csv"]


def test_nothing_stands_under_the_name_before_the_end(place: Path) -> None:
    with whole_file(place) as partial:
        partial.write_text("new")
        assert not place.exists()
        assert partial.parent == place.parent, "a rename between disks is no rename"
    assert place.read_text() == "new"


def test_an_older_file_stays_until_the_end(place: Path) -> None:
    place.write_text(OLD)
    with whole_file(place) as partial:
        partial.write_text("new")
        assert place.read_text() == OLD
    assert place.read_text() == "new"
    assert os.listdir(place.parent) == ["table.csv"]


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older file"])
@pytest.mark.parametrize("error", [Stop("x"), KeyboardInterrupt(), SystemExit(3), ConfigError("x"), MemoryError()])
def test_what_stops_the_writing_leaves_nothing(place: Path, older: bool, error: BaseException) -> None:
    if older:
        place.write_text(OLD)
    with pytest.raises(type(error)) as caught:
        write(place, error)
    assert caught.value is error, "what is no fault of the disk goes through as it is"
    assert os.listdir(place.parent) == ["table.csv"] * older
    assert not older or place.read_text() == OLD


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older file"])
def test_a_full_disk(place: Path, older: bool) -> None:
    if older:
        place.write_text(OLD)
    error = OSError(28, "No space left on device", str(partial_path(place)))
    assert refusal(lambda: write(place, error)) == (
        f"{place}: cannot be written (No space left on device); check the folder and the space on its disk"
    )
    assert os.listdir(place.parent) == ["table.csv"] * older
    assert not older or place.read_text() == OLD


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_stopped_after_the_last_byte(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """A disk may say only at the end that it has not taken the file; so may a user."""

    def fail(*arguments: object) -> None:
        raise error

    place.write_text(OLD)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        write(place)
    assert os.listdir(place.parent) == ["table.csv"]
    assert place.read_text() == OLD


def test_the_bytes_are_on_the_disk_before_the_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that loses power can be left with a whole name and half a file."""
    steps: list[str] = []

    def noted(name: str, step: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            steps.append(name)
            step(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write(place)
    assert steps == ["fsync", "replace"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stop("x"), KeyboardInterrupt()])
def test_what_cannot_be_tidied_away_does_not_hide_the_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A disk that fails at one thing fails at the next; the user is told of the file, and an interrupt stays one."""

    def fail(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as caught:
        write(place, error)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{place}: cannot be written (No space left on device); ")


def test_a_block_that_writes_nothing_is_an_error(place: Path) -> None:
    def nothing() -> None:
        with whole_file(place):
            pass

    assert refusal(nothing).startswith(f"{place}: cannot be written (No such file or directory); ")
    assert os.listdir(place.parent) == []


def test_what_a_killed_process_left_is_written_over(place: Path) -> None:
    partial_path(place).write_text("a much longer text than the new one")
    write(place)
    assert place.read_text() == "first,second"
    assert os.listdir(place.parent) == ["table.csv"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/table.csv", "No such file or directory"),
        ("taken/table.csv", "Not a directory"),
        ("in the way", "Is a directory"),
        ("n" * 250, "File name too long"),
    ],
    ids=lambda text: text[:20],
)
def test_places_that_no_file_can_have(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "taken").write_text(OLD)
    (tmp_path / "in the way").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / name
    for action in (lambda: write(path), lambda: write_text(path, "text")):
        assert refusal(action) == f"{path}: cannot be written ({reason}); check the folder and the space on its disk"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_read_only(place: Path) -> None:
    place.parent.chmod(0o500)
    try:
        if os.access(place.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert refusal(lambda: write(place)).startswith(f"{place}: cannot be written (Permission denied); ")
    finally:
        place.parent.chmod(0o700)


def test_the_partial_name_is_hidden_and_beside() -> None:
    """Hidden, so that searches for slides or features do not find it."""
    assert partial_path(Path("/a/b.c/d.h5")) == Path("/a/b.c/.d.h5.partial")


def test_partial_names_of_one_folder_differ() -> None:
    names = {partial_path(Path("f") / name).name for name in ("a.csv", "a.h5", "b.csv", "a")}
    assert len(names) == 4


# --- texts


@pytest.mark.parametrize("text", ["", "one line", "ä, µm², 日本\n", "a\nb\n"])
def test_texts_are_utf_8(place: Path, text: str) -> None:
    place.write_text(OLD)
    write_text(place, text)
    assert place.read_bytes() == text.encode()
    assert os.listdir(place.parent) == ["table.csv"]


def test_a_text_that_is_no_unicode_leaves_nothing(place: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(place, "half of it\ud800")
    assert os.listdir(place.parent) == []


# --- folders


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c", "x")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_folder_that_is_there_keeps_what_it_holds(place: Path) -> None:
    place.write_text(OLD)
    make_folder(place.parent, "x")
    assert place.read_text() == OLD


@pytest.mark.parametrize(("name", "reason"), [("taken", "File exists"), ("taken/deeper/still", "Not a directory")])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "taken").write_text(OLD)
    line = refusal(lambda: make_folder(tmp_path / name, "give another --out"))
    assert line == f"{tmp_path / name}: the folder cannot be made ({reason}); give another --out"


# --- folders written whole


def fill(path: Path, text: str, error: BaseException | None = None) -> None:
    """Write a folder of two files, or raise in between."""
    with whole_folder(path) as partial:
        (partial / "a").write_text(text)
        if error is not None:
            raise error
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_appears_under_its_name_and_replaces_what_was_there(tmp_path: Path) -> None:
    group = tmp_path / "group"
    for text in ("old", "new"):
        fill(group, text)
        assert content(group) == {"a": text, "deep/b": text}
        assert os.listdir(tmp_path) == ["group"]
    discard(group)
    group.write_text("a file")
    fill(group, "newest")
    assert content(tmp_path) == {"group/a": "newest", "group/deep/b": "newest"}


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_folder_leaves_nothing(tmp_path: Path, older: bool, error: BaseException) -> None:
    """And what was there stays."""
    group = tmp_path / "group"
    if older:
        fill(group, "old")
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        fill(group, "new", error)
    assert content(tmp_path) == ({"group/a": "old", "group/deep/b": "old"} if older else {})
    assert os.listdir(tmp_path) == (["group"] if older else [])


def test_a_folders_files_are_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def sync(path: Path) -> None:
        assert not (tmp_path / "group").exists()
        synced.append(path.name)

    monkeypatch.setattr("wsi2d.files._sync", sync)
    fill(tmp_path / "group", "new")
    assert sorted(synced) == ["a", "b"]


def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    left = partial_path(tmp_path / "group")
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "c").write_text("half")
    fill(tmp_path / "group", "new")
    assert content(tmp_path) == {"group/a": "new", "group/deep/b": "new"}


def test_discard(tmp_path: Path) -> None:
    """A file, a folder, nothing; of a link only the link."""
    (tmp_path / "full" / "deep").mkdir(parents=True)
    (tmp_path / "full" / "deep" / "a").write_text(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("link", "nothing"):
        discard(tmp_path / name)
    assert os.listdir(tmp_path) == ["full"]
    discard(tmp_path / "full" / "deep" / "a")
    discard(tmp_path / "full")
    assert os.listdir(tmp_path) == []


# --- what is left behind


def test_partials_are_removed_at_every_depth_and_nothing_else(tmp_path: Path) -> None:
    kept = ["a.csv", ".hidden", ".partial", "a.partial", ".a.partial.csv", "fold-0/b.h5", "fold-0/.nfs0012", ".git/c"]
    left = [".a.csv.partial", "fold-0/.b.h5.partial", "fold-0/attention/.c.h5.partial"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(OLD)
    remove_partials(tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(kept)


def test_partials_in_folders_that_a_link_leads_to_stay(tmp_path: Path) -> None:
    """Somebody else may be writing there."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs" / ".a.csv.partial").write_text("being written")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "theirs")
    remove_partials(tmp_path / "run")
    assert (tmp_path / "theirs" / ".a.csv.partial").exists()


def test_partials_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove_partials(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_partial_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / ".a.csv.partial").mkdir()
    assert str(tmp_path / ".a.csv.partial") in refusal(lambda: remove_partials(tmp_path))


def test_remove(place: Path) -> None:
    place.write_text(OLD)
    for _ in range(2):
        remove(place)
        assert not place.exists()
    line = refusal(lambda: remove(place.parent))
    assert line.startswith(f"{place.parent}: cannot be removed (")
    assert line.endswith("); check the folder's permissions")


def test_remove_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["file"]


# --- the line


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/other/name"), "Permission denied"),
        (OSError("Can't write data (write failed:\n  time = Mon)"), "Can't write data (write failed: time = Mon)"),
        (RuntimeError("Unable to  flush\tfile"), "Unable to flush file"),
        (ValueError("a\x0bb\x1b[31m"), "a b [31m"),
    ],
)  # fmt: skip
def test_why_a_file_cannot_be_written(error: BaseException, reason: str) -> None:
    line = str(unwritable(Path("/data/a.h5"), error))
    assert line == f"/data/a.h5: cannot be written ({reason}); check the folder and the space on its disk"


@pytest.mark.parametrize("error", [OSError(), RuntimeError(), TimeoutError()])
def test_an_error_without_words_is_named(error: BaseException) -> None:
    """As in the other lines: brackets with nothing in them help nobody."""
    assert f"({type(error).__name__})" in str(unwritable(Path("a"), error))


def test_the_error_of_the_disk_is_its_cause(place: Path) -> None:
    error = OSError(5, "Input/output error")
    with pytest.raises(StorageError) as caught:
        write(place, error)
    assert caught.value.__cause__ is error


def test_an_inner_storage_error_keeps_its_own_words(place: Path) -> None:
    """One file is written while another is: the line names the one that failed."""
    with pytest.raises(StorageError, match="inner"):
        write(place, unwritable(place.with_name("inner.csv"), OSError(28, "No space left on device")))
    assert os.listdir(place.parent) == []
