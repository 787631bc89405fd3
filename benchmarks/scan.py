"""How fast the 2D scans are on this machine.

    python benchmarks/scan.py [--device cpu] [--threads 2] [--rounds 3] [--quick] [--json FILE]
    python benchmarks/scan.py --device cuda [--rounds 20] [--quick] [--json FILE]

On a CPU: ratios within one run, against PyTorch and against what the processor could do at best (``scan_cpu.py``). On a
GPU the same, and against two other Triton kernels (``scan_cuda.py``), in less than eight minutes. Beside this folder it
needs the folder ``kernels/``, torch, and numba for a CPU or triton for a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here that torch can use")
    options.rounds = options.rounds or (3 if options.device == "cpu" else 20)
    find_kernels()
    measured = import_module(f"scan_{options.device}").run(options)
    if options.json and measured:
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        result = {"date": date, "python": platform.python_version(), "torch": torch.__version__, **measured}
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
