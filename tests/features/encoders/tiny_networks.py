"""Small random networks as transformers and timm save them, and a hub that answers as it is told. Loaded by tests."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIDE = 70  # px, what the small networks see
RESIZE = 80
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROCESSOR = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": RESIZE},
}


def save_dinov2(folder: Path, *, seed: int = 0, width: int = 32, registers: int = 0) -> nn.Module:
    """A small DINOv2 with a ``preprocessor_config.json``, in a folder as transformers saves it; returns it."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    options: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14,
    }  # fmt: skip
    if registers:
        config: Any = Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        model: Any = _shaken(Dinov2WithRegistersModel(config), seed)
    else:
        model = _shaken(Dinov2Model(Dinov2Config(**options)), seed)
    return save(model, folder)


def save_vit_classifier(folder: Path, *, seed: int = 0, side: int = SIDE) -> nn.Module:
    """A small ViT that sees ``side`` px, with a classifier on top, which is not needed."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=side,
        patch_size=14, num_labels=3,
    )  # fmt: skip
    return save(_shaken(ViTForImageClassification(config), seed), folder)


def save(model: Any, folder: Path, processor: Mapping[str, Any] | None = None) -> nn.Module:
    """Save a model of transformers with how its patches are prepared; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR if processor is None else processor))
    return model  # type: ignore[no-any-return]


def _shaken(model: nn.Module, seed: int) -> nn.Module:
    """With random weights everywhere, also where a fresh network has zeros and ones, so that everything matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


def put_in_cache(cache: Path, repository: str, files: Path, *names: str) -> Path:
    """Lay files into a folder as huggingface_hub's cache does; returns the snapshot's folder."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name in names or [p.name for p in files.iterdir()]:
        blob = root / "blobs" / f"{abs(hash(name)):x}"
        blob.write_bytes((files / name).read_bytes())
        (snapshot / name).symlink_to(blob)
    return snapshot


@dataclass
class Hub:
    """A hub on this machine.

    Attributes:
        address: to reach it.
        files: content by ``owner/name/file``; others are not there.
        status: with which every question is answered, instead.
        error: its ``X-Error-Code``.
        asked: methods and paths of the questions so far.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 0
    error: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a :class:`Hub` on 127.0.0.1."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def log_message(self, *args: object) -> None:
            """Nothing on stderr."""

        def _answer(self) -> bytes:
            hub.asked.append(f"{self.command} {self.path}")
            content = hub.files.get(
                self.path.strip("/").replace("/resolve/main/", "/").replace(f"/resolve/{COMMIT}/", "/")
            )
            status = hub.status or (404 if content is None else 200)
            self.send_response(status)
            code = hub.error or ("EntryNotFound" if status == 404 else "")
            for name, value in {
                "X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(self.path)):040x}"', "X-Error-Code": code,
                "Content-Length": str(len(content or b"")),
            }.items():  # fmt: skip
                if value:
                    self.send_header(name, value)
            self.end_headers()
            return content if content is not None and status == 200 else b""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join(10)
