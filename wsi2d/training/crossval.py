"""All folds of a run, from a configuration to a finished run folder."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import pandas as pd
import torch

from wsi2d.compute import available_cores, resolve_device, torch_threads
from wsi2d.config import RunConfig
from wsi2d.config_files import load_run_config
from wsi2d.data.audit import Audit, audit_cohort
from wsi2d.data.splits import SlideFold
from wsi2d.errors import RunError, SplitError
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE, Evaluation, evaluate
from wsi2d.evaluation.predictions import Prediction, predictions_frame
from wsi2d.features.anyones import read_features
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.store import feature_path
from wsi2d.files import make_folder, remove, whole_file, write_text
from wsi2d.training.fold import RESUME_FILE, check_fold, train_fold
from wsi2d.training.losses.registry import loss_config
from wsi2d.training.origin import claims_of
from wsi2d.training.run import (
    Study,
    fold_folder,
    load_study,
    prepare_run_folder,
    resolve_sections,
    splits_of,
)

logger = logging.getLogger(__name__)

AUDIT_FILE = "audit.json"


class TrainProgress:
    """Told what happens; the base class says nothing. The command line draws bars from it."""

    def run_started(self, cohort: str, folds: int, epochs: int) -> None:
        """The data are loaded and checked."""

    def epoch_done(self, fold: int, row: dict[str, float]) -> None:
        """An epoch of a fold is done; not told while folds train in processes of their own."""

    def fold_done(self, fold: int) -> None:
        """A fold is finished, or was already."""


def train(config: RunConfig | Path | str, *, progress: TrainProgress | None = None) -> Evaluation:
    """Cross-validate: train every fold, predict its test side once, evaluate. Finished folds are not trained again.

    Args:
        config: a run's configuration, or the path of its YAML file.
        progress: told what happens.

    Returns:
        The evaluation, also written to ``metrics.json`` in the run folder ``config.out``. What an audit finds in the
        splits is warned of, and kept in ``audit.json``.

    Raises:
        ConfigError, CohortError, SplitError, FeatureStoreError: the input is unfit; checked before training begins.
        RunError: the run folder holds a run with other settings.
    """
    config = config if isinstance(config, RunConfig) else load_run_config(Path(config))
    progress = progress or TrainProgress()
    config = resolve_sections(config)
    resolve_device(config.training.device)
    study = load_study(config)
    _refuse_leakage(config, study.folds)
    loss = loss_config(config.training.loss, config.task.kind)
    for fold in study.folds:
        check_fold(study.cohort, fold, study.store, loss, config.data.bag)
    report = audit_cohort(study.cohort, splits_of(config), patients_known=_patients_known(config, study))
    for line in report.warnings():
        logger.warning("audit: %s", line)
    prepare_run_folder(config, study)
    _keep_audit(report, config.out / AUDIT_FILE)
    progress.run_started(study.cohort.describe(), len(study.folds), config.training.epochs)
    todo = []
    for fold in study.folds:
        folder = fold_folder(config.out, fold.index)
        if (folder / PREDICTIONS_FILE).exists():
            remove(folder / RESUME_FILE)
            progress.fold_done(fold.index)
        else:
            todo.append(fold)
    _run_folds(config, study, todo, progress)
    _join_predictions(config.out, study.folds)
    return evaluate(config.out, config.evaluation, seed=config.seed)


def _patients_known(config: RunConfig, study: Study) -> bool | set[str]:
    """Whether the table names patients; else the slides whose ids do."""
    if config.data.case_column != config.data.slide_column:
        return True
    return {slide.slide_id for slide in study.cohort.slides if slide.case_id != slide.slide_id}


def _keep_audit(report: Audit, path: Path) -> None:
    """Write the report; one that is there already is left alone."""
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    if not (path.is_file() and path.read_bytes() == text.encode()):
        write_text(path, text)


def _run_folds(config: RunConfig, study: Study, todo: Sequence[SlideFold], progress: TrainProgress) -> None:
    workers = min(config.training.workers, len(todo))
    threads = config.training.threads or max(1, available_cores() // max(workers, 1))
    if workers <= 1:
        with torch_threads(threads):
            for fold in todo:
                _train_and_write(config, study, fold, progress)
                progress.fold_done(fold.index)
        return
    context = _process_context()
    held, hold = context.Pipe(duplex=False)
    with hold, ProcessPoolExecutor(workers, context, initializer=_end_when_let_go, initargs=(held,)) as pool:
        try:
            with _undisturbed():
                jobs = {pool.submit(_fold_job, config, fold.index, threads): fold.index for fold in todo}
            for job in as_completed(jobs):
                job.result()
                progress.fold_done(jobs[job])
        except BrokenProcessPool as error:
            hold.close()
            raise RunError(
                f"run {config.out}: a process that trains a fold was killed, most often for want of memory; lower "
                "training.workers, and run the same command again to go on"
            ) from error
        except BaseException:
            hold.close()
            raise


def _process_context() -> multiprocessing.context.BaseContext:
    """Where children come from: a server that has imported torch but never computed, so that a fork of it holds none
    of the locks of torch's thread pool; a fresh interpreter where there is no such server."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server and its children inherit that an interrupt from the keyboard is not for them: the parent ends them.
    resource_tracker.ensure_running()  # it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Once the server has imported what it needs and answers, processes start at once.
    first = context.Process(target=int, daemon=True)
    first.start()
    first.join()
    return context


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Interrupts and terminations wait for the block's end: a process that is left while it starts complains, since
    the locks that it was to share are gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _end_when_let_go(held: Connection) -> None:
    """End this process as soon as nobody holds the other end of a pipe: the run was killed or interrupted, or another
    of its folds failed. Else this one would go on writing into the run folder; as it is, it can be gone on from."""

    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        held.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _fold_job(config: RunConfig, index: int, threads: int) -> None:
    """One fold in a process of its own."""
    torch.set_num_threads(threads)
    study = load_study(config)
    fold = next(f for f in study.folds if f.index == index)
    _train_and_write(config, study, fold, TrainProgress())


