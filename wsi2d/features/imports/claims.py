"""What a user says of features whose files do not say it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi2d.errors import ConfigError, FeatureStoreError
from wsi2d.features.imports.peer import PeerSlide
from wsi2d.features.spec import same_mpp
from wsi2d.features.store import FeatureHeader
from wsi2d.slides.pixel_size import check_mpp

_NOMINAL = (
    1.3  # by what factor a resolution may differ from what its magnification stands for; 0.23 µm/px is called 40×
)


@dataclass(frozen=True)
class Claims:
    """What a user says of features: the encoder, the resolution (µm/px) and side (px) of a patch; None: nothing.

    Raises:
        ConfigError: it cannot be.
    """

    encoder: str | None = None
    mpp: float | None = None
    patch_px: int | None = None

    def __post_init__(self) -> None:
        if self.encoder is not None and not self.encoder.strip():
            raise ConfigError("encoder: is blank; give its name, or leave it away")
        check_mpp(self.mpp, "mpp:")
        if self.patch_px is not None and self.patch_px < 1:
            raise ConfigError(f"patch_px must be > 0, got {self.patch_px}")

    def fill_slide(self, slide: PeerSlide, where: str) -> PeerSlide:
        """A peer's slide with what its file does not say.

        Raises:
            FeatureStoreError: the file says something else.
        """
        self._check(slide.encoder, slide.mpp, slide.patch_px, slide.nominal_mpp, where)
        return replace(
            slide,
            encoder=slide.encoder or self.encoder,
            mpp=self.mpp or slide.mpp,
            patch_px=slide.patch_px or self.patch_px,
            slide_mpp=None if slide.nominal_mpp and self.mpp is not None else slide.slide_mpp,
        )

    def fill_header(self, header: FeatureHeader, where: str) -> FeatureHeader:
        """A feature file's header with what it does not say; arguments and errors as :meth:`fill_slide`."""
        made, grid = header.provenance, header.geometry
        self._check(made.encoder, grid.mpp, grid.patch_px, made.mpp_source == "magnification", where)
        return replace(
            header,
            provenance=replace(made, encoder=made.encoder or self.encoder),
            geometry=replace(grid, mpp=self.mpp or grid.mpp, patch_px=grid.patch_px or self.patch_px),
        )

    def _check(self, encoder: str | None, mpp: float | None, patch_px: int | None, nominal: bool, where: str) -> None:
        if self.encoder is not None:
            _agree("encoder", encoder, self.encoder, where)
        if self.patch_px is not None:
            _agree("patch_px", patch_px, self.patch_px, where)
        if self.mpp is not None and mpp is not None and not same_mpp(mpp, self.mpp):
            known_better = nominal and 1 / _NOMINAL <= self.mpp / mpp <= _NOMINAL
            _agree("mpp", None if known_better else mpp, self.mpp, where)


NO_CLAIMS = Claims()


def _agree(name: str, said: object, claimed: object, where: str) -> None:
    if said is not None and said != claimed:
        raise FeatureStoreError(f"{where}: says {name} {said}, not {claimed}; leave the {name} away, or extract alike")
