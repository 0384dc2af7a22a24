"""Polynomials as text: read without ever being run, and written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from tenflex.checks import near_names

Terms = dict[tuple[int, ...], float]
"""A polynomial: the coefficient of every term by its exponents, one for each variable."""

MOST_DEGREE = 1000
"""The largest power of a variable."""

MOST_PRODUCTS = 10**6
"""The most products of two terms that are multiplied out for one sign `*` or `**`."""

TOKEN = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|\w+|\*\*|\S")
"""A number, a name, or an operator."""

OPERAND_ENDS = ("_", ".", ")", "]", "}")
"""What, besides letters and digits, ends something to which a sign may add."""

ALLOWED = "numbers, variables, + - *, division by a number, powers by whole numbers, and parentheses"


def read_terms(texts: Sequence[str], variables: Sequence[str] | None) -> tuple[list[Terms], tuple[str, ...]]:
    """The terms of several polynomials, and the variables that their exponents count.

    The text is parsed, not run: whatever is not on a short list of operations is refused.

    Args:
        texts: One polynomial each.
        variables: Their names in order; None for all names that occur, in natural order (x1, x2, ..., x10).

    Raises:
        ValueError: if a text is not a polynomial in the variables; the message quotes the part that is not.
    """
    trees = [[(summand, _parse(summand)) for summand in _summands(text)] for text in texts]
    if variables is None:
        nodes = [node for summands in trees for _, tree in summands for node in ast.walk(tree)]
        variables = sorted({node.id for node in nodes if isinstance(node, ast.Name)}, key=natural)
    names = tuple(variables)
    return [_added(_read(text, tree, names) for text, tree in summands) for summands in trees], names


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _summands(text: str) -> Iterator[str]:
    """The text cut at the signs between its terms: a sum of thousands of terms would be too deep as one tree."""
    start, depth, before = 0, 0, ""
    for match in TOKEN.finditer(text):
        token = match.group()
        if token in "+-" and depth == 0 and (before[-1:].isalnum() or before[-1:] in OPERAND_ENDS):
            yield _as_python(text[start : match.start()])
            start = match.start()
        depth += (token in "([{") - (token in ")]}")
        before = token
    yield _as_python(text[start:])


def _as_python(text: str) -> str:
    return " ".join(text.replace("^", "**").split())


def _parse(text: str) -> ast.expr:
    try:
        if "#" in text:  # Python would leave out the rest as a comment
            raise SyntaxError("a comment")
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"cannot read {short(text)!r} as a part of a polynomial ({reason}): expected {ALLOWED}, with every product "
            f"written out, such as 2*a*b"
        ) from None


def _read(text: str, tree: ast.expr, names: tuple[str, ...]) -> Terms:
    try:
        return _Reader(text, names).terms(tree)
    except RecursionError:
        raise ValueError(f"cannot read {short(text)!r}: it is nested too deeply; write it as a plain sum") from None


def short(text: str) -> str:
    """The text, or its beginning if it would drown a message."""
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True)
class _Reader:
    """Turns the syntax tree of a text into terms, or says which part of it is not a polynomial."""

    text: str
    names: tuple[str, ...]

    def terms(self, node: ast.expr) -> Terms:
        if isinstance(node, ast.Constant):
            return self.number(node)
        if isinstance(node, ast.Name):
            return self.variable(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            return scaled(self.terms(node.operand), -1.0 if isinstance(node.op, ast.USub) else 1.0)
        if isinstance(node, ast.BinOp):
            return self.operation(node)
        raise self.refuse(node, f"expected {ALLOWED}; pass other maps to tenflex.sample, as functions of torch")

    def number(self, node: ast.Constant) -> Terms:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            raise self.refuse(node, "expected a real number")
        value = float(node.value) if abs(node.value) < 1e300 else float("inf")  # an int may be beyond every float
        return self.finite(node, {(0,) * len(self.names): value} if value else {})

    def variable(self, node: ast.Name) -> Terms:
        if node.id not in self.names:
            known = ", ".join(self.names) or "none"
            raise self.refuse(node, f"the variables are {known}{near_names(node.id, self.names)}")
        return {tuple(int(name == node.id) for name in self.names): 1.0}

    def operation(self, node: ast.BinOp) -> Terms:
        left, right = self.terms(node.left), self.terms(node.right)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            total = _added([left, scaled(right, -1.0 if isinstance(node.op, ast.Sub) else 1.0)])
        elif isinstance(node.op, ast.Mult):
            total = self.product(node, left, right)
        elif isinstance(node.op, ast.Div):
            total = scaled(left, 1 / self.divisor(node.right, right))
        elif isinstance(node.op, ast.Pow):
            total = self.power(node, left, self.exponent(node.right, right))
        else:
            raise self.refuse(node, f"expected {ALLOWED}")
        return self.finite(node, total)

    def divisor(self, node: ast.expr, terms: Terms) -> float:
        number = constant(terms)
        if number is None:
            raise self.refuse(
                node, "only a number may divide; pass other maps to tenflex.sample, as functions of torch"
            )
        if number == 0:
            raise self.refuse(node, "it is zero, and divides")
        return number

    def exponent(self, node: ast.expr, terms: Terms) -> int:
        number = constant(terms)
        if number is None or not number.is_integer() or not 0 <= number <= MOST_DEGREE:
            raise self.refuse(node, f"a power must be a whole number from 0 to {MOST_DEGREE}")
        return int(number)

    def product(self, node: ast.expr, left: Terms, right: Terms) -> Terms:
        if len(left) * len(right) > MOST_PRODUCTS:
            raise self.refuse(node, f"it takes more than {MOST_PRODUCTS} products to multiply out: give its terms")
        total: Terms = {}
        for one, a in left.items():
            for other, b in right.items():
                exponents = tuple(i + j for i, j in zip(one, other, strict=True))
                total[exponents] = total.get(exponents, 0.0) + a * b
        if any(max(exponents, default=0) > MOST_DEGREE for exponents in total):
            raise self.refuse(node, f"powers of a variable must be at most {MOST_DEGREE}")
        return total

    def power(self, node: ast.expr, base: Terms, exponent: int) -> Terms:
        total: Terms = {(0,) * len(self.names): 1.0}
        while exponent:  # by squares
            if exponent % 2:
                total = self.product(node, total, base)
            exponent //= 2
            if exponent:
                base = self.product(node, base, base)
        return total

    def finite(self, node: ast.expr, terms: Terms) -> Terms:
        if not all(map(isfinite, terms.values())):
            raise self.refuse(node, "its numbers are too large")
        return terms

    def refuse(self, node: ast.expr, reason: str) -> ValueError:
        part = ast.get_source_segment(self.text, node) or self.text
        within = "" if part == self.text else f" in {short(self.text)!r}"
        return ValueError(f"cannot read {short(part)!r}{within}: {reason}")


def _added(several: Iterator[Terms] | Sequence[Terms]) -> Terms:
    total: Terms = {}
    for terms in several:
        for exponents, coefficient in terms.items():
            total[exponents] = total.get(exponents, 0.0) + coefficient
    return total


def scaled(terms: Terms, factor: float) -> Terms:
    """The terms times a number."""
    return {exponents: factor * coefficient for exponents, coefficient in terms.items()}


def constant(terms: Terms) -> float | None:
    """The number that a polynomial is, or None if it depends on a variable."""
    left = {exponents: coefficient for exponents, coefficient in terms.items() if coefficient}
    return None if any(map(any, left)) else sum(left.values(), 0.0)


def write_terms(terms: Terms, names: Sequence[str]) -> str:
    """The terms as text that `read_terms` reads, largest exponents first."""
    rows = sorted(terms, reverse=True)
    text = "".join(f" {'-' if terms[row] < 0 else '+'} {_written(row, abs(terms[row]), names)}" for row in rows)
    return text.removeprefix(" + ").replace(" - ", "-", int(text.startswith(" - "))) or "0"


def _written(exponents: tuple[int, ...], size: float, names: Sequence[str]) -> str:
    powers = [f"{name}**{power}" if power > 1 else name for name, power in zip(names, exponents, strict=True) if power]
    number = str(int(size)) if size.is_integer() and size < 1e15 else repr(size)
    return "*".join(powers if size == 1 and powers else [number, *powers])
