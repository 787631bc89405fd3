"""Which files are meant: feature files given one by one, or as folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi2d.errors import FeatureStoreError


def feature_files(sources: Sequence[Path | str]) -> list[Path]:
    """Files as they are given, and the ``.h5`` files that lie in folders, by name; what is given twice counts once.

    Raises:
        FeatureStoreError: a source is not there, or a folder without feature files.
    """
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        files = [source]
        if not source.is_file():
            files = sorted(p for p in source.glob("*.h5") if p.is_file() and not p.name.startswith("."))
        if not files:
            there = "no .h5 files" if source.is_dir() else "no .h5 files, it does not exist"
            raise FeatureStoreError(f"features {source}: {there}; extract slides into it first")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())
