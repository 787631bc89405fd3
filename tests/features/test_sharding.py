"""Shards: every slide in one of them, about as many bytes in each, whatever is finished."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2d.errors import ConfigError
from wsi2d.features import sharding as module
from wsi2d.features.sharding import Shard
from wsi2d.slides.discovery import SlideFile, find_slides


def sparse(path: Path, size: int) -> SlideFile:
    """A file of that many bytes, which take no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return SlideFile(path.stem, path)


def all_shards(slides: list[SlideFile], count: int) -> list[list[SlideFile]]:
    return [Shard(k, count).take(slides) for k in range(1, count + 1)]


@settings(deadline=None, max_examples=80)
@given(sizes=st.lists(st.integers(0, 10**12), max_size=60), count=st.integers(1, 9), seed=st.randoms())
def test_each_slide_is_in_one_shard(sizes: list[int], count: int, seed: "st.random.Random") -> None:  # type: ignore[name-defined]
    slides = [SlideFile(f"s{i:02d}", Path(f"s{i:02d}.svs")) for i in range(len(sizes))]
    by_path = dict(zip((slide.path for slide in slides), sizes, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_size", by_path.__getitem__)
        shards = all_shards(slides, count)
        shuffled = seed.sample(slides, len(slides))
        assert [set(s) for s in all_shards(shuffled, count)] == [set(s) for s in shards], "their order means nothing"
    assert sorted((s for shard in shards for s in shard), key=lambda s: s.slide_id) == slides
    for shard in shards:
        assert [s for s in slides if s in shard] == shard, "in their order"
    loads = [sum(by_path[s.path] for s in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(sizes, default=0), "no two differ by more than the largest slide"
    if len(set(sizes)) <= 1:
        counts = [len(shard) for shard in shards]
        assert max(counts) - min(counts) <= 1


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """An MRXS slide's pixels lie in its folder; a slide that is not there is nobody's burden."""
    slides = [sparse(tmp_path / f"{name}.svs", size) for name, size in (("a", 10**9), ("b", 10**9), ("c", 6 * 10**8))]
    slides.append(sparse(tmp_path / "m.mrxs", 100))
    (tmp_path / "m").mkdir()
    sparse(tmp_path / "m" / "Data0001.dat", 2 * 10**9)
    slides.append(SlideFile("gone", tmp_path / "gone.svs"))
    found = [[s.slide_id for s in shard] for shard in all_shards(slides, 3)]
    assert found == [["m"], ["a", "gone"], ["b", "c"]] or found == [["m"], ["a", "c"], ["b", "gone"]]
    (tmp_path / "link.svs").symlink_to(tmp_path / "a.svs")
    assert module._size(tmp_path / "link.svs") == 10**9


def test_another_process_deals_alike(tmp_path: Path) -> None:
    for i in range(20):
        sparse(tmp_path / f"s{i}.svs", i % 7 * 1000)
    code = (
        "import sys; from wsi2d.features.sharding import Shard; from wsi2d.slides.discovery import find_slides;"
        "print(' '.join(s.slide_id for s in Shard(2, 3).take(find_slides([sys.argv[1]]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [s.slide_id for s in Shard(2, 3).take(find_slides([tmp_path]))]


def test_more_shards_than_slides(tmp_path: Path) -> None:
    slides = [sparse(tmp_path / "a.svs", 5)]
    assert [len(shard) for shard in all_shards(slides, 4)] == [1, 0, 0, 0]


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("3/8", (3, 8)), (" 8/8 ", (8, 8)), ("07/10", (7, 10))])
def test_spelling(text: str, shard: tuple[int, int]) -> None:
    assert Shard.parse(text) == Shard(*shard)
    assert str(Shard(*shard)) == f"{shard[0]}/{shard[1]}"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "0/0"])
def test_no_such_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="shards count from 1 to their number; with Slurm: --array=1-"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "-1/2", "1/2/3", "a/b", "1.0/2", "１/２", "1/9999999"])
def test_no_shard_at_all(text: str) -> None:
    with pytest.raises(ConfigError, match="must be K/N, as 3/8 for the third of eight"):
        Shard.parse(text)
