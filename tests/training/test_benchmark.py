"""Which models a benchmark trains: their controls, and what is told before the first training."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsi2d.config import RunConfig
from wsi2d.errors import ConfigError, ModelError
from wsi2d.models.from_torchmil import adapter
from wsi2d.training.benchmark import benchmark, benchmark_entries


@pytest.fixture
def config(tiny: ModuleType, tmp_path: Path) -> RunConfig:
    found: RunConfig = tiny.changed(tiny.write_study(tmp_path))
    return found


def controls_of(config: RunConfig, name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """What each control changes of its model, by its name."""
    section = {"name": name, **options}
    own, *others = benchmark_entries(config.model_copy(update={"model": section}), [name])
    assert (own.control_of, {entry.control_of for entry in others} | {own.name}) == (None, {own.name})
    return {
        entry.name.removeprefix(f"{own.name}-"): {k: v for k, v in entry.section.items() if v != own.section[k]}
        for entry in others
    }


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "mamba2d-mil"}, {"no-scan": {"scan": False}, "one-row": {"layout": "row"}}),
        ({"name": "m2d-mil"}, {"no-scan": {"scans": 0}, "one-row": {"layout": "row"}}),
        ({"name": "m2d-mil", "layout": "row"}, {"no-scan": {"scans": 0}}),
        ({"name": "m2d-mil", "scans": 0}, {"one-row": {"layout": "row"}}),
        ({"name": "m2d-mil", "local": False}, {"one-row": {"layout": "row"}}),
        ({"name": "mamba2d-mil", "conv": "none"}, {"one-row": {"layout": "row"}}),
        ({"name": "conv2d-mil"}, {}),
        ({"name": "mamba-mil"}, {}),
        ({"name": "abmil"}, {}),
    ],
)
def test_controls(config: RunConfig, section: dict[str, Any], expected: dict[str, Any]) -> None:
    assert controls_of(config, **section) == expected


def test_a_missing_package_is_told_before_anything_is_trained(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModelError(f"model '{name}' needs torchmil, which is not installed")

    monkeypatch.setattr(adapter, "torchmil_models", missing)
    with pytest.raises(ModelError, match="model 'torchmil:abmil' needs torchmil"):
        benchmark(config, ["mean", "torchmil:abmil"])
    assert not config.out.exists()


def test_what_cannot_be_built_is_told_before_anything_is_trained(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSI2D_SCAN_BACKEND", "no-such-backend")
    with pytest.raises(ConfigError, match="WSI2D_SCAN_BACKEND is 'no-such-backend'"):
        benchmark(config, ["mean", "mamba2d-mil"])
    assert not config.out.exists()
