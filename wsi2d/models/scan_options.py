"""Options that all aggregators with a selective scan share."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field, model_validator

from wsi2d.config import Strict
from wsi2d.models.blocks import DtInit

OptionsT = TypeVar("OptionsT", bound="StepOptions")


class StepOptions(Strict):
    """States, and from where to where their steps start."""

    state: int = Field(16, ge=1, le=4096, description="states a channel")
    dt_min: float = Field(0.001, gt=0, description="smallest Δ at the start")
    dt_max: float = Field(0.1, gt=0, description="largest Δ at the start")

    @model_validator(mode="after")
    def _dt_ordered(self: OptionsT) -> OptionsT:
        if self.dt_min >= self.dt_max:
            raise ValueError(f"dt_min must be below dt_max, got {self.dt_min} and {self.dt_max}")
        return self


class ScanOptions(StepOptions):
    """The same for Mamba's steps, with the published code's other start."""

    dt_init: DtInit = Field("mamba", description="starting Δ: mamba, from dt_min to dt_max; published, near 0.69")
