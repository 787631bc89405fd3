"""Whether features are those of a run: what files say, what the user says, and what nobody does."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsi2d.config import DataConfig
from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.claims import Claims
from wsi2d.features.spec import FeatureSpec
from wsi2d.training.origin import claims_of, note_on_origin, refuse_other_features, tell_what_is_believed

PATH = Path("f") / "a.h5"
OURS = FeatureSpec("uni", "ab12", 0.5, 256, 0, 1024)
THEIRS = replace(OURS, encoder_hash=None)
UNKNOWN = replace(THEIRS, encoder=None, mpp=None)


def refused(found: FeatureSpec, expected: FeatureSpec, claims: Claims | None = None, **how: Any) -> str:
    """The line that refuses them."""
    with pytest.raises(FeatureStoreError) as error:
        taken(found, expected, claims, **how)
    line = str(error.value)
    assert line.startswith(f"{PATH}: ")
    assert "; " in line
    return line


def taken(found: FeatureSpec, expected: FeatureSpec, claims: Claims | None = None, **how: Any) -> bool:
    """Whether they are taken; what refuses them is raised."""
    refuse_other_features(PATH, found, expected, claims or Claims(), **how)
    return True


@pytest.mark.parametrize("run", [OURS, THEIRS])
def test_the_same_features(run: FeatureSpec) -> None:
    assert taken(run, run)


@pytest.mark.parametrize("run", [OURS, THEIRS])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": "conch"}, "has encoder conch, not uni as the run"),
        ({"mpp": 0.25}, "has mpp 0.25, not 0.5 as the run"),
        ({"patch_px": 224}, "has patch_px 224, not 256 as the run"),
        ({"overlap_px": 64}, "has overlap_px 64, not 0 as the run"),
        ({"dim": 768}, "has dim 768, not 1024 as the run"),
    ],
)
def test_other_features(run: FeatureSpec, change: dict[str, Any], words: str) -> None:
    """Whatever the user says: here the files say it."""
    for claims in (Claims(), Claims("uni", 0.5, 256)):
        assert words in refused(replace(run, **change), run, claims)


@pytest.mark.parametrize("run", [OURS, THEIRS, UNKNOWN])
@pytest.mark.parametrize(
    ("name", "words", "option"),
    [
        ("encoder", "its encoder is not known", "--encoder"),
        ("mpp", "its resolution (mpp) is not known", "--mpp"),
        ("patch_px", "its size of a patch (patch_px) is not known", "--patch-px"),
    ],
)
def test_what_nobody_says(run: FeatureSpec, name: str, words: str, option: str) -> None:
    line = refused(replace(THEIRS, **{name: None}), run)
    assert words in line
    assert line.endswith(option)


@pytest.mark.parametrize(("found", "run"), [(THEIRS, OURS), (OURS, THEIRS)])
def test_an_encoder_by_name_alone(found: FeatureSpec, run: FeatureSpec) -> None:
    assert "encoder 'uni' is the run's by name alone" in refused(found, run)
    assert taken(found, run, Claims("uni"))


def test_two_encoders_with_fingerprints() -> None:
    """A name does not help where both are known."""
    assert "has encoder_hash cd34, not ab12" in refused(replace(OURS, encoder_hash="cd34"), OURS, Claims("uni"))


def test_a_run_of_unknown_origin() -> None:
    """The user is believed in what the run does not know, and nothing else."""
    assert "has encoder uni, not unknown as the run" in refused(THEIRS, UNKNOWN)
    assert "has mpp 0.5, not unknown as the run" in refused(THEIRS, UNKNOWN, Claims("uni"))
    assert taken(THEIRS, UNKNOWN, Claims("uni", 0.5))
    assert taken(OURS, UNKNOWN, Claims("uni", 0.5))
    assert "has dim 768" in refused(replace(THEIRS, dim=768), UNKNOWN, Claims("uni", 0.5))


def test_the_runs_own_folder() -> None:
    assert taken(UNKNOWN, UNKNOWN, own=True)
    assert "has mpp 0.5, not unknown" in refused(replace(UNKNOWN, mpp=0.5), UNKNOWN, own=True)


def test_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell_what_is_believed(OURS, PATH)
        assert caplog.messages == []
        tell_what_is_believed(UNKNOWN, PATH)
    assert "features whose encoder and resolution (mpp) is not known" in caplog.text
    assert note_on_origin(THEIRS, PATH) is None
    note = note_on_origin(UNKNOWN, PATH)
    assert note is not None
    assert "encoder and resolution (mpp)" in note
    assert "data.encoder and data.mpp would say it" in note


def test_what_a_configuration_says() -> None:
    data = DataConfig(cohort=Path("c"), features=Path("f"), splits=Path("s"), encoder="uni", mpp=0.5, patch_px=224)
    assert claims_of(data) == Claims("uni", 0.5, 224)
