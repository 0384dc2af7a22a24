"""What a compressed network may cost and lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any

from tenflex.checks import near_names

EXPECTED = 'a share such as "5%", or a number'

Amount = int | float | str


@dataclass(frozen=True)
class Budget:
    """What a compressed network may store, compute and lose; what is None is free, and at least one is needed.

    Args:
        parameters: The most stored numbers of the whole network, or their share of the original's, such as "5%".
        bytes: The most bytes that its numbers take, or their share.
        macs: The most multiply-adds for one example, or their share.
        lost_agreement: The largest share of held-out inputs on which it may decide otherwise than the original: "1%",
            or 0.01. Alone, it asks for the smallest network that loses no more: ever smaller sizes are tried for as
            long as they keep it.

    Raises:
        ValueError: if nothing is limited, or an amount is no share or number that could be kept.

    Example:
        >>> Budget(parameters="5%", lost_agreement="1%").limits({"parameters": 266_610})
        {'parameters': 13330}
    """

    parameters: Amount | None = None
    bytes: Amount | None = None
    macs: Amount | None = None
    lost_agreement: Amount | None = None

    def __post_init__(self) -> None:
        if not self.to_dict():
            raise ValueError(f"a budget limits at least one of {', '.join(NAMES)}")
        for name, value in self.to_dict().items():
            amount = _number(name, value)
            share = isinstance(value, str) or name == "lost_agreement"
            if not 0 < amount <= (1 if share else float("inf")) or (not share and amount != int(amount)):
                raise ValueError(f"{name} must be {EXPECTED}, above 0 and at most what there is, got {value!r}")

    @classmethod
    def of(cls, asked: Any) -> Budget:
        """A budget, also from a number or a share of the parameters, from a mapping, or from a text.

        Raises:
            TypeError: if it is none of these.
            ValueError: if an amount is unknown or out of its range.
        """
        if isinstance(asked, Budget):
            return asked
        if isinstance(asked, str) and "=" in asked:
            asked = dict(_pair(part) for part in asked.split(","))
        if isinstance(asked, Mapping):
            for name in asked:
                if name not in NAMES:
                    raise ValueError(f"a budget has no {name!r}{near_names(str(name), NAMES)}")
            return cls(**asked)
        if isinstance(asked, bool) or not isinstance(asked, (int, str)):
            raise TypeError(f'budget must be a share such as "5%", a number of parameters or a Budget, got {asked!r}')
        return cls(parameters=int(asked) if str(asked).strip().isdecimal() else asked)

    def to_dict(self) -> dict[str, Amount]:
        """What is limited."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}

    def limits(self, original: Mapping[str, int]) -> dict[str, int]:
        """The most of each cost that is limited.

        Args:
            original: What the original network costs, by name.
        """
        given = {name: value for name, value in self.to_dict().items() if name in original}
        return {
            name: int(_number(name, value) * (original[name] if isinstance(value, str) else 1))
            for name, value in given.items()
        }

    @property
    def most_lost(self) -> float:
        """The largest loss of agreement; 1 if any is allowed."""
        return 1.0 if self.lost_agreement is None else float(_number("lost_agreement", self.lost_agreement))


NAMES = tuple(one.name for one in fields(Budget))


def _number(name: str, value: Any) -> Fraction:
    """A share as a number from 0 to 1, any other amount as it is: exactly, so that 29 % of 100 are 29."""
    try:
        text = str(value).strip()
        share = text.endswith("%")
        if isinstance(value, bool) or (isinstance(value, str) and not share):
            raise ValueError
        return Fraction(Decimal(text.removesuffix("%"))) / (100 if share else 1)
    except (ArithmeticError, ValueError):
        raise ValueError(f"{name} must be {EXPECTED}, got {value!r}") from None


def _pair(part: str) -> tuple[str, Amount]:
    name, _, value = (one.strip() for one in part.partition("="))
    return name, int(value) if value.isdecimal() else value
