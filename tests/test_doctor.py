"""`wsi2d doctor`: it names what is wrong, and a scan that is wrong does not pass."""

import json
import os
import subprocess
import sys

import pytest
import torch

from wsi2d import doctor
from wsi2d.kernels import check
from wsi2d.kernels.scan2d import selective_scan_2d


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "wsi2d.cli.main", "doctor", *arguments],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment,
    )  # fmt: skip


def test_a_sound_machine() -> None:
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["problems"] == []
    found = {(f["topic"], f["name"]): f["value"] for f in told["findings"]}
    assert torch.__version__.startswith(found["versions", "torch"].partition("+")[0])
    assert found["scans", "backends"] == "torch, native"
    assert found["scans", "on the CPU"] == "native (the fastest on a CPU)"
    assert found["encoders", "histology-stats"] == "108 numbers a patch"
    assert {topic for topic, _ in found} == {"machine", "versions", "devices", "scans", "encoders", "cluster"}


def test_a_backend_that_is_not_there() -> None:
    done = run_doctor(WSI2D_SCAN_BACKEND="cuda")
    assert done.returncode == 1
    assert done.stderr == "wrong: WSI2D_SCAN_BACKEND: 'cuda', it should be one of torch, native\n"
    assert "WSI2D_SCAN_BACKEND" in done.stdout


def test_the_reason_for_a_backend() -> None:
    done = run_doctor("--json", WSI2D_SCAN_BACKEND="torch")
    values = {f["name"]: f["value"] for f in json.loads(done.stdout)["findings"]}
    assert values["on the CPU"] == "torch (WSI2D_SCAN_BACKEND is set)"


def test_scans_are_checked_and_timed() -> None:
    done = run_doctor("--scan", "--json")
    assert done.returncode == 0, done.stderr
    scans = json.loads(done.stdout)["scans"]
    assert [(s["scan"], s["backend"]) for s in scans] == [
        ("selective", "torch"), ("selective", "native"), ("wavefront", "torch"), ("wavefront", "native"),
    ]  # fmt: skip
    for scan in scans:
        assert scan["ok"]
        assert 0 < scan["output"] < 1e-6
        assert 0 < scan["gradient"] < 5e-6
        assert scan["seconds"] > 0


@pytest.mark.parametrize("factor", [1.00001, float("nan")])
def test_a_wrong_scan_is_found(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        return selective_scan_2d(*args, **kwargs, delta_softplus=True) * factor  # type: ignore[arg-type]

    monkeypatch.setitem(check.SCANS, "selective", wrong)
    checks = check.check_backends(timed=False)
    assert [(c.scan, c.ok) for c in checks] == [("selective", False)] * 2 + [("wavefront", True)] * 2
    problems = doctor.Diagnosis((), tuple(checks)).problems
    assert len(problems) == 2
    assert problems[1].startswith("selective scan, native on cpu: relative error ")


def test_a_scan_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise OSError("no such\ninstruction")

    monkeypatch.setitem(check.SCANS, "wavefront", broken)
    problems = doctor.Diagnosis((), tuple(check.check_backends(timed=False))).problems
    assert problems == [f"wavefront scan, {name} on cpu: no such instruction" for name in ("torch", "native")]


def test_what_is_not_a_number_is_null_in_json() -> None:
    unknown = check.ScanCheck("selective", "torch", "cpu", float("nan"), float("nan"), False, float("nan"), "why")
    told = json.loads(doctor.Diagnosis((), (unknown,)).to_json())
    assert told["scans"][0]["output"] is None
    assert told["problems"] == ["selective scan, torch on cpu: why"]


def test_a_cache_that_cannot_be_written() -> None:
    done = run_doctor("--json", NUMBA_CACHE_DIR="/dev/null/cache")
    assert done.returncode == 1
    assert (
        "compiled kernels: cannot be written, so each process compiles anew; set NUMBA_CACHE_DIR"
        in (json.loads(done.stdout)["problems"])
    )
