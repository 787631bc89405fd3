"""Slides become feature files: finished ones are skipped, bad ones named, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi2d.config import ExtractConfig
from wsi2d.errors import FeatureStoreError, StorageError
from wsi2d.features.cluster_connection import parse_cluster
from wsi2d.features.encoders import Encoder
from wsi2d.features.encoders.recommended import fit_patches
from wsi2d.features.exclusive import Order, extract_exclusively
from wsi2d.features.failures import list_failures
from wsi2d.features.locks import Locks, clear_partial
from wsi2d.features.outcomes import ExtractProgress, ExtractReport, SlideOutcome
from wsi2d.features.settings import finished_slides, load_encoder
from wsi2d.features.sharding import Shard
from wsi2d.features.store import feature_path
from wsi2d.files import make_folder, stamp
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.pixel_size import check_mpp
from wsi2d.slides.reader_pool import ReaderPool

Extraction = Callable[[Sequence[Order]], Iterator[SlideOutcome]]


def extract(
    slides: Sequence[SlideFile],
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    slide_mpp: float | None = None,
    cohort_mpp: Mapping[str, float] | None = None,
    overwrite: bool = False,
    shard: Shard | None = None,
    cluster: str | None = None,
    progress: ExtractProgress | None = None,
) -> ExtractReport:
    """Cut slides into patches, encode them, and write one feature file a slide into ``out``.

    Several runs may work on one folder: each slide is extracted by one of them. What another has in hand is left to it,
    and looked at once more at the end. A run that is stopped lists what has failed so far.

    Args:
        slides: what :func:`wsi2d.slides.discovery.find_slides` found.
        out: folder of the feature files; also gets ``failures.csv`` where a slide failed (``failures-3-of-8.csv`` for a
            shard).
        config: encoder, patches (those that the encoder was made for, where it does not say), tissue, batch size,
            reading processes and device.
        slide_mpp: level-0 pixel size of every slide, µm/px; goes before all else.
        cohort_mpp: level-0 pixel size by slide id, µm/px; goes before the header.
        overwrite: redo finished slides too; where one fails now, its file stays if it was made with these settings.
        shard: only this share of the slides.
        cluster: where the work is done: the address of a Dask scheduler, or ``local:N`` for N processes of this
            machine; in this process where None. From a script, ``local:N`` needs ``if __name__ == "__main__"``.
        progress: told what happens.

    Raises:
        ConfigError: unknown encoder, unfit patch size, finished files made with other settings, or a cluster that is
            not there or of another version.
        ModelError: the encoder's weights are not here, are damaged, or belong to another network.
        SlideError: an impossible ``slide_mpp``; what is wrong with one slide is told in the report.
        StorageError: the folder or its disk does not take the files.
        ClusterError: the cluster went away.
    """
    config, progress, out = fit_patches(config or ExtractConfig()), progress or ExtractProgress(), Path(out)
    check_mpp(slide_mpp, "slide_mpp:")
    if cluster is not None:
        parse_cluster(cluster)
    slides = list(slides) if shard is None else shard.take(slides)
    # Who only hands out the work needs the encoder for its fingerprint, not the device.
    encoder = load_encoder(config if cluster is None else config.model_copy(update={"device": "cpu"}))
    make_folder(out, "give another --out")
    orders = [_order(file, out, slide_mpp, (cohort_mpp or {}).get(file.slide_id)) for file in slides]
    given = given_mpp(slides, slide_mpp, cohort_mpp)
    finished = set() if overwrite else finished_slides(slides, out, config, encoder, given)
    outcomes: dict[str, SlideOutcome] = {}
    try:
        with Locks() as locks:
            locks.clear(out)
            outcomes |= {o.file.slide_id: _skip(o, locks, progress) for o in orders if o.file.slide_id in finished}
            if wanted := [order for order in orders if order.file.slide_id not in finished]:
                with _extraction(out, config, encoder, locks, cluster, progress) as extraction:
                    _extract(wanted, extraction, progress, outcomes)
    except BaseException:
        with suppress(StorageError, FeatureStoreError):  # of a full disk: what ended the run is to be told
            list_failures(out, list(outcomes.values()), shard, stopped=True)
        raise
    report = ExtractReport(tuple(outcomes[file.slide_id] for file in slides))
    list_failures(out, report.slides, shard)
    return report


def given_mpp(
    slides: Sequence[SlideFile], slide_mpp: float | None, cohort_mpp: Mapping[str, float] | None
) -> dict[str, float | None]:
    """Level-0 pixel sizes that the user or the cohort gives, µm/px, by slide id; None where it is the header's."""
    return {f.slide_id: slide_mpp if slide_mpp is not None else (cohort_mpp or {}).get(f.slide_id) for f in slides}


def _order(file: SlideFile, out: Path, slide_mpp: float | None, cohort_mpp: float | None) -> Order:
    return Order(file, out, slide_mpp, cohort_mpp, stamp(feature_path(out, file.slide_id)))


def _skip(order: Order, locks: Locks, progress: ExtractProgress) -> SlideOutcome:
    clear_partial(order.path, locks)
    outcome = order.outcome("skipped")
    progress.slide_finished(outcome)
    return outcome


def _extract(
    orders: Sequence[Order], extraction: Extraction, progress: ExtractProgress, outcomes: dict[str, SlideOutcome]
) -> None:
    """Note what becomes of each slide; those that another run has in hand are tried once more at the end."""
    for last in (False, True):
        for outcome in extraction(orders):
            outcomes[outcome.slide_id] = outcome
            if outcome.outcome != "elsewhere" or last:
                progress.slide_finished(outcome)
        orders = [order for order in orders if outcomes[order.file.slide_id].outcome == "elsewhere"]
        if not orders:
            break


@contextmanager
def _extraction(
    out: Path, config: ExtractConfig, encoder: Encoder, locks: Locks, cluster: str | None, progress: ExtractProgress
) -> Iterator[Extraction]:
    """Where the work is done: one slide after the other in this process, or side by side on a cluster."""
    if cluster is not None:
        from wsi2d.features.cluster import on_cluster

        with on_cluster(cluster, out, config, encoder, progress) as extraction:
            yield extraction
        return
    with ReaderPool(config.workers, limit_s=config.read_limit_s) as pool:
        yield lambda orders: (extract_exclusively(o, config, encoder, pool, locks, progress) for o in orders)
