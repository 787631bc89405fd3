"""The GPU kernels compile for GPUs that are not here, and what a thread holds fits its registers.

Triton and the assembler that comes with it need no GPU for that. It runs in a process of its own, in which Triton does
not interpret.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

COMPILE = """
import json, re, subprocess, sys
from pathlib import Path

import triton.backends.nvidia
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wsi2d.kernels.gpu import selective, wavefront
from wsi2d.kernels.gpu.tiles import SIZES
from wsi2d.kernels.gpu.tuning import candidates, power_of_two

scan, part, state, dtype, capability = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
height, dim, unset = int(sys.argv[6]), int(sys.argv[7]), sys.argv[8].split()
kernel = getattr({"selective": selective, "wavefront": wavefront}[scan], part)
whole = {"ticket", "order", "flags"}
single = {"A", "A_t", "A_l", "D", "bias", "right", "down", "back", "up", "states", "grad_A", "grad_At", "grad_Al",
          "grad_channels", "grad_D", "grad_B", "grad_C", "grad_Bt", "grad_Bl"}
for tiling in candidates(part, height, height if height > 1 else 4096, state):
    constants = {"ROWS": tiling.rows, "COLUMNS": tiling.columns, "STATES": power_of_two(state), "state": state,
                 "CHANNELS": tiling.channels, "dim": dim}
    constants |= {name: name not in unset for name in ("SOFTPLUS", "GATED", "WRITE", "ATOMIC")}
    types, constexprs, attributes = {}, {}, {}
    for k, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            types[name] = "constexpr"
            constexprs[name] = constants.get(name, state if name[0] in "BC" else dim)
        elif name in SIZES:
            types[name] = "i32"
        else:
            types[name] = "*i32" if name in whole else "*fp32" if name in single else f"*{dtype}"
            attributes[k,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=types, constexprs=constexprs, attrs=attributes)
    built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tiling.warps})
    cubin = Path(f"{scan}-{part}.cubin")
    cubin.write_bytes(built.asm["cubin"])
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\\d+)", usage).group(1)) for word in ("REG", "STACK"))
    print(json.dumps({"tiling": tiling, "registers": registers, "stack": stack}))
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("scan", "part", "state"), [
    ("selective", "forward", 16), ("selective", "backward", 16), ("selective", "backward", 64),
    ("wavefront", "forward", 16), ("wavefront", "backward", 16), ("wavefront", "forward", 64),
])  # fmt: skip
def test_a_kernel_compiles_without_spilling(
    scan: str, part: str, state: int, dtype: str, capability: int, tmp_path: Path
) -> None:
    if dtype == "bf16" and (state, capability) != (16, 90):
        pytest.skip("one GPU and one number of states are enough for half precision")
    check(tmp_path, scan, part, state, dtype, capability)


@pytest.mark.parametrize(("scan", "part", "state", "height", "dim", "unset"), [
    ("selective", "forward", 16, 200, 256, "WRITE GATED"), ("wavefront", "forward", 16, 200, 256, "WRITE"),
    ("selective", "backward", 16, 200, 256, "ATOMIC"), ("wavefront", "backward", 16, 200, 256, "ATOMIC"),
    ("selective", "forward", 5, 200, 1, "SOFTPLUS"), ("selective", "backward", 5, 200, 1, "SOFTPLUS"),
    ("wavefront", "backward", 5, 200, 1, ""),
    ("selective", "forward", 16, 1, 256, ""), ("selective", "backward", 16, 1, 256, ""),
    ("wavefront", "forward", 16, 1, 256, ""), ("wavefront", "backward", 16, 1, 256, ""),
    ("selective", "backward", 16, 512, 256, ""), ("wavefront", "backward", 16, 512, 256, ""),
])  # fmt: skip
def test_other_kinds_compile_without_spilling(
    scan: str, part: str, state: int, height: int, dim: int, unset: str, tmp_path: Path
) -> None:
    """Only the borders; sums of each block; states that are no power of two; one channel; one row; large grids."""
    check(tmp_path, scan, part, state, "fp32", 90, height, dim, unset)


def check(
    folder: Path, scan: str, part: str, state: int, dtype: str, capability: int, height: int = 200, dim: int = 256,
    unset: str = "",
) -> None:  # fmt: skip
    """Each tiling for such a scan compiles, and its states fit the registers."""
    kind = scan, part, state, dtype, capability, height, dim, unset
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", COMPILE, *map(str, kind)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    for kernel in found:
        assert kernel["stack"] <= 64, kernel  # bytes: a few addresses, no states
        assert 32 <= kernel["registers"] <= 255
