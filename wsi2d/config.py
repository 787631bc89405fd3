"""Strict configuration: pydantic models for every section (files and overrides: :mod:`wsi2d.config_files`).

Unknown keys, wrong types and impossible values end in one :class:`~wsi2d.errors.ConfigError` line that names the key
and, where there is one, the nearest right name.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wsi2d.errors import ConfigError

StrictT = TypeVar("StrictT", bound="Strict")
BagUnit = Literal["slide", "case"]
Arrangement = Literal["flip", "rotate", "shuffle-positions", "drop-empty", "flatten"]


class Strict(BaseModel):
    """Base of every configuration section: unknown keys are errors, values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class TissueConfig(Strict):
    """How tissue is told from background (:func:`wsi2d.slides.tissue.segment_tissue`).

    Lengths are in micrometres and areas in square micrometres, so that one setting fits every magnification.
    """

    mpp: float = Field(8.0, gt=0, description="resolution at which the mask is made, µm per mask px")
    smooth_um: float = Field(8.0, ge=0, description="sigma of the Gaussian over saturation, µm")
    close_um: float = Field(32.0, ge=0, description="radius of the closing, µm")
    min_hole_um2: float = Field(40_000.0, ge=0, description="holes smaller than this are filled, µm²")
    min_piece_um2: float = Field(20_000.0, ge=0, description="pieces smaller than this are dropped, µm²")
    min_saturation: float = Field(
        0.04, ge=0, le=1, description="a pixel below this saturation is background whatever Otsu says"
    )
    max_saturation: float = Field(
        0.10, gt=0, le=1, description="a pixel above this saturation is tissue whatever Otsu says"
    )
    grow_saturation: float = Field(
        0.03, gt=0, le=1, description="what touches tissue and is more saturated than this is tissue too"
    )
    min_value: float = Field(
        0.12, ge=0, le=1, description="a pixel darker than this (HSV value) has no meaningful saturation: background"
    )
    glass: str = Field("auto", description="colour of the empty slide: red,green,blue from 1 to 255; auto finds it")
    ink: Literal["drop", "keep"] = Field(
        "drop", description="marker ink on glass; keep it where a stain looks like ink (Alcian blue, trichrome)"
    )

    @field_validator("glass", mode="before")
    @classmethod
    def _colour(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        if value == "auto" or not isinstance(parts, list | tuple):
            return value
        levels = [str(part).strip() for part in parts]
        if len(levels) != 3 or any(not (n.isascii() and n.isdigit()) or not 0 < int(n) < 256 for n in levels):
            raise ValueError(f"must be auto, or red, green and blue from 1 to 255 as 236,230,210; got {value}")
        return ",".join(levels)

    @model_validator(mode="after")
    def _ordered(self) -> TissueConfig:
        if self.min_saturation > self.max_saturation:
            raise ValueError("min_saturation must not exceed max_saturation")
        return self


class PatchConfig(Strict):
    """How a slide is cut: square patches of ``patch_px`` at ``mpp``, on one grid from the slide's top-left corner."""

    patch_px: int = Field(256, ge=8, le=4096, description="side of a patch as the encoder sees it, px")
    mpp: float = Field(0.5, gt=0, description="resolution of a patch, µm/px")
    overlap_px: int = Field(0, ge=0, description="overlap of neighbouring patches, px at `mpp`")
    min_tissue: float = Field(0.25, ge=0, le=1, description="share of a patch that must be tissue")

    @model_validator(mode="after")
    def _overlap_below_patch(self) -> PatchConfig:
        if self.overlap_px >= self.patch_px:
            raise ValueError(f"overlap_px must be below patch_px ({self.patch_px}), got {self.overlap_px}")
        return self


class ExtractConfig(Strict):
    """Everything that decides what a feature file holds, and how fast it is made."""

    encoder: str = "histology-stats"
    patch: PatchConfig = PatchConfig()
    tissue: TissueConfig = TissueConfig()
    batch_size: int = Field(64, ge=1, le=65_536, description="patches an encoder call")
    workers: int = Field(2, ge=1, le=1024, description="processes that read and decode patches")
    read_limit_s: float = Field(
        120.0, gt=0, le=86_400, description="a slide fails where one read of it takes longer, s"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


def _possible_path(path: Path) -> Path:
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in str(path)):
        raise ValueError(f"must be a path that a file can have, got {str(path)[:60]!r}")
    return path


FilePath = Annotated[Path, AfterValidator(_possible_path)]


class DataConfig(Strict):
    """Where the cohort, its features, its splits and (for heatmaps) its slides are."""

    cohort: FilePath
    features: FilePath
    splits: FilePath | None = Field(None, description="folder of splits_<k>.csv, or one such file")
    split_column: str | None = Field(None, description="instead: cohort column that holds train, val and test")
    slides: FilePath | None = Field(None, description="folder of slide files, for heatmaps")
    slide_column: str = Field("slide_id", description="cohort column of slide ids")
    case_column: str = Field("case_id", description="cohort column of patients; `slide_id` where there are none")
    case_pattern: str | None = Field(
        None, description="regular expression that finds the patient in a slide's id, where the table names none"
    )
    bag: BagUnit = Field(
        "slide",
        description="what one bag is: a slide, or (case) a patient with all of their slides, of one outcome",
    )
    arrangement: tuple[Arrangement, ...] = Field(
        (), description="where a slide's patches lie instead of where they are (docs/comparisons.md)"
    )
    missing_features: Literal["error", "skip"] = "error"
    unknown_ids: Literal["error", "skip"] = Field(
        "error", description="ids of the splits that the cohort does not have"
    )
    allow_leakage: bool = Field(False, description="train even though a patient is on two sides of a fold")
    cache_gb: float = Field(2.0, ge=0, description="features kept in memory between epochs, GB")
    encoder: str | None = Field(
        None, min_length=1, description="of imported features: the encoder, where their files name none or several"
    )
    mpp: float | None = Field(None, gt=0, description="of imported features: µm/px, where their files do not say")
    patch_px: int | None = Field(None, ge=1, description="of imported features: side of a patch, px, likewise")

    @field_validator("case_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error}), got {value}") from error
        return value

    @model_validator(mode="after")
    def _splits_in_one_place(self) -> DataConfig:
        if self.splits is not None and self.split_column is not None:
            raise ValueError(
                f"splits and split_column are both given ({self.splits}, {self.split_column}); set one of them to null"
            )
        if self.splits is None and self.split_column is None:
            raise ValueError("splits: missing; give a folder that `wsi2d splits make` wrote, or split_column")
        return self


class ClassificationTask(Strict):
    """Predict a column of the cohort table. ``classes`` fixes names and order; without it, sorted as found."""

    kind: Literal["classification"] = "classification"
    label: str
    classes: tuple[str, ...] | None = None
    labels: dict[str, str] | None = Field(
        None, description="the class that each value of the column means; slides with other values are left out"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(str(v) for v in value) if isinstance(value, list | tuple) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @field_validator("classes")
    @classmethod
    def _at_least_two(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) != len(value)):
            raise ValueError("classes must name at least two different classes")
        return value


class SurvivalTask(Strict):
    """Predict time to an event. ``event`` is ``COLUMN=VALUE``: the value that means the event happened."""

    kind: Literal["survival"] = "survival"
    time: str
    event: str
    bins: int = Field(
        4, ge=2, le=50, description="discrete-time bins, cut at quantiles of the training fold's event times"
    )

    @field_validator("event")
    @classmethod
    def _column_and_value(cls, value: str) -> str:
        column, separator, happened = value.partition("=")
        if not (separator and column and happened):
            raise ValueError(f"event must be COLUMN=VALUE, the value that means the event happened; got '{value}'")
        return value

    @property
    def event_column(self) -> str:
        """Name of the event column."""
        return self.event.partition("=")[0]

    @property
    def event_value(self) -> str:
        """Value of the event column that means the event happened."""
        return self.event.partition("=")[2]


_TASK_KINDS = ("classification", "survival")

Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]


