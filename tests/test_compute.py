"""Devices by name, and threads that run ahead of their consumer, but not far."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from wsi2d.compute import available_cores, map_ahead, resolve_device, torch_threads
from wsi2d.errors import ConfigError


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_results_come_in_order(workers: int, ahead: int, count: int) -> None:
    def slow_then_fast(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    results = list(map_ahead(slow_then_fast, range(count), workers=workers, ahead=ahead))
    assert results == [i * i for i in range(count)]


@pytest.mark.parametrize("ahead", [1, 4, 7])
def test_it_stays_within_its_distance(ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield i

    results = map_ahead(lambda i: i, items(), workers=3, ahead=ahead)
    assert taken == 0
    for consumed, _ in enumerate(results, 1):
        time.sleep(0.001)  # the threads have time to run further, if they were let
        assert taken - consumed <= ahead
        assert taken - consumed == min(ahead, 40 - consumed)


def test_workers_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)
    assert sorted(map_ahead(lambda i: together.wait(), range(3), workers=3, ahead=3)) == [0, 1, 2]


def test_no_more_workers_than_asked() -> None:
    names = set(map_ahead(lambda i: (time.sleep(0.002), threading.current_thread().name)[1], range(20), workers=2,
                          ahead=20))  # fmt: skip
    assert len(names) == 2
    assert threading.current_thread().name not in names


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_comes_in_its_place_and_stops_the_rest(workers: int) -> None:
    started = []

    def fail_at_two(i: int) -> int:
        started.append(i)
        if i == 2:
            raise ZeroDivisionError(f"item {i}")
        time.sleep(0.15)
        return i

    results = map_ahead(fail_at_two, range(1000), workers=workers, ahead=50)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="item 2"):
        next(results)
    assert len(started) < 30
    assert list(results) == []


def test_a_consumer_that_leaves_stops_the_rest() -> None:
    started = []

    def note(i: int) -> int:
        started.append(i)
        time.sleep(0.1)
        return i

    results = map_ahead(note, range(1000), workers=2, ahead=50)
    assert next(results) == 0
    results.close()
    assert len(started) < 20
    time.sleep(0.05)
    assert len(started) < 20


def test_an_exception_of_the_items_comes_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("items")

    results = map_ahead(lambda i: i, items(), workers=2, ahead=1)
    assert next(results) == 1
    with pytest.raises(KeyError, match="items"):
        list(results)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "mps", "cpu cuda"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}': .*use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device 'cuda': this machine has 0 CUDA devices; use cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="device 'cuda:2': this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto").type == kind


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == (os.cpu_count() or 1)


def test_threads_of_torch_are_given_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), torch_threads(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before
