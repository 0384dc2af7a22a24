"""What a fine-tuning did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tuned:
    """A fine-tuning in numbers; `str()` says it in a sentence.

    Args:
        goal: What the network was fitted to.
        inputs: How many inputs it was given, held-out ones included.
        steps: The steps to the network that was kept.
        trial_steps: The steps in all trials of rates.
        rate: The learning rate.
        parameters: The numbers that were trained.
        before: The loss before, on the inputs of `judged`.
        after: The loss afterwards, on the same.
        judged: Which inputs these are, in words.
        seconds: Time, trials included.
    """

    goal: str
    inputs: int
    steps: int
    trial_steps: int
    rate: float
    parameters: int
    before: float
    after: float
    judged: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a loss that is no number is None."""
        return {name: None if _no_number(one) else one for name, one in vars(self).items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Tuned:
        """The fine-tuning that `to_dict` described."""
        losses = {name: math.inf if saved[name] is None else saved[name] for name in ("before", "after")}
        return cls(**{**saved, **losses})

    def __str__(self) -> str:
        return (
            f"Fine-tuned to {self.goal} on {self.inputs:,} inputs: {self.steps:,} steps at rate {self.rate:.2g} "
            f"(found in {self.trial_steps:,} steps of trials) on {self.parameters:,} numbers, loss {self.before:.4g} "
            f"-> {self.after:.4g} on {self.judged}, {self.seconds:.1f} s."
        ).replace(" (found in 0 steps of trials)", "")


def _no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
