"""Configuration files: YAML, presets laid under it, ``key=value`` overrides laid over it.

Relative paths are relative to the file they stand in; paths in overrides are relative to the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from wsi2d.config import RunConfig, validate
from wsi2d.errors import ConfigError, one_line
from wsi2d.files import write_text

_NAMED_SECTIONS = ("model", "loss")
_PATH_KEYS = ("out", "data.cohort", "data.features", "data.splits", "data.slides")


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, lay it over its preset, apply overrides and validate.

    Args:
        path: YAML file. Relative paths inside it are relative to its folder.
        overrides: ``dotted.key=value`` strings; values are parsed as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    values = read_yaml(path)
    _resolve_paths(values, path.parent)
    for override in overrides:
        apply_override(values, override)
    if values.get("preset") is not None:
        kind = values.get("task", {}).get("kind") if isinstance(values.get("task"), dict) else None
        preset = load_preset(str(values["preset"]), kind)
        _one_place_for_splits(preset.get("data"), values.get("data"))
        values = merge(preset, values)
    return validate(RunConfig, values, source=str(path))


def _one_place_for_splits(preset: Any, own: Any) -> None:
    """Splits that a run names itself stand for those of its preset, wherever they are."""
    if isinstance(preset, dict) and isinstance(own, Mapping) and (own.get("splits") or own.get("split_column")):
        preset.pop("splits", None)
        preset.pop("split_column", None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ConfigError when the file is missing or is something else."""
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except ValueError as error:
        raise ConfigError(f"config {path}: not valid YAML ({error}); mend it") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: must be a mapping of keys to values, got {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a configuration needs none, and a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.YAMLError("a whole number is too large")
        return value


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Values of a YAML text.

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(one_line(str(error)) or type(error).__name__) from error  # a date of 99 May, say


def load_preset(name: str, task_kind: str | None) -> dict[str, Any]:
    """Values of a shipped preset: ``configs/NAME.yaml``, or ``configs/NAME-<task kind>.yaml``.

    A preset that names another is laid over it.
    """
    folder = resources.files("wsi2d.configs")
    known = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    for candidate in (name, f"{name}-{task_kind}"):
        if candidate in known:
            values: dict[str, Any] = parse_yaml(known[candidate].read_text("utf-8"))
            below = values.pop("preset", None)
            return values if below is None else merge(load_preset(below, task_kind), values)
    raise ConfigError(f"preset '{name[:60]}': unknown; there are {', '.join(sorted(known))}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``over`` laid over ``base``, section by section.

    A section that names another thing (``model: {name: abmil}`` over one of ``mamba2d-mil``) replaces the one below:
    the options of one are not those of the other.
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, str) and isinstance(below, Mapping) and "name" in below:
            value = {"name": value}  # a name stands for its section
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not _renames(below, value):
            value = merge(below, value)
        result[key] = value
    return result


def _renames(below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return "name" in over and over["name"] != below.get("name", over["name"])


def save_run_config(config: RunConfig, path: Path) -> None:
    """Write a resolved configuration that loads again from where it lies (paths relative to its folder); one that is
    there already is left alone.

    Raises:
        StorageError: the disk does not take it.
    """
    values = config.model_dump(mode="json")  # with its nulls: left out, they would become defaults again
    # The preset is already merged in: kept as a key it would be laid under the values again, to no effect.
    values.pop("preset", None)
    for dotted in _PATH_KEYS:
        section, key = _descend(values, dotted)
        if section is not None and section.get(key) is not None:
            section[key] = Path(os.path.relpath(section[key], path.parent)).as_posix()
    text = yaml.safe_dump(values, sort_keys=False)
    if not path.exists() or path.read_text("utf-8") != text:
        write_text(path, text)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Lay ``dotted.key=value`` over a configuration's values, in place; the value is parsed as YAML.

    Raises:
        ConfigError: it is not of that form, or the key lies below a value.
    """
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override '{override}': must be key=value, as in training.epochs=10")
    section = values
    *parents, key = dotted.split(".")
    for parent in parents:
        if isinstance(section.get(parent), str) and parent in _NAMED_SECTIONS:
            section[parent] = {"name": section[parent]}  # a name stands for its section
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML ({error})") from error
    if key == "name" and _renames(section, {"name": value}):
        section.clear()
    section[key] = value
    if dotted in _PATH_KEYS and section[key] is not None:
        section[key] = str(Path(str(section[key])).absolute())


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    for dotted in _PATH_KEYS:
        section, key = _descend(values, dotted)
        if section is not None and isinstance(section.get(key), str):
            section[key] = os.path.normpath(folder.absolute() / section[key])


def _descend(values: dict[str, Any], dotted: str) -> tuple[dict[str, Any] | None, str]:
    section: Any = values
    *parents, key = dotted.split(".")
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), key
