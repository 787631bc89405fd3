"""Slides dealt out to jobs that do not know of each other, as those of a batch system's array."""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi2d.errors import ConfigError
from wsi2d.slides.discovery import SlideFile


@dataclass(frozen=True)
class Shard:
    """One share of the slides: number ``number`` of ``count``, counted from 1 as the jobs of ``--array=1-8``.

    Raises:
        ConfigError: there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"shard {self.number}/{self.count}: shards count from 1 to their number; "
                f"with Slurm: --array=1-{max(self.count, 1)}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``3/8`` is the third of eight.

        Raises:
            ConfigError: it is no such share.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None:
            raise ConfigError(f"shard '{text}': must be K/N, as 3/8 for the third of eight")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, slides: Sequence[SlideFile]) -> list[SlideFile]:
        """This share of the slides, in their order: all shares have about as many bytes to read.

        It depends on the slides' names and sizes alone, not on what is finished: every job that finds the same slides
        deals them out alike.
        """
        sizes = {slide.slide_id: _size(slide.path) for slide in slides}
        loads = [(0, 0, k) for k in range(1, self.count + 1)]  # bytes, slides, number: the lightest comes first
        mine = set()
        for slide_id in sorted(sizes, key=lambda slide_id: (-sizes[slide_id], slide_id)):
            load, dealt, number = loads[0]
            heapq.heapreplace(loads, (load + sizes[slide_id], dealt + 1, number))
            if number == self.number:
                mine.add(slide_id)
        return [slide for slide in slides if slide.slide_id in mine]


def _size(path: Path) -> int:
    """Bytes of a slide, with an MRXS file's folder; 0 where it cannot be seen, which is told when it is opened."""
    try:
        size = path.stat().st_size
        if path.suffix.lower() == ".mrxs":
            with os.scandir(path.with_suffix("")) as files:
                size += sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0
    return size
