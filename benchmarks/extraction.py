"""How fast patches come, beside what the decoder gives, and how much memory that takes.

    python benchmarks/make_slide.py slide.tiff
    python benchmarks/extraction.py slide.tiff [--rounds 9] [--patches 3000] [--sides 7500 … 60000] [--json FILE]

Rates: the pipeline (reading, an encoder that does nothing, writing) beside as many processes that call OpenSlide's
``read_region`` on the same patches and nothing else, with one process and with two. The four take turns, each round on
another part of the slide; medians, and medians of the ratios within a round. The processor time of all processes that
take part, the parent too, is told as well: it depends less on who else uses the machine.

Memory: the largest sum of what parent and readers hold while a whole slide is extracted, for slides of growing size,
above a process that has imported torch and this package. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from make_slide import make_slide

from wsi2d.config import ExtractConfig
from wsi2d.features.extract_slide import encoded_patches, extract_slide
from wsi2d.features.settings import provenance_of
from wsi2d.features.store import FeatureWriter
from wsi2d.slides.discovery import find_slides
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.tissue import segment_tissue

WORKERS = (1, 2)
SIDES = (7500, 15_000, 30_000, 60_000)
CPU = ", CPU time"
BARE = """
import json, sys, openslide
slide = openslide.OpenSlide(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    for x, y in json.loads(line):
        slide.read_region((x, y), 0, (256, 256))
    print("done", flush=True)
"""


class Nothing:
    """An encoder that does nothing: 1024 zeros a patch, kept as float16."""

    name, dim, fingerprint, min_patch_px, store_dtype = "nothing", 1024, "nothing", 1, "float16"

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Zeros ``[batch, 1024]``."""
        return torch.zeros(len(patches), self.dim)

    def to(self, device: torch.device) -> Nothing:
        """Itself."""
        return self


class Bare:
    """Processes that call ``read_region`` on level 0 and nothing else."""

    def __init__(self, slide: Path, workers: int) -> None:
        command, pipe = [sys.executable, "-c", BARE, str(slide)], subprocess.PIPE
        # Each in a session of its own, as our readers are: where others compute too, Linux shares out by session.
        self._processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
            for _ in range(workers)
        ]
        self._hear("ready")

    def seconds(self, corners: np.ndarray) -> float:
        """For patches of 256 px, shared out in equal runs."""
        start = time.perf_counter()
        for process, part in zip(self._processes, np.array_split(corners, len(self._processes)), strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(part.tolist()) + "\n")
            process.stdin.flush()
        self._hear("done")
        return time.perf_counter() - start

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.communicate()

    def _hear(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != word:
                raise SystemExit("a process that reads the slide has failed")


class Ours:
    """The pipeline, on a slide that is open and with processes that have started."""

    def __init__(self, slide: Path, workers: int, out: Path) -> None:
        self._config, self._path = ExtractConfig(workers=workers, device="cpu"), out / "features.h5"
        self._pool = ReaderPool(workers)
        self._reader = open_slide(slide, pool=self._pool)
        self._tissue = segment_tissue(self._reader, self._config.tissue)
        self.grid = make_patch_grid(self._reader.slide, self._tissue, self._config.patch)
        scale = self._config.patch.mpp / self._reader.slide.mpp
        if scale != 1:
            raise SystemExit(f"{slide}: give a slide of {self._config.patch.mpp} µm/px, as make_slide.py makes them")

    def seconds(self, grid: PatchGrid) -> float:
        """From the first request to the finished feature file."""
        encoder, config = Nothing(), self._config
        provenance = provenance_of(self._reader.slide, encoder, config, self._tissue.threshold)
        start = time.perf_counter()
        with (
            FeatureWriter(self._path, grid, provenance, dim=encoder.dim, dtype=encoder.store_dtype) as writer,
            encoded_patches(self._reader, grid, encoder, config) as encoded,
        ):
            for features in encoded:
                writer.append(features)
        return time.perf_counter() - start

    @property
    def pids(self) -> list[int]:
        """This process and the readers."""
        return [os.getpid(), *self._pool.pids]

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def rates(slide: Path, rounds: int, patches: int, out: Path) -> dict[str, list[float]]:
    """Patches per second of each competitor in each round."""
    ours = {n: Ours(slide, n, out) for n in WORKERS}
    bare = {n: Bare(slide, n) for n in WORKERS}
    grid = ours[1].grid
    order = [f"{name} {n}" for name in ("bare", "ours") for n in WORKERS]
    found: dict[str, list[float]] = {f"{name}{what}": [] for what in ("", CPU) for name in order}
    for turn in range(-1, rounds):  # the first is not counted: processes start, files come into memory
        start = np.random.default_rng(turn + 1).integers(0, max(1, len(grid) - patches))
        part = replace(grid, coords=grid.coords[start:][:patches], index=grid.index[start:][:patches])
        for name in order:
            who, n = name.split()[0], int(name.split()[1])
            pids = (bare if who == "bare" else ours)[n].pids
            before = cpu_s(pids)
            seconds = bare[n].seconds(part.coords) if who == "bare" else ours[n].seconds(part)
            if turn >= 0:
                found[name].append(len(part) / seconds)
                found[name + CPU].append(1e3 * (cpu_s(pids) - before) / len(part))
        order = order[1:] + order[:1]
    for competitor in (*ours.values(), *bare.values()):
        competitor.close()
    return found


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians and quartiles of rates and of ratios within a round."""
    series = dict(found)
    for n in WORKERS:
        series[f"ours / bare, {n}"] = ratio(found[f"ours {n}"], found[f"bare {n}"])
        series[f"bare / ours, {n}{CPU}"] = ratio(found[f"bare {n}{CPU}"], found[f"ours {n}{CPU}"])
    for name in ("bare", "ours"):
        series[f"{name}, 2 / 1"] = ratio(found[f"{name} 2"], found[f"{name} 1"])
    names = ("lower", "median", "upper")
    return {k: dict(zip(names, map(float, np.percentile(v, (25, 50, 75))), strict=True)) for k, v in series.items()}


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of processor time that processes have had, all their threads together."""
    paths = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in paths) / 1e9


