"""Polynomial maps, given by coefficients, by text, or by sympy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.checks import near_names, require_finite, require_floating
from tenflex.sampling.expressions import MOST_DEGREE, Terms, natural, read_terms, write_terms
from tenflex.sums import at_once


@dataclass(frozen=True, eq=False)
class Polynomial:
    r"""A polynomial map :math:`R^m \to R^n`.

    .. math:: f_i(x) = \sum_{t=1}^T c_{it} \prod_{j=1}^m x_j^{e_{tj}}

    It is a function of one point like any other, `tenflex.sample(polynomial, points)`, and knows its exact derivatives
    at many points besides. Few numbers carry powers above some tens in double precision: scale the inputs to about
    [-1, 1] before.

    Args:
        exponents: The powers e, `(T, m)`, whole numbers; no two rows are the same.
        coefficients: c, `(n, T)`, floating-point.
        names: What the m variables are called; x1, ..., xm when left out.

    Raises:
        TypeError: if exponents are not integers, coefficients not floating-point numbers, or names not strings.
        ValueError: if shapes disagree, an exponent is out of range, a row or name is repeated, or a number not finite.

    Example:
        >>> f = Polynomial.from_string("a**2 - 3*a*b; b^3 + 1")
        >>> f(torch.tensor([2.0, 1.0]))
        tensor([-2.,  2.])
        >>> print(f)
        a**2 - 3*a*b;
        b**3 + 1
    """

    exponents: Int[Tensor, "T m"]
    coefficients: Float[Tensor, "n T"]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_floating("coefficients", self.coefficients)
        object.__setattr__(self, "exponents", _whole(self.exponents))
        _require_exponents(self.exponents)
        shapes = {"exponents": tuple(self.exponents.shape), "coefficients": tuple(self.coefficients.shape)}
        if self.coefficients.ndim != 2 or shapes["coefficients"][1] != shapes["exponents"][0]:
            raise ValueError(f"expected exponents (T, m) and coefficients (n, T), got {shapes}")
        if not shapes["coefficients"][0] or not shapes["exponents"][1]:
            raise ValueError(f"a map needs at least one input and one output, got {shapes}")
        require_finite("coefficients", self.coefficients)
        names = tuple(self.names) or tuple(f"x{j + 1}" for j in range(shapes["exponents"][1]))
        _require_names(names, shapes["exponents"][1])
        object.__setattr__(self, "names", names)

    @classmethod
    def from_string(cls, text: str | Sequence[str], variables: Sequence[str] | None = None) -> Polynomial:
        """A polynomial map from text such as `"54*a**3 - 54*a**2*b + 1; (a - b)^2 / 2"`.

        The text is parsed and never run. Every name in it is a variable.

        Args:
            text: One output after another, separated by semicolons or as a list; `^` and `**` are powers.
            variables: The inputs in order, which may be more than occur; None for those that occur, in natural order.

        Raises:
            TypeError: if the text is not made of strings, or the variables are one string.
            ValueError: if an output is empty or not a polynomial in the variables; the message quotes the part.
        """
        if not isinstance(text, (str, list, tuple)) or not all(isinstance(one, str) for one in text):
            raise TypeError(f"expected a text or a list of texts, got {text!r}: use from_sympy for sympy expressions")
        texts = text.strip().removesuffix(";").split(";") if isinstance(text, str) else list(text)
        for index, one in enumerate(texts):
            if not one.strip():
                raise ValueError(f"output {index + 1} of {len(texts)} is empty in {text!r}: write 0 for none")
        return cls._from_terms(*read_terms(texts, _names_of(variables)))

    @classmethod
    def from_sympy(cls, expressions: Any, variables: Sequence[Any] | None = None) -> Polynomial:
        """A polynomial map from one sympy expression for each output.

        Args:
            expressions: An expression, or a list or matrix of them.
            variables: The inputs in order, symbols or names; None for the symbols that occur, in natural order.

        Raises:
            TypeError: if something is not a sympy expression.
            ValueError: if an expression is not a polynomial with real coefficients in the variables.
        """
        import sympy

        try:
            several = [expressions] if isinstance(expressions, (sympy.Expr, sympy.Poly)) else list(expressions)
            outputs = [sympy.sympify(one, strict=True).as_expr() for one in several]
        except (AttributeError, TypeError, ValueError):  # SympifyError is one of the last
            raise TypeError(
                f"expected sympy expressions, got {expressions!r}: use from_string for text, and numbers or symbols "
                f"of sympy otherwise"
            ) from None
        symbols = _symbols(set().union(*(one.free_symbols for one in outputs)), _names_of(variables))
        terms = [_terms_of(one, symbols, index) for index, one in enumerate(outputs)]
        return cls._from_terms(terms, tuple(symbols))

    @classmethod
    def _from_terms(cls, several: Sequence[Terms], names: tuple[str, ...]) -> Polynomial:
        if not names:
            raise ValueError("expected a polynomial of at least one variable, got constants: name the variables")
        present = {exponents for terms in several for exponents, coefficient in terms.items() if coefficient}
        rows = sorted(present, reverse=True)
        numbers = [[terms.get(row, 0.0) for row in rows] for terms in several]
        return cls(
            torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), len(names)),
            torch.tensor(numbers, dtype=torch.float64, device="cpu"),
            names,
        )

    @property
    def degree(self) -> int:
        """The largest sum of the exponents of a term; 0 for constants."""
        return int(self.exponents.sum(1).amax()) if len(self.exponents) else 0

    def __call__(self, x: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """The polynomial at one point, in the precision of `x`; differentiable by torch to any order."""
        if x.shape != self.exponents.shape[1:]:
            raise ValueError(
                f"expected one point of shape {tuple(self.exponents.shape[1:])}, got {tuple(x.shape)}: "
                f"values(x) takes many points"
            )
        return self._evaluate(x)

    def _evaluate(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """Products of running powers, whose derivatives are finite at zero, as those of `pow` are not."""
        powers = [torch.ones_like(x)]
        for _ in range(int(self.exponents.amax()) if len(self.exponents) else 0):
            powers.append(powers[-1] * x)
        table = torch.stack(powers, -2)
        terms = table[..., self.exponents[:, 0], 0]
        for j in range(1, x.shape[-1]):
            terms = terms * table[..., self.exponents[:, j], j]
        return terms @ self.coefficients.to(x).mT

    def values(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The polynomial at S points, in float64."""
        require_floating("x", x)
        if x.ndim != 2 or x.shape[1] != self.exponents.shape[1]:
            raise ValueError(f"expected points (S, {self.exponents.shape[1]}), got {tuple(x.shape)}")
        most = int(self.exponents.amax()) if len(self.exponents) else 0
        step = at_once(2 * (most + 1) * x.shape[1] + 2 * len(self.exponents))
        return torch.cat([self._evaluate(part.double()) for part in x.split(step)])

    def jacobians(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S n m"]:
        """The Jacobians at S points, in float64."""
        return torch.stack([self.derivative(j).values(x) for j in range(x.shape[-1])], -1)

    def hessians(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S n m m"]:
        """The second derivatives at S points, in float64."""
        m = len(self.names)
        total = x.new_empty(len(x), len(self.coefficients), m, m, dtype=torch.float64)
        for i in range(m):
            slope = self.derivative(i)
            for j in range(i, m):
                total[:, :, i, j] = total[:, :, j, i] = slope.derivative(j).values(x)
        return total

    def derivative(self, j: int) -> Polynomial:
        """The polynomial of the derivatives in input j, counted from 0."""
        power = self.exponents[:, j]
        left = power > 0
        exponents = self.exponents[left]
        exponents[:, j] -= 1
        return Polynomial(exponents, self.coefficients[:, left] * power[left], self.names)

    def _terms(self) -> list[Terms]:
        rows = list(map(tuple, self.exponents.tolist()))
        return [
            {row: coefficient for row, coefficient in zip(rows, output, strict=True) if coefficient}
            for output in self.coefficients.tolist()
        ]

    def to_sympy(self) -> list[Any]:
        """One sympy expression for each output; whole coefficients become integers of sympy."""
        import sympy

        symbols = sympy.symbols(self.names)
        return [
            sympy.Add(
                *(
                    sympy_number(c) * sympy.prod(s**e for s, e in zip(symbols, row, strict=True))
                    for row, c in one.items()
                )
            )
            for one in self._terms()
        ]

    def __str__(self) -> str:
        return ";\n".join(write_terms(one, self.names) for one in self._terms())


WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
"""Data types of whole numbers."""


def _whole(exponents: object) -> Int[Tensor, "T m"]:
    """Exponents as they serve for indices, for which smaller kinds are something else."""
    if not isinstance(exponents, Tensor) or exponents.dtype not in WHOLE:
        got = exponents.dtype if isinstance(exponents, Tensor) else type(exponents).__name__
        raise TypeError(f"exponents must be a torch.Tensor of whole numbers, got {got}: convert them with .long()")
    return exponents.long()


def _require_exponents(exponents: Int[Tensor, "T m"]) -> None:
    if exponents.ndim != 2:
        raise ValueError(f"exponents must have the shape (T, m), got {tuple(exponents.shape)}")
    if exponents.numel() and not (exponents.amin() >= 0 and exponents.amax() <= MOST_DEGREE):
        raise ValueError(
            f"exponents must be from 0 to {MOST_DEGREE}, got {int(exponents.amin())} to {int(exponents.amax())}"
        )
    rows, counts = exponents.unique(dim=0, return_counts=True)
    if len(rows) < len(exponents):
        twice = rows[counts.argmax()].tolist()
        raise ValueError(f"the exponents {twice} occur {int(counts.max())} times: add the coefficients of equal terms")


def _require_names(names: tuple[str, ...], m: int) -> None:
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be strings, got {names!r}")
    if len(names) != m or len(set(names)) < m or not all(names):
        raise ValueError(f"expected {m} different names, one for each input, got {names!r}")


def _names_of(variables: Sequence[Any] | None) -> tuple[str, ...] | None:
    if isinstance(variables, str):
        raise TypeError(f"variables must be a list of names, got the text {variables!r}: pass {variables.split()!r}")
    names = None if variables is None else tuple(map(str, variables))
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"variables must be different, got {', '.join(names)}")
    return names


def _symbols(free: set[Any], names: tuple[str, ...] | None) -> dict[str, Any]:
    """The symbols by name, in the order of the names; those that do not occur are made."""
    import sympy

    found = {str(symbol): symbol for symbol in sorted(free, key=lambda symbol: natural(str(symbol)))}
    if len(found) < len(free):
        raise ValueError(f"two different symbols have the same name, among {', '.join(found)}: rename one")
    if names is None:
        return found
    for name in found:
        if name not in names:
            raise ValueError(
                f"the symbol {name} is none of the variables {', '.join(names)}{near_names(name, names)}: "
                f"add it, or put a number in its place with .subs"
            )
    return {name: found.get(name, sympy.Symbol(name)) for name in names}


def _terms_of(expression: Any, symbols: dict[str, Any], index: int) -> Terms:
    """The terms of one sympy expression; numbers stay exact until all of them are collected."""
    import sympy

    if not symbols:
        return {}
    try:
        collected = sympy.Poly(expression, *symbols.values()).terms()
    except sympy.PolynomialError:
        raise ValueError(
            f"output {index + 1} is not a polynomial in {', '.join(symbols)}: {expression}; pass other maps to "
            f"tenflex.sample, as functions of torch (sympy.lambdify makes one)"
        ) from None
    return {tuple(map(int, exponents)): _real(number, index) for exponents, number in collected}


def _real(number: Any, index: int) -> float:
    try:
        value = float(number)
    except (TypeError, OverflowError):
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ValueError(f"output {index + 1} has the coefficient {number}: expected finite real numbers")
    return value


def sympy_number(number: float) -> Any:
    """The number as sympy has it: a whole one is written without its point."""
    import sympy

    return sympy.Integer(int(number)) if number.is_integer() else sympy.Float(number)
