"""Lists of failures: each shard writes its own, they are read as one, and what has been mended leaves all of them."""

import logging
import os
from pathlib import Path

import pytest

from wsi2d.errors import FeatureStoreError
from wsi2d.features import failures as module
from wsi2d.features.failures import Failure, failures_path, read_failures, write_failures
from wsi2d.features.locks import Locks
from wsi2d.features.sharding import Shard


def failed(*names: str, error: str = "broken") -> list[Failure]:
    return [Failure(name, f"{name}.svs", f"slide '{name}': {error}") for name in names]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_shards_have_lists_of_their_own_that_are_read_as_one(tmp_path: Path) -> None:
    write_failures(tmp_path, failed("b"), ["a", "b"], Shard(1, 2))
    write_failures(tmp_path, failed("c", "d"), ["c", "d"], Shard(2, 2))
    assert names(tmp_path) == ["failures-1-of-2.csv", "failures-2-of-2.csv"]
    assert read_failures(tmp_path) == failed("b", "c", "d")
    write_failures(tmp_path, [], ["a", "b"], Shard(1, 2))
    assert names(tmp_path) == ["failures-2-of-2.csv"]
    assert read_failures(tmp_path) == failed("c", "d")


def test_a_later_run_heals_the_lists_of_others(tmp_path: Path) -> None:
    write_failures(tmp_path, failed("a", "b"), ["a", "b"], Shard(1, 2))
    write_failures(tmp_path, failed("c", "d"), ["c", "d"], Shard(2, 2))
    write_failures(tmp_path, failed("b", error="again"), ["a", "b", "c"], None)
    assert names(tmp_path) == ["failures-2-of-2.csv", "failures.csv"]
    assert read_failures(tmp_path) == [*failed("b", error="again"), *failed("d")]
    write_failures(tmp_path, [], ["a", "b", "c", "d"], Shard(3, 4))
    assert names(tmp_path) == []


def test_lists_of_slides_that_a_run_knows_nothing_of_are_left_alone(tmp_path: Path) -> None:
    write_failures(tmp_path, failed("a"), ["a"], Shard(1, 2))
    before = failures_path(tmp_path, Shard(1, 2)).stat()
    write_failures(tmp_path, failed("b"), ["b", "c"], Shard(2, 2))
    after = failures_path(tmp_path, Shard(1, 2)).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_of_a_slide_named_twice_the_later_word_counts(tmp_path: Path) -> None:
    (tmp_path / "failures.csv").write_text("slide_id,path,error\na,a.svs,first\nb,b.svs,only\n")
    (tmp_path / "failures-1-of-2.csv").write_text("slide_id,path,error\na,a.svs,second\n")
    os.utime(tmp_path / "failures-1-of-2.csv", (1, 1))
    assert [failure.error for failure in read_failures(tmp_path)] == ["first", "only"]
    os.utime(tmp_path / "failures.csv", (0, 0))
    assert [failure.error for failure in read_failures(tmp_path)] == ["second", "only"]


def test_any_name_and_text(tmp_path: Path) -> None:
    odd = Failure('a "b", c', "ü/\udcff.svs", "slide: broken, 'quoted'\tand more")
    write_failures(tmp_path, [odd], [odd.slide_id], None)
    (found,) = read_failures(tmp_path)
    assert (found.slide_id, found.error) == (odd.slide_id, odd.error)
    assert found.path == "ü/\\udcff.svs"


@pytest.mark.parametrize(
    "data", [b"slide,what\na,b\n", b"slide_id,path,error\n\xff\xfe,\xff,\xff\n", b'slide_id,path\n"']
)
def test_a_damaged_list_is_named(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "failures-1-of-2.csv").write_bytes(data)
    with pytest.raises(FeatureStoreError, match=r"failures-1-of-2\.csv: is no list of failed slides"):
        read_failures(tmp_path)
    with caplog.at_level(logging.WARNING, "wsi2d"):
        write_failures(tmp_path, failed("c"), ["c"], None)
    assert "failures-1-of-2.csv: is no list of failed slides" in caplog.text
    assert (tmp_path / "failures-1-of-2.csv").read_bytes() == data, "somebody else's is left as it is"
    assert (tmp_path / "failures.csv").exists()


def test_one_run_writes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.2)
    with Locks() as locks, caplog.at_level(logging.WARNING, "wsi2d"):
        assert locks.take(tmp_path / "failures.csv") is not None
        write_failures(tmp_path, failed("a"), ["a"], None)
    assert "another run has been writing its list" in caplog.text
    assert names(tmp_path) == ["failures.csv"]
