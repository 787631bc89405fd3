"""All encoders that have a name: what each is, whether it can be used on this machine, and if not, what to do."""

from __future__ import annotations

from dataclasses import dataclass

from wsi2d.errors import ConfigError
from wsi2d.features.encoders import ENCODERS, get_encoder
from wsi2d.features.encoders.catalogue import CATALOGUE
from wsi2d.features.encoders.hub import cached_here
from wsi2d.features.encoders.packages import import_package
from wsi2d.features.encoders.pretrained import hub_files


@dataclass(frozen=True)
class EncoderStatus:
    """An encoder, and its state on this machine.

    Attributes:
        name: under which it is asked for.
        backend: the package that builds it, or ``wsi2d``.
        width: of an embedding.
        patch_px, mpp: the patches that it was made for, side (px) and resolution (µm/px); None where any do.
        licence: of its weights.
        gated: whether terms must be accepted first; None where this is not known.
        page: its model card; empty for those without weights.
        installed: whether the backend imports.
        cached: whether its weights are in the local cache (or it needs none).
        remedy: what to do where it is not usable, in one line; empty where it is.
    """

    name: str
    backend: str
    width: int
    patch_px: int | None
    mpp: float | None
    licence: str
    gated: bool | None
    page: str
    installed: bool
    cached: bool
    remedy: str


def list_encoders() -> list[EncoderStatus]:
    """Every encoder that has a name, those without weights first. No network is used."""
    found = []
    for name in ENCODERS:
        width = get_encoder(name).dim
        found.append(EncoderStatus(name, "wsi2d", width, None, None, "Apache-2.0", False, "", True, True, ""))
    problems = {backend: _problem(backend) for backend in ("timm", "transformers")}
    files = [hub_files(spec) for spec in CATALOGUE.values()]
    for spec, needed, cached in zip(CATALOGUE.values(), files, cached_here(files), strict=True):
        problem = problems[spec.backend]
        found.append(
            EncoderStatus(
                spec.name, spec.backend, spec.width, spec.patch_px, spec.mpp, spec.licence, spec.gated, spec.page,
                installed=not problem, cached=cached, remedy=problem or ("" if cached else needed.advice),
            )
        )  # fmt: skip
    return found


def _problem(backend: str) -> str:
    """Why a package does not import, with the remedy; empty where it does."""
    try:
        import_package(backend)
    except ConfigError as error:
        return str(error)
    return ""
