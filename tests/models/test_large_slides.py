"""A slide of 500×500 cells, 75,000 of them tissue: every aggregator trains on it, in memory that is bounded."""

import json
import subprocess
import sys

import pytest

from wsi2d.models.registry import MODELS, model_class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

SIDE, PATCHES, DIM, IN_DIM = 500, 75_000, 32, 64
CODE = """
import json, re, sys
from pathlib import Path
import numpy as np, torch
from wsi2d.data.bags import GridBag, collate
from wsi2d.models.registry import build_model

name, side, patches, dim, in_dim = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = build_model({"name": name, "dim": dim}, in_dim=in_dim, out_dim=2)
cells = np.random.default_rng(0).permutation(side * side)[:patches]
index = torch.from_numpy(np.stack(np.divmod(cells, side), 1))
bag = GridBag("x", torch.randn(patches, in_dim), index, (side, side))

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

few = GridBag("y", bag.features[:4], torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
model(collate([few])).trained_logits.sum().backward()
before = peak()
output = model(collate([bag]))
output.trained_logits.square().sum().backward()
finite = all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
print(json.dumps([peak() - before, float(output.attention.sum()), bool(finite)]))
"""
# Numbers that a forward and backward pass may hold of each cell (of each patch where gaps are left out), in widths of
# the model. What was seen is half of it.
WIDTHS = 120


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("transformer-abmil")])
def test_memory_of_training_is_bounded(name: str, skip_without_torchmil: None) -> None:
    asked = json.dumps([name, SIDE, PATCHES, DIM, IN_DIM])
    done = subprocess.run([sys.executable, "-c", CODE, asked], capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    held, attention, finite = json.loads(done.stdout)
    places = SIDE**2 if model_class({"name": name}).about.sees == "grid" else PATCHES
    assert held < WIDTHS * DIM * 4 * places
    assert attention == pytest.approx(1, abs=1e-3)
    assert finite