def resident(pids: Sequence[int]) -> float:
    """MB that processes hold together; what they share counts in each."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch_memory(slide: Path, workers: int) -> None:
    """Extract a slide and print what memory that took: run in a process of its own."""
    encoder, config = Nothing(), ExtractConfig(workers=workers, device="cpu")
    alone, largest, done = resident([os.getpid()]), 0.0, threading.Event()
    with ReaderPool(workers) as pool, tempfile.TemporaryDirectory() as out:

        def watch() -> None:
            nonlocal largest
            while not done.wait(0.02):
                largest = max(largest, resident([os.getpid(), *pool.pids]))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            outcome = extract_slide(find_slides([slide])[0], Path(out), config, encoder, pool)
        finally:
            done.set()
            watching.join()
    print(json.dumps({"patches": outcome.patches, "alone_mb": alone, "largest_mb": largest, "error": outcome.error}))


def memory(sides: Sequence[int], folder: Path) -> list[dict[str, float]]:
    """What slides of growing size take, with two readers."""
    rows = []
    base = "import os, torch, wsi2d; print(open(f'/proc/{os.getpid()}/statm').read().split()[1])"
    torch_mb = float(subprocess.check_output([sys.executable, "-c", base])) * os.sysconf("SC_PAGE_SIZE") / 1e6
    for side in sides:
        slide = make_slide(folder / f"{side}.tiff", side=side)
        said = subprocess.check_output([sys.executable, __file__, str(slide), "--watch-memory"], text=True)
        row = json.loads(said)
        if row.pop("error"):
            raise SystemExit(f"the slide of {side} px could not be extracted")
        rows.append({"side_px": side, "torch_mb": torch_mb, "above_torch_mb": row["largest_mb"] - torch_mb, **row})
        slide.unlink()
    return rows


def machine() -> dict[str, object]:
    """Where and with what it was measured."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    packages = ("torch", "numpy", "openslide-python", "openslide-bin", "pillow", "h5py", "tifffile")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{p: version(p) for p in packages},
    }


def show(result: dict[str, object]) -> None:
    """Tables in Markdown."""
    print("| | lower quartile | median | upper quartile |\n|---|---|---|---|")
    for name, s in result["rates"].items():  # type: ignore[attr-defined]
        form = "{:.2f}" if "/" in name else "{:.2f} ms a patch" if CPU in name else "{:.0f} patches/s"
        print(f"| {name} | " + " | ".join(form.format(s[k]) for k in ("lower", "median", "upper")) + " |")
    if result["memory"]:
        print("\n| side, px | patches | torch alone, MB | parent and 2 readers, MB | above torch, MB |")
        print("|---|---|---|---|---|")
    for row in result["memory"]:  # type: ignore[attr-defined]
        print("| {side_px} | {patches} | {torch_mb:.0f} | {largest_mb:.0f} | {above_torch_mb:.0f} |".format(**row))


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patches", type=int, default=3000, help="each round and competitor")
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES, help="of slides for memory, px")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--watch-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch_memory:
        return watch_memory(options.slide, max(WORKERS))
    result: dict[str, object] = {"machine": machine(), "rounds": options.rounds, "patches": options.patches}
    with tempfile.TemporaryDirectory() as folder:
        result["rates"] = summary(rates(options.slide, options.rounds, options.patches, Path(folder)))
        result["memory"] = memory(options.sides, Path(folder))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return None


if __name__ == "__main__":
    main()