def _train_and_write(config: RunConfig, study: Study, fold: SlideFold, progress: TrainProgress) -> None:
    """Train a fold and keep its predictions; ``predictions.csv`` comes last and says that the fold is done."""
    folder = fold_folder(config.out, fold.index)
    predictions = train_fold(config, study.cohort, fold, study.store, folder, progress.epoch_done)
    write_attention(predictions, config.data.features, folder / "attention", claims_of(config.data))
    frame = predictions_frame(predictions, config.task.kind, study.cohort.classes)
    write_text(folder / PREDICTIONS_FILE, frame.to_csv(index=False))
    remove(folder / RESUME_FILE)


def write_attention(
    predictions: Sequence[Prediction], features: Path, folder: Path, claims: Claims = NO_CLAIMS
) -> None:
    """One HDF5 a slide: ``attention`` float32 ``[N]`` and ``coords`` int32 ``[N, 2]`` level-0 (x, y).

    Attention sums to 1 over a bag: over all slides of a patient where they are joined.
    """
    make_folder(folder, "check the run folder's permissions and disk")
    for prediction in predictions:
        for slide_id, attention in prediction.attention_by_slide().items():
            grid = read_features(feature_path(features, slide_id), claims).grid
            whole = io.BytesIO()  # HDF5 crashes the process where the disk is full
            with h5py.File(whole, "w") as file:
                file["attention"] = attention
                file["coords"] = grid.coords
                bag_patches = len(prediction.attention)
                file.attrs.update(slide_id=slide_id, patch_level0=grid.patch_level0, bag_patches=bag_patches)
            with whole_file(folder / f"{slide_id}.h5") as partial:
                partial.write_bytes(whole.getvalue())


def _join_predictions(out: Path, folds: Sequence[SlideFold]) -> None:
    parts = [pd.read_csv(fold_folder(out, f.index) / PREDICTIONS_FILE, dtype=str, keep_default_na=False) for f in folds]
    write_text(out / PREDICTIONS_FILE, pd.concat(parts, ignore_index=True).to_csv(index=False))


def _refuse_leakage(config: RunConfig, folds: Sequence[SlideFold]) -> None:
    for fold in folds:
        if fold.leaked_cases and not config.data.allow_leakage:
            raise SplitError(
                f"fold {fold.index}: {len(fold.leaked_cases)} patients are on two sides (the first is "
                f"'{fold.leaked_cases[0]}'); mend the splits with `wsi2d splits audit --fix`, or set "
                "data.allow_leakage: true (--allow-leakage) and say so"
            )
