"""How fast the 2D scans are on this machine.

    python benchmarks/scan.py [--device cpu] [--threads 2] [--rounds 3] [--quick] [--json FILE]
    python benchmarks/scan.py --device cuda [--rounds 20] [--minutes 7] [--quick] [--json FILE]

On a CPU: ratios within one run, against PyTorch and against what the processor could do at best (``scan_cpu.py``). On a
GPU the same, and against two other Triton kernels (``scan_cuda.py``), in less than eight minutes; the file there is
``results/scan-….json``, called after the GPU, and holds what was measured up to whenever the run ends. It needs this
folder and ``kernels/``, torch, and numba for a CPU or triton for a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch


def find_kernels() -> None:
    """Let ``wsi2d.kernels`` be the folder beside this one, also where the package is not installed."""
    package = ModuleType("wsi2d")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules.setdefault("wsi2d", package)


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="128×128 alone")
    parser.add_argument("--minutes", type=float, default=7.0, help="on a GPU; what is not measured by then is left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here that torch can use")
    options.rounds = options.rounds or (3 if options.device == "cpu" else 20)
    find_kernels()
    module = import_module(f"scan_{options.device}")
    if options.compile:
        module.compile_all(*options.compile)
        return
    if options.device == "cuda" and not options.json:
        options.json = Path(__file__).with_name("results") / f"scan-{_slug(torch.cuda.get_device_name())}.json"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), **versions(options.device)}

    def keep(measured: dict[str, object]) -> None:
        if options.json and measured:
            text = json.dumps({**about, **measured}, indent=2, ensure_ascii=False)
            options.json.write_text(text + "\n", "utf-8")

    keep(module.run(options, keep) if options.device == "cuda" else module.run(options))


def versions(device: str) -> dict[str, str]:
    """Of what a time depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        found |= {"cuda": str(torch.version.cuda), "driver": _driver(), "system": platform.platform()}
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return lines[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _slug(name: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


if __name__ == "__main__":
    main()