class TrainingConfig(Strict):
    """One fold's optimisation. The loss's own options stand beside its name: ``loss: {name: nll, alpha: 0.1}``."""

    epochs: int = Field(20, ge=1, le=1_000_000)
    batch_size: int = Field(1, ge=1, le=65_536, description="bags a step; grids are padded and masked")
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    decay_all: bool = Field(False, description="decay A_log, D, biases, norms and tokens as well (the published way)")
    schedule: Literal["cosine", "constant"] = "cosine"
    grad_clip: float | None = Field(1.0, gt=0)
    loss: dict[str, Any] = Field(default_factory=lambda: {"name": "auto"})
    loss_divisor: float = Field(1.0, gt=0)
    select: Literal["loss", "metric"] = Field("loss", description="what the validation fold chooses the epoch by")
    inner_val: float = Field(
        0.2, gt=0, lt=0.9, description="share of train that chooses the epoch where splits have no third side"
    )
    device: str = "auto"
    workers: int = Field(1, ge=1, le=1024, description="folds trained at the same time, each in a process of its own")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads a fold; cores divided by workers if not given"
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EvaluationConfig(Strict):
    """What is computed of predictions, and how numbers get their intervals."""

    bootstrap: int = Field(1000, ge=0, le=1_000_000, description="resamples of patients; 0 for none")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    unit: BagUnit = Field(
        "slide",
        description="classification: count slides, or (case) patients by the mean over their slides' probabilities",
    )
    ordered: bool = Field(False, description="classes are grades in their order: quadratic kappa as well")
    at: float | None = Field(
        None, gt=0, description="time of the survival area and calibration; the median event time if not given"
    )
    cut: float | None = Field(
        None, description="risk above which a patient is in the high group; the training side's median if not given"
    )


