"""What this machine has for wsi2d: versions, devices, encoders, a cluster, and whether the scans are right on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import wsi2d
from wsi2d.compute import available_cores
from wsi2d.errors import Wsi2dError
from wsi2d.kernels.check import ScanCheck, check_backends

PACKAGES = ("torch", "numba", "triton", "numpy", "h5py", "openslide-python", "scikit-learn", "scikit-survival")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what it belongs to, as ``machine`` or ``versions``.
        name, value: what was looked at, and what was found.
        problem: what is wrong with it and what to do; empty where nothing is.
    """

    topic: str
    name: str
    value: str
    problem: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found; ``scans`` is empty where they were not asked for."""

    findings: tuple[Finding, ...]
    scans: tuple[ScanCheck, ...] = field(default=())

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        found = [f"{finding.name}: {finding.problem}" for finding in self.findings if finding.problem]
        return found + [
            f"{c.scan} scan, {c.backend} on {c.device}: {_what_is_wrong(c)}" for c in self.scans if not c.ok
        ]

    def to_json(self) -> str:
        """The same as JSON, with NaN as null."""
        scans = [{k: None if v != v else v for k, v in asdict(check).items()} for check in self.scans]
        whole = {"findings": [asdict(f) for f in self.findings], "scans": scans, "problems": self.problems}
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def examine(*, scan: bool = False) -> Diagnosis:
    """Look at this machine.

    Args:
        scan: also hold every backend of both 2D scans against the equations in float64, and time it.
    """
    findings = [*_machine(), *_versions(), *_devices(), *_scan_backend(), *_encoders(), *_cluster()]
    checks: list[ScanCheck] = []
    if scan:
        import torch

        checks = check_backends("cpu") + (check_backends("cuda") if torch.cuda.is_available() else [])
    return Diagnosis(tuple(findings), tuple(checks))


def _what_is_wrong(check: ScanCheck) -> str:
    return check.error or f"relative error {check.output:.1e} of the output, {check.gradient:.1e} of the gradients"


def _machine() -> list[Finding]:
    return [
        Finding("machine", "system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("machine", "processor", f"{_processor()}, {available_cores()} cores for this process"),
        Finding("machine", "memory", _memory()),
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a Unix
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _versions() -> list[Finding]:
    found = [Finding("versions", "wsi2d", wsi2d.__version__), Finding("versions", "Python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append(Finding("versions", package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            needed = "" if package == "triton" else f"is not installed; pip install {package}"
            found.append(Finding("versions", package, "not installed", needed))
    return [*found, _opens("OpenSlide", _openslide), _opens("HDF5", _hdf5)]


def _opens(name: str, version: Callable[[], str]) -> Finding:
    """A library that its Python package loads: its version, or why it does not load."""
    try:
        return Finding("versions", name, version())
    except (ImportError, OSError) as error:
        problem = f"does not load ({str(error).splitlines()[0]}); reinstall wsi2d"
        return Finding("versions", name, "does not load", problem)


def _openslide() -> str:
    import openslide

    return str(openslide.__library_version__)


def _hdf5() -> str:
    import h5py

    return str(h5py.version.hdf5_version)


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return [Finding("devices", "GPU", f"none ({built})")]
    found = []
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        found.append(Finding("devices", f"cuda:{k}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"))
    return found


def _scan_backend() -> list[Finding]:
    import torch

    from wsi2d.kernels.scan2d import BACKEND_VARIABLE, available_backends, choose_backend

    found = [Finding("scans", "backends", ", ".join(available_backends()))]
    try:
        name, reason = choose_backend(torch.device("cpu"), torch.float32)
        found.append(Finding("scans", "on the CPU", f"{name} ({reason})"))
        if torch.cuda.is_available():
            name, reason = choose_backend(torch.device("cuda"), torch.float32)
            found.append(Finding("scans", "on the GPU", f"{name} ({reason})"))
    except ValueError as error:
        problem = str(error).removeprefix(f"{BACKEND_VARIABLE} is ")
        found.append(Finding("scans", BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE, ""), problem))
    if "native" in available_backends():
        from wsi2d.kernels.native.jit import cache_folder
        from wsi2d.kernels.native.simd import INSTRUCTIONS

        folder = cache_folder()
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK)
        problem = "" if writable else "cannot be written, so each process compiles anew; set NUMBA_CACHE_DIR"
        found.append(Finding("scans", "instructions", INSTRUCTIONS))
        found.append(Finding("scans", "compiled kernels", str(folder), problem))
    return found


def _encoders() -> list[Finding]:
    from wsi2d.features.encoders import ENCODERS, get_encoder
    from wsi2d.features.encoders.catalogue import CATALOGUE

    found = []
    for name in ENCODERS:
        try:
            encoder = get_encoder(name)
            found.append(Finding("encoders", name, f"{encoder.dim} numbers a patch"))
        except (Wsi2dError, ImportError) as error:
            found.append(Finding("encoders", name, "not usable", str(error).splitlines()[0]))
    found.append(Finding("encoders", "with weights", f"{len(CATALOGUE)} by name (wsi2d encoders shows what they lack)"))
    for package in ("timm", "transformers"):
        try:
            found.append(Finding("encoders", package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append(Finding("encoders", package, "not installed (pip install 'wsi2d[encoders]')"))
    return found


def _cluster() -> list[Finding]:
    sbatch, job = shutil.which("sbatch"), os.environ.get("SLURM_JOB_ID")
    slurm = "no sbatch on the path" if sbatch is None else sbatch
    dask = "installed" if find_spec("distributed") else "not installed (pip install 'wsi2d[cluster]')"
    return [
        Finding("cluster", "Slurm", f"{slurm}, in job {job}" if job else slurm),
        Finding("cluster", "Dask", dask),
    ]
