"""The list of slides that failed: ``failures.csv`` beside the features, and one such file for each shard."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from wsi2d.errors import FeatureStoreError
from wsi2d.features.locks import FileLock, Locks
from wsi2d.features.outcomes import SlideOutcome
from wsi2d.features.sharding import Shard
from wsi2d.files import partial_path, remove, write_text

logger = logging.getLogger(__name__)

_WAIT_S = 20.0  # for another run that writes its list, which takes milliseconds


@dataclass(frozen=True)
class Failure:
    """A slide that failed, and why: one line."""

    slide_id: str
    path: str
    error: str


def failures_path(folder: Path, shard: Shard | None = None) -> Path:
    """Where a run's failures are listed; each shard has a list of its own."""
    return folder / ("failures.csv" if shard is None else f"failures-{shard.number}-of-{shard.count}.csv")


def read_failures(folder: Path | str) -> list[Failure]:
    """All slides that failed, whichever shard they were in, by their ids; of one that is named twice, the later word.

    Raises:
        FeatureStoreError: a list is damaged.
    """
    files = sorted(_lists(Path(folder)), key=lambda path: path.stat().st_mtime_ns)
    found = {failure.slide_id: failure for path in files for failure in _read(path)}
    return [found[slide_id] for slide_id in sorted(found)]


def list_failures(
    folder: Path, outcomes: Sequence[SlideOutcome], shard: Shard | None = None, *, stopped: bool = False
) -> None:
    """Write the list of a run of which this became; see :func:`write_failures`.

    Args:
        folder: of the feature files.
        outcomes: what became of the slides.
        shard: the run's, if it had one.
        stopped: whether it was stopped: what its list says of slides that it did not come to stays.

    Raises:
        StorageError: the folder does not take it.
        FeatureStoreError: the list of a run that was stopped is damaged.
    """
    failures = [Failure(s.slide_id, str(s.path), s.error) for s in outcomes if s.outcome == "failed"]
    known = {s.slide_id for s in outcomes if s.outcome != "elsewhere"}
    own = failures_path(folder, shard)
    if stopped and own.exists():
        failures += [failure for failure in _read(own) if failure.slide_id not in known]
        failures.sort(key=lambda failure: failure.slide_id)
    write_failures(folder, failures, known, shard)


def write_failures(folder: Path, failures: Sequence[Failure], dealt_with: Iterable[str], shard: Shard | None) -> None:
    """Write a run's list, or remove it where there are none, and take the run's slides from the lists of others.

    Args:
        folder: of the feature files.
        failures: the slides that failed.
        dealt_with: ids of all slides of which the run knows what became of them.
        shard: the run's, if it had one.

    Raises:
        StorageError: the folder does not take it.
    """
    own, known = failures_path(folder, shard), set(dealt_with)
    with Locks() as locks:
        if _wait_for(locks, folder / "failures.csv") is None:
            logger.warning("%s: another run has been writing its list for %g s; not waited for", folder, _WAIT_S)
        for path in _lists(folder):
            if path == own:
                continue
            try:
                listed = _read(path)
            except FeatureStoreError as error:
                logger.warning("%s", error)
                continue
            if any(failure.slide_id in known for failure in listed):
                _write(path, [failure for failure in listed if failure.slide_id not in known])
        _write(own, failures)


def _wait_for(locks: Locks, path: Path) -> FileLock | None:
    deadline = time.monotonic() + _WAIT_S
    while (lock := locks.take(path)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


def _lists(folder: Path) -> list[Path]:
    return sorted([*folder.glob("failures.csv"), *folder.glob("failures-[0-9]*-of-[0-9]*.csv")])


def _read(path: Path) -> list[Failure]:
    names = [field.name for field in fields(Failure)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [Failure(**{name: row[name] or "" for name in names}) for row in rows]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise FeatureStoreError(f"{path}: is no list of failed slides ({error}); delete it") from error


def _write(path: Path, failures: Sequence[Failure]) -> None:
    remove(partial_path(path))
    if not failures:
        remove(path)
        return
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow([field.name for field in fields(Failure)])
    rows.writerows(map(astuple, failures))
    write_text(path, table.getvalue().encode("utf-8", "backslashreplace").decode())
