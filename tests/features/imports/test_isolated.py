"""A file that crashes its reader or keeps it busy for ever costs one line, and the next one is read."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wsi2d.errors import FeatureStoreError, StorageError
from wsi2d.features.imports import isolated
from wsi2d.features.imports.isolated import PeerReader, shared_reader

TROUBLE = """
import os, signal
from wsi2d.slides.reader_process import limit_computing

def crash(path, seconds):
    os.kill(os.getpid(), signal.SIGSEGV)

def turn_in_circles(path, seconds):
    limit_computing(1)
    while True:
        pass

def fill_the_memory(path, seconds):
    return len(bytearray(2 ** 40))

def raise_anything(path, seconds):
    raise LookupError("what\\nHDF5 found")
"""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerReader]:
    """A reader whose functions make trouble."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "trouble_with_hdf5.py").write_text(TROUBLE)
    with pytest.MonkeyPatch.context() as patch, PeerReader() as reader:
        patch.syspath_prepend(modules)
        yield reader


@pytest.mark.parametrize(("trouble", "words"), [
    ("crash", "the decoder crashed with SIGSEGV"),
    ("turn_in_circles", "no answer within its time"),
    ("fill_the_memory", "MemoryError"),
    ("raise_anything", "what HDF5 found"),
])  # fmt: skip
def test_trouble_is_one_line(
    trouble: str, words: str, troubled: PeerReader, peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = peers.write_trident(tmp_path, np.argwhere(np.ones((3, 3))) * 256, peers.features(9))
    assert troubled.inspect(path).patches == 9
    with monkeypatch.context() as patch:
        patch.setattr(isolated, "_READING", "trouble_with_hdf5")
        with pytest.raises(FeatureStoreError) as error:
            troubled._ask(trouble, path)
    assert str(error.value).startswith(f"{path}: cannot be read ({words}")
    assert len(str(error.value).splitlines()) == 1
    assert troubled.inspect(path).patches == 9


def test_a_disk_that_takes_nothing_stops_the_work(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = peers.write_trident(tmp_path, np.argwhere(np.ones((3, 3))) * 256, peers.features(9))
    with pytest.raises(StorageError, match=r"gone.s1\.h5: cannot be written"):
        reader.convert(path, tmp_path / "gone" / "s1.h5")


def test_one_reader_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first = shared_reader()
    assert shared_reader() is first
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert shared_reader() is not first, "a fork has its own"
    monkeypatch.undo()
    monkeypatch.setattr(isolated, "_shared", None)
