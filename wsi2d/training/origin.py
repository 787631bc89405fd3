"""Whether features are like those a run was trained on, as far as their files or the user say what they are."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from wsi2d.config import DataConfig
from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.claims import Claims
from wsi2d.features.spec import FeatureSpec

logger = logging.getLogger(__name__)

_NAMES = {"encoder": "encoder", "mpp": "resolution (mpp)", "patch_px": "size of a patch (patch_px)"}
_OPTIONS = {"encoder": "--encoder", "mpp": "--mpp", "patch_px": "--patch-px"}


def claims_of(data: DataConfig) -> Claims:
    """What a run's configuration says of features whose files do not."""
    return Claims(data.encoder, data.mpp, data.patch_px)


def refuse_other_features(
    path: Path, found: FeatureSpec, expected: FeatureSpec, claims: Claims, *, own: bool = False
) -> None:
    """Refuse features that a run was not trained on, and those of which that is not known.

    What a file does not say the user has to (``claims``, which ``found`` holds already). A name is no proof that an
    imported encoder is the very one of an extraction by this package, nor is anything where the run itself was trained
    on features of unknown origin: there too the user has to say it, and is believed. Of the run's own folder (``own``)
    nothing has to be said again.

    Raises:
        FeatureStoreError: they are others, or nobody says that they are not.
    """
    if found.unknown and not own:
        what, options = (" and ".join(names[name] for name in found.unknown) for names in (_NAMES, _OPTIONS))
        raise FeatureStoreError(
            f"{path}: its {what} is not known; if it is as that of the run's features, say what it is with {options}"
        )
    believed = found
    if (found.encoder_hash is None) != (expected.encoder_hash is None) and not own:
        if claims.encoder is None and found.encoder == expected.encoder:
            raise FeatureStoreError(
                f"{path}: another tool extracted these or the run's features, so that encoder '{found.encoder}' is the "
                f"run's by name alone; if it is the very same, say --encoder {found.encoder}"
            )
        believed = replace(found, encoder_hash=expected.encoder_hash)
    unknown = [name for name in expected.unknown if getattr(claims, name) is not None]
    difference = replace(expected, **{name: getattr(found, name) for name in unknown}).difference(believed)
    if difference is not None:
        raise FeatureStoreError(f"{path}: has {difference} as the run was trained on; extract it alike")


def tell_what_is_believed(expected: FeatureSpec, where: Path) -> None:
    """Warn where a run's features are of unknown origin, so that nothing can be compared with them."""
    if expected.unknown:
        what = " and ".join(_NAMES[name] for name in expected.unknown)
        logger.warning(
            "the run was trained on features whose %s is not known: that %s are alike is only said",
            what,
            where,
        )


def note_on_origin(spec: FeatureSpec, folder: Path) -> str | None:
    """What a reader of a run's numbers must know of features of unknown origin; None where all is known."""
    if not spec.unknown:
        return None
    what = " and ".join(_NAMES[name] for name in spec.unknown)
    keys = " and ".join(f"data.{name}" for name in spec.unknown)
    return f"the features' {what} is not known, only that all slides' files agree ({folder}); {keys} would say it"
