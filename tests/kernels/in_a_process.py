"""Scans in a process of their own, which may fork, start threads, or hang: `python in_a_process.py WHAT BACKEND`.

Leaves with 0 where all went well, and within a minute of hanging.
"""

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
import oracle
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import wsi2d

OPERATORS = (harness.SELECTIVE, harness.WAVEFRONT)
Case = tuple[harness.Inputs, Tensor]
Result = tuple[Tensor, harness.Inputs]


def make_case(operator: harness.Operator, seed: int = 0, size: tuple[int, int] = (17, 33), dim: int = 64) -> Case:
    """Arguments large enough to be shared between threads, and a gradient."""
    inputs = harness.make_inputs(size, dim, 5, operator=operator, dtype=torch.float32, seed=seed)
    return inputs, harness.make_grad(inputs)


def run_case(case: Case, backend: str) -> Result:
    """Output and gradients."""
    return harness.run_scan(*case, True, backend)


def assert_same(got: Result, want: Result) -> None:
    """To float32's tolerance, compared in numpy: torch's own threads do not survive a fork."""
    for name, ours, theirs in [("output", got[0], want[0]), *((n, got[1][n], want[1][n]) for n in want[1])]:
        error, largest = abs(ours.numpy() - theirs.numpy()).max(), abs(theirs.numpy()).max()
        assert error <= 1e-6 * largest, f"{name} differs by {error} of {largest}"  # not so where one is NaN


def in_a_fork(work: Callable[[], None]) -> None:
    """Runs it in a forked child, which is stopped if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"


def fork(backend: str) -> None:
    """A child scans as its parent did, twice over, and so does the parent after it."""
    torch.set_num_threads(2)
    cases = [make_case(operator) for operator in OPERATORS]
    wants = [run_case(case, backend) for case in cases]

    def scan_again() -> None:
        for case, want in zip(cases, wants, strict=True):
            assert_same(run_case(case, backend), want)

    in_a_fork(scan_again)
    in_a_fork(lambda: in_a_fork(scan_again))
    scan_again()


class Scans(Dataset[Tensor]):
    """Each item is the output and a gradient of a scan, computed when it is asked for."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        operator = OPERATORS[index % 2]
        out, grads = run_case(make_case(operator, seed=index), self.backend)
        return torch.stack([out, grads[operator.read]])


def loader(backend: str) -> None:
    """Two workers scan after their parent did, and while it does."""
    torch.set_num_threads(2)
    scans = Scans(backend)
    wants = [scans[index] for index in range(len(scans))]
    batches = DataLoader(scans, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    for index, got in enumerate(batches):
        harness.assert_close(got, harness.to_numpy(wants[index]), 1e-6, f"item {index}")
        harness.assert_close(scans[index], harness.to_numpy(wants[index]), 1e-6, f"item {index} of the parent")
    assert index == len(scans) - 1


def threads(backend: str) -> None:
    """Four threads scan at once, forward and backward, each with arguments of its own; the first calls too."""
    torch.set_num_threads(2)
    cases = [make_case(OPERATORS[seed % 2], seed, size) for seed, size in enumerate([(17, 33), (5, 40), (33, 9)] * 4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda case: run_case(case, backend), cases * 3))
    for case, got in zip(cases * 3, results, strict=True):
        assert_same(got, run_case(case, backend))


def cpu(backend: str) -> None:
    """One thread where torch has one; where it has two, the other takes a share."""
    case = make_case(harness.SELECTIVE, size=(64, 64), dim=128)
    for count in (1, 2):
        torch.set_num_threads(count)
        run_case(case, backend)
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        time.sleep(0.5)  # threads of the round before may spin for a moment
        own, all_of_us = time.thread_time(), time.process_time()
        harness.scan(case[0], True, backend)
        for _ in range(3):
            run_case(case, backend)
        own, all_of_us = time.thread_time() - own, time.process_time() - all_of_us
        # autograd has a thread of its own for backwards on other devices, but not for the CPU's
        others = (all_of_us - own) / all_of_us
        assert others < 0.05 if count == 1 else others > 0.1, f"{others:.0%} by other threads of {count}"


def memory(backend: str) -> None:
    """Forward and backward of a grid whose states are 64 times its inputs take a fraction of them."""
    torch.set_num_threads(2)
    run_case(make_case(harness.SELECTIVE), backend)
    run_case(make_case(harness.WAVEFRONT), backend)
    height, width, dim, state = 128, 128, 64, 64
    for operator in OPERATORS:
        inputs = harness.make_inputs((height, width), dim, state, operator=operator, dtype=torch.float32, batch=1)
        grad_out = harness.make_grad(inputs)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        harness.run_scan(inputs, grad_out, True, backend)
        took = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        states = height * width * dim * state * 4
        assert took < states / 2, f"{operator.name}: {took} bytes, and the states alone are {states}"


def cache(backend: str) -> None:
    """The numbers are right; the test has taken the folders away, and put a copy of the package in its place."""
    assert Path(wsi2d.__file__).is_relative_to(os.environ["PYTHONPATH"])
    for operator in OPERATORS:
        harness.check(
            oracle, harness.make_inputs((5, 7), 20, 5, operator=operator, dtype=torch.float32), backend=backend
        )


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (fork, loader, threads, cpu, memory, cache)}
    faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs, and ends it
    tasks[sys.argv[1]](sys.argv[2])
