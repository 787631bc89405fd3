"""The receptive field on a slide of 100,000 patches: memory is bounded, whatever the number of centres."""

import json
import subprocess
import sys

import pytest

from wsi2d.models.registry import MODELS, model_class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited and read as Linux does"),
    pytest.mark.usefixtures("skip_without_torchmil"),
]

SIDE, PATCHES, DIM, IN_DIM = 450, 100_000, 32, 64
# Numbers that may be held of each cell (of each patch where gaps are left out), in widths of the model.
WIDTHS = 90
CODE = """
import json, re, resource, sys
from pathlib import Path
import numpy as np, torch
from wsi2d.data.bags import GridBag
from wsi2d.explain.receptive_field import receptive_field
from wsi2d.models.registry import build_model

name, side, patches, dim, in_dim, allowed, centres = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = build_model({"name": name, "dim": dim}, in_dim=in_dim, out_dim=2)
cells = np.random.default_rng(0).permutation(side * side)[:patches]
bag = GridBag("x", torch.randn(patches, in_dim), torch.from_numpy(np.stack(np.divmod(cells, side), 1)), (side, side))
few = GridBag("y", bag.features[:4], torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
receptive_field(model, [few])
held = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + allowed, held + allowed))
field = receptive_field(model, [bag], centres=centres)
print(json.dumps([len(field.offsets), float(field.share.sum()), field.single_point]))
"""


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("transformer-abmil")])
def test_memory_is_bounded(name: str) -> None:
    """Asking for more than is allowed would end the process."""
    about = model_class({"name": name}).about
    places = SIDE**2 if about.sees == "grid" else PATCHES
    asked = json.dumps([name, SIDE, PATCHES, DIM, IN_DIM, WIDTHS * DIM * 4 * places, 3])
    done = subprocess.run([sys.executable, "-c", CODE, asked], capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    offsets, share, point = json.loads(done.stdout)
    assert PATCHES <= offsets <= 3 * PATCHES
    assert share == pytest.approx(1)
    assert point == (about.sees == "set")
