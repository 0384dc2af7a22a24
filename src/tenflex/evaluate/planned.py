"""How a plan was chosen: the curves that were measured, and what was taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

OF_OWN_NODES = ("own nodes", "node dropping")
"""Methods that leave no choice of a basis."""


@dataclass(frozen=True)
class Tried:
    """One thing that was tried in the place of a block, with nothing else replaced.

    Args:
        method: What it is, such as "flexible".
        settings: Its size, as plans have it.
        parameters: The numbers that the whole network then stores.
        macs: Its multiply-adds for one example.
        bytes: Its size in memory.
        error: The relative squared error of the network's outputs on held-out inputs; on all where these are too few.
        lost_agreement: The share of these whose decision changes; None if outputs are no scores of classes.
    """

    method: str
    settings: Mapping[str, Any]
    parameters: int
    macs: int
    bytes: int
    error: float
    lost_agreement: float | None

    @property
    def size(self) -> str:
        """The settings in words: "rank=40, factor=15", without a basis that the method names."""
        told = {name: one for name, one in self.settings.items() if name != "basis" or self.method not in OF_OWN_NODES}
        return ", ".join(f"{name}={_in_words(value)}" for name, value in told.items())


@dataclass(frozen=True)
class Curve:
    """Error against size for one block.

    Args:
        block: Its name.
        tried: What was tried, in the order in which it was.
    """

    block: str
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was chosen from.

    Args:
        budget: What was allowed.
        curves: What was measured for every block.
        chosen: For each block that is replaced the method and its size, in words.
        predicted: The sum of the single blocks' relative squared errors.
        joint: That of the network in which all are replaced together, on the same inputs.
        checked: How many plans were put together and measured, those with the least predicted errors.
        left_out: Blocks that could not be measured, each with the reason.
        solves: How many flexible layers were solved for.
        seconds: Time.
        judges: How many inputs these are; 0 where that was not kept.
        held_out: Whether none of them was fitted; of too few, all inputs judge.
        lost_agreement: The share of them whose decision changes in the network that was made of the plan in the end, of
            all samples; None if outputs are no scores of classes.
        followed: How many layers were made with errors measured by what follows and with all outputs alike, and the
            geometric mean of the network's error with the former over that with the latter; None where none were.
        error: The relative squared error of the network that was made in the end; None where that was not kept.
    """

    budget: Mapping[str, Any]
    curves: tuple[Curve, ...]
    chosen: Mapping[str, str]
    predicted: float
    joint: float
    checked: int
    left_out: Mapping[str, str]
    solves: int
    seconds: float
    judges: int = 0
    held_out: bool = True
    lost_agreement: float | None = None
    followed: tuple[int, float] | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; errors that are no numbers are None."""
        curves = [
            {"block": curve.block, "tried": [{**asdict(one), "error": _finite(one.error)} for one in curve.tried]}
            for curve in self.curves
        ]
        errors = {name: _finite(getattr(self, name)) for name in ("predicted", "joint", "error")}
        return {**asdict(self), **errors, "curves": curves}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Planned:
        """The plan that `to_dict` described."""
        curves = tuple(
            Curve(one["block"], tuple(Tried(**{**tried, "error": _number(tried["error"])}) for tried in one["tried"]))
            for one in saved["curves"]
        )
        errors = {name: _number(saved[name]) for name in ("predicted", "joint")}
        followed = saved.get("followed")
        told = None if followed is None else (int(followed[0]), float(followed[1]))
        return cls(**{**saved, **errors, "curves": curves, "followed": told})

    @property
    def where(self) -> str:
        """The inputs that judge, in words."""
        if not self.held_out:
            return f"all {self.judges} inputs, the fitted ones too, which flatters (too few are held out)"
        return f"{self.judges:,} held-out inputs" if self.judges else "held-out inputs"

    def lines(self) -> Iterator[str]:
        """What was taken and why, for people."""
        allowed = ", ".join(f"{name} {value}" for name, value in self.budget.items())
        yield (
            f"Planned for {allowed}: {self.solves} flexible layers solved for, {self.checked} plans put together and "
            f"measured on {self.where}, {self.seconds:.1f} s."
        )
        if self.followed is not None:
            layers, ratio = self.followed
            yield (
                f"Errors measured by what follows a block were {ratio:.3g} times those with all outputs alike, in "
                f"{layers} {'layer' if layers == 1 else 'layers'} made both ways."
            )
        for block, words in self.chosen.items():
            yield f"{block or 'the whole network'}: {words}."
        wrong = misled(self.joint, self.predicted)
        consequence = ", so that the sum misled: the plan was chosen by what was measured" if wrong else ""
        lost = self.lost_agreement
        last = "" if self.error is None else f"; {self.error**0.5:.3f} in the end"
        other = "" if lost is None else f", with another decision for {100 * lost:.2f} % of them"
        yield (
            f"Relative error of the outputs there: {self.joint**0.5:.3f} together, {self.predicted**0.5:.3f} as the "
            f"sum of single blocks{consequence}{last}{other}."
        )
        for block, why in self.left_out.items():
            yield f"{block or 'the whole network'} was left out: {why}"


def misled(joint: float, predicted: float) -> bool:
    """Whether the error of all replacements together is far from the sum of the single ones."""
    return predicted > 0 and not 0.5 <= joint / predicted <= 2


def _in_words(value: Any) -> str:
    """A setting as in code: `Own(refine=False)`."""
    if not isinstance(value, Mapping) or "family" not in value:
        return str(value)
    settings = (f"{name}={_in_words(one)}" for name, one in value.items() if name != "family" and one is not None)
    return f"{value['family']}({', '.join(settings)})"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else value
