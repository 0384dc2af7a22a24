"""What is the same for all methods of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from torch import nn

from tenflex.baselines.kim2016 import has_kernel
from tenflex.baselines.linear import is_dense
from tenflex.baselines.training import Augment, Training
from tenflex.checks import near_names, require_seed, require_share, require_whole
from tenflex.methods.registry import METHODS, Method, find_methods, require_axes
from tenflex.modes import MODES, Modes

DEFAULT_METHODS = (
    *("flexible", "svd", "svd-shrunk", "asymmetric-svd", "tucker2", "cpd", "affine"),
    *("student", "student-jacobians", "student-augmented", "student-swish", "student-spline", "scratch"),
)
"""What is compared if nothing is named; those that need labels only where there are some."""

OF_CONVOLUTIONS = ("tucker2", "cpd")
"""Methods that are data-aware SVD where there are no convolutions."""


@dataclass(frozen=True)
class Conditions:
    """What is the same for all.

    Args:
        sizes: Stored numbers of the smaller networks: shares such as "5%" or 0.05, or whole numbers.
        methods: Names of `tenflex.methods.METHODS`; None for a dozen that are usual.
        blocks: Names or spans of modules that may be replaced, as for `compress`; None for those that `tenflex inspect`
            suggests, the whole network where it suggests none; methods that work layer by layer may take all layers.
        samples: The most inputs that are used: all that a method is given, and what chooses rates of fine-tuning.
        held_out: The share of the inputs that no method is given and on which all are judged, without `test`.
        steps: Training steps of what is trained, for each rate.
        rates: The rates that are tried; held-out ones of a method's own inputs choose.
        finetune: Steps of fine-tuning to the original's answers that every method gets afterwards, on the inputs that
            it was given, at a rate that a fifth of the inputs chooses, which no method is given; 0 for none.
        seed: Of all random choices.
        modes: What first layers of every method may see the inputs through, such as `Cosine(12, shape=(28, 28))`.
        augment: Makes changed inputs of inputs, which every method is given as well: a function from `(B, ...)` to as
            many.

    Raises:
        TypeError: if `methods`, `blocks`, `sizes` or `rates` is no sequence, or `augment` no function.
        ValueError: if a name or a size is none, or a number is out of its range.
    """

    sizes: Sequence[str | float | int] = ("2%", "5%", "10%")
    methods: Sequence[str] | None = None
    blocks: Sequence[str] | None = None
    samples: int = 2000
    held_out: float = 0.2
    steps: int = 1000
    rates: tuple[float, ...] = (2e-3, 8e-3)
    finetune: int = 0
    seed: int = 0
    modes: Modes | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name, example in (("sizes", "['5%', 2000]"), ("rates", "(0.002, 0.008)"), ("blocks", "['fc1:fc2']")):
            require_sequence(name, getattr(self, name), example)
        if not self.sizes:
            raise ValueError("sizes must hold at least one size, such as '5%', got none")
        for size in self.sizes:
            numbers_of(size, 100)
        if self.methods is not None:
            find_methods(self.methods)
        require_whole("samples", self.samples, at_least=10)
        require_share("held_out", self.held_out, at_most=0.9)
        require_whole("finetune", self.finetune, at_least=0)
        require_axes(self.modes)
        if self.augment is not None and not callable(self.augment):
            raise TypeError(f"augment must be a function from inputs to changed inputs, got {self.augment!r}")
        require_seed(self.seed)
        _ = self.training  # which checks the rest

    @property
    def training(self) -> Training:
        """How what is trained is trained."""
        return Training(steps=self.steps, rates=tuple(self.rates), seed=self.seed, augment=self.augment)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of a function its name."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain["modes"] = None if self.modes is None else MODES.described(self.modes)
        plain["augment"] = None if self.augment is None else name_of(self.augment)
        return {name: list(one) if isinstance(one, (tuple, list)) else one for name, one in plain.items()}

    def chosen(self, model: nn.Module, labelled: bool) -> list[Method]:
        """The methods; where none is named, without those that need labels or convolutions if there are none."""
        if self.methods is not None:
            return find_methods(self.methods)
        convolutional = any(is_dense(one) and has_kernel(one) for one in model.modules())
        names = [name for name in DEFAULT_METHODS if convolutional or name not in OF_CONVOLUTIONS]
        return [METHODS[name] for name in names if labelled or not METHODS[name].labels]


def require_sequence(name: str, value: object, example: str) -> None:
    """Raise TypeError unless a setting is a sequence, or None where it may be left out."""
    if isinstance(value, str) or not isinstance(value, (Sequence, type(None))) or (value is None and name != "blocks"):
        raise TypeError(f"{name} must be a sequence, got {value!r}: write such as {example}")


def name_of(function: Augment) -> str:
    """Where a function is from, and what it is called."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def numbers_of(size: str | float | int, whole: int) -> int:
    """A size as a number of stored numbers.

    Raises:
        ValueError: if it is neither a share such as "5%" or 0.05 nor a whole number of at least 1.
    """
    given = size.strip() if isinstance(size, str) else size
    percent = isinstance(given, str) and given.endswith("%")
    number = number_in(given[:-1] if isinstance(given, str) and percent else given)
    if number == 1 and not percent and (isinstance(given, float) or "." in str(given)):
        raise ValueError(
            f"a size of {size!r} may be a share or a single number: write '100%' for all numbers, or 1 for one"
        )
    share = number / 100 if percent else number if number < 1 else None
    if not 0 < number < float("inf") or (share is None and number != int(number)) or (share or 0) > 1:
        raise ValueError(
            f"a size must be a share such as '5%' or 0.05, or a whole number of numbers, got {size!r}: give the most "
            f"numbers that a smaller network may store"
        )
    return max(1, int(number if share is None else share * whole))


def number_in(given: object) -> float:
    """What is given as a number; 0 for what is none."""
    if isinstance(given, bool) or not isinstance(given, (str, Real)):
        return 0.0
    try:
        return float(given)
    except (ValueError, OverflowError):  # of whole numbers that are too large
        return 0.0


def conditions_of(settings: Mapping[str, Any]) -> Conditions:
    """The conditions of settings by name.

    Raises:
        TypeError: if one is unknown.
    """
    names = [one.name for one in fields(Conditions)]
    for name in settings:
        if name not in names:
            raise TypeError(f"compare has no setting {name!r}{near_names(name, names)}")
    return Conditions(**settings)