class RunConfig(Strict):
    """A cross-validation from end to end; what ``wsi2d train`` reads and what a run folder keeps."""

    out: FilePath
    seed: int = Field(0, ge=0, lt=2**32)
    preset: str | None = None
    published: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="figures that others published on these data, by method and metric"
    )
    data: DataConfig
    task: Task
    model: dict[str, Any] = Field(default_factory=lambda: {"name": "mamba2d-mil"})
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        return {"name": "mamba2d-mil", **value} if isinstance(value, Mapping) else value


def validate(model: type[StrictT], values: Mapping[str, Any], *, source: str) -> StrictT:
    """Build a configuration section; raises one ConfigError line naming the first wrong key."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"config {source}: {_explain(error, model)}") from error


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint: the known name nearest to a mistyped one, whatever its case, or the list of all.

    What stands before a colon may be left out: ``abmil`` is near ``torchmil:abmil``.
    """
    folded = {each.casefold().rpartition(":")[2]: each for each in reversed(known)}
    folded |= {each.casefold(): each for each in reversed(known)}
    match = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    return f"did you mean '{folded[match[0]]}'?" if match else f"there are {', '.join(sorted(known))}"


def _explain(error: ValidationError, model: type[Strict]) -> str:
    first = error.errors()[0]
    section, names = _section_at(model, first["loc"])
    key = ".".join(names) or "(top level)"
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(names[-1], list(section.model_fields))}"
    if first["type"] == "missing":
        return f"{key}: missing"
    if first["type"] == "union_tag_not_found":
        return f"{key}.kind: missing; there are {', '.join(_TASK_KINDS)}"
    if first["type"] == "union_tag_invalid":
        kind = str(first["ctx"]["tag"])
        return f"{key}.kind: '{kind}' is unknown; {nearest(kind, _TASK_KINDS)}"
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    return f"{key}: {message}" + (f", got {shown}" if len(shown) <= 60 and "got" not in message else "")


def _section_at(model: type[Strict], loc: tuple[int | str, ...]) -> tuple[type[Strict], list[str]]:
    """The section that holds the last key of a pydantic location, and the location without union tags."""
    section, names = model, []
    for i, part in enumerate(loc):
        field = section.model_fields.get(str(part))
        names.append(str(part))
        if field is None or i == len(loc) - 1:
            if field is None and i < len(loc) - 1:
                continue
            break
        members = [m for m in (get_args(field.annotation) or (field.annotation,)) if _is_section(m)]
        if len(members) > 1:  # a union: the next part of the location is its tag
            tag = loc[i + 1]
            members = [m for m in members if m.model_fields["kind"].default == tag]
        if members:
            section = members[0]
    return section, [n for k, n in enumerate(names) if not (k > 0 and names[k - 1] == "task" and n in _TASK_KINDS)]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Strict)
