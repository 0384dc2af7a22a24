"""Polynomial maps: what text and sympy say, evaluated and differentiated exactly; and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import CUBIC, uniform
from torch.func import hessian, jacfwd, jacrev, vmap

import tenflex
from tenflex.sampling.polynomial import Polynomial

PUBLISHED = (
    "54*a**3 - 54*a**2*b + 8*a**2 + 18*a*b**2 + 16*a*b - 2*b**3 + 8*b**2 + 8*b + 1; "
    "-27*a**3 + 27*a**2*b - 24*a**2 - 9*a*b**2 - 48*a*b - 15*a + b**3 - 24*b**2 - 19*b - 3"
)
"""The map of Dreesen, Ishteva, Schoukens 2015, whose decoupled form is `CUBIC`."""

POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.2, 0.0], [0.5, 0.25], [-1.5, 2.0]], dtype=torch.float64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@st.composite
def polynomials(draw):
    """Polynomial maps of up to 4 inputs, 3 outputs and 6 terms, of degrees up to 5 in each input."""
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(*[st.integers(0, 5)] * m), min_size=1, max_size=6, unique=True))
    numbers = st.one_of(st.integers(-9, 9).map(float), st.floats(-9, 9, allow_subnormal=False))
    coefficients = draw(st.lists(st.lists(numbers, min_size=len(rows), max_size=len(rows)), min_size=n, max_size=n))
    return Polynomial(torch.tensor(rows), torch.tensor(coefficients, dtype=torch.float64))


# ---- what is published ----


def test_published_map_has_its_published_values():
    values = Polynomial.from_string(PUBLISHED).values(torch.tensor([[-0.2, 0.0], [0.5, 0.25]], dtype=torch.float64))
    published = torch.tensor([[0.888, -0.744], [11.4063, -30.7032]], dtype=torch.float64)
    torch.testing.assert_close(values, published, rtol=0, atol=1e-4)


def test_published_map_is_its_decoupled_form():
    f, x = Polynomial.from_string(PUBLISHED), uniform(200, 2, -1, 1)
    close(f.values(x), CUBIC.factors.outputs(x))
    close(f.jacobians(x), CUBIC.factors.jacobians(x))
    assert f.degree == 3


def test_a_polynomial_is_sampled_like_any_function():
    f, x = Polynomial.from_string(PUBLISHED), uniform(30, 2, -1, 1)
    samples = tenflex.sample(f, x, order=2)
    close(samples.outputs, f.values(x))
    close(samples.jacobians, f.jacobians(x))
    close(samples.hessians, f.hessians(x))


# ---- values and derivatives ----


@settings(max_examples=40)
@given(polynomials(), st.integers(0, 99))
def test_values_are_those_of_sympy(f, seed):
    x = 2 * torch.rand(3, len(f.names), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    symbols = sympy.symbols(f.names)
    expected = [[float(one.subs(dict(zip(symbols, row, strict=True)))) for one in f.to_sympy()] for row in x.tolist()]
    close(f.values(x), torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=20)
@given(polynomials(), st.booleans())
def test_derivatives_are_those_of_autograd_also_at_zero(f, zero):
    x = torch.rand(4, len(f.names), generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    x = torch.zeros_like(x) if zero else x
    close(vmap(f)(x), f.values(x))
    close(vmap(jacrev(f))(x), f.jacobians(x))
    close(vmap(jacfwd(f))(x), f.jacobians(x))
    close(vmap(hessian(f))(x), f.hessians(x))


@settings(max_examples=40)
@given(polynomials())
def test_hessians_are_symmetric_and_the_derivative_of_a_derivative(f):
    x = torch.rand(3, len(f.names), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessians = f.hessians(x)
    close(hessians, hessians.mT)
    for j in range(len(f.names)):
        close(f.derivative(j).jacobians(x), hessians[:, :, j])


def test_chunks_do_not_change_values(monkeypatch):
    f, x = Polynomial.from_string(PUBLISHED), uniform(50, 2, -1, 1)
    whole = f.values(x), f.jacobians(x), f.hessians(x)
    monkeypatch.setattr("tenflex.sums.CHUNK", 100)
    for got, expected in zip((f.values(x), f.jacobians(x), f.hessians(x)), whole, strict=True):
        close(got, expected)


def test_derivatives_of_constants_are_zero():
    f = Polynomial.from_string("3; a", ["a", "b"])
    x = uniform(5, 2, -1, 1)
    assert torch.equal(f.derivative(1).values(x), torch.zeros(5, 2).double())
    assert not f.hessians(x).any()
    assert f.derivative(0).degree == 0
    assert str(f.derivative(1)) == "0;\n0"


def test_one_point_keeps_its_precision_and_many_are_in_double():
    f = Polynomial.from_string("a**2")
    assert f(torch.tensor([0.1])).dtype == torch.float32
    assert torch.equal(f.values(torch.tensor([[0.5]])), torch.tensor([[0.25]]).double())


# ---- text and sympy ----


@settings(max_examples=40)
@given(polynomials())
def test_text_and_sympy_give_back_the_same_polynomial(f):
    x = torch.rand(3, len(f.names), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = f.values(x)
    close(Polynomial.from_string(str(f), f.names).values(x), expected, 1e-14)
    close(Polynomial.from_sympy(f.to_sympy(), f.names).values(x), expected, 1e-14)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_exponents_of_any_whole_numbers(dtype):
    exponents = torch.tensor([[2, 0], [1, 1], [0, 0]])
    coefficients = torch.tensor([[1.0, -3.0, 5.0]], dtype=torch.float64)
    x = torch.tensor([[2.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    assert torch.equal(
        Polynomial(exponents.to(dtype), coefficients).values(x), Polynomial(exponents, coefficients).values(x)
    )
    with pytest.raises(TypeError, match=r"whole numbers, got torch\.complex64"):
        Polynomial(exponents.to(torch.complex64), coefficients)


def test_text_is_written_as_it_is_read():
    text = "-54*a**3*b + 0.5*a - b + 1e-05;\n-a;\n0"
    assert str(Polynomial.from_string(text)) == text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("(a - b)^2 / 2", "0.5*a**2 - a*b + 0.5*b**2"),
        ("a^2*b - -b + (2 - 3)*a", "a**2*b - a + b"),
        ("a*2e-1 +\n1E1*b_1 - x1e-5", "0.2*a + 10*b_1 - x1e - 5"),
        ("-(a + 1)**3", "-a**3 - 3*a**2 - 3*a - 1"),
        ("a**2**3 + a**(1 + 1) + a**2.0 + 7**0", "a**8 + 2*a**2 + 1"),
        ("a - a + b", "b"),
        ("+a", "a"),
    ],
)
def test_text_means_what_it_means_in_algebra(text, plain):
    assert str(Polynomial.from_string(text)) == plain


def test_outputs_are_separated_by_semicolons_or_are_a_list():
    f = Polynomial.from_string(["a*b", "a + 1"])
    assert str(f) == str(Polynomial.from_string("a*b; a + 1;")) == "a*b;\na + 1"


def test_variables_are_in_natural_order_or_as_given():
    assert Polynomial.from_string("x10 + x2 + x1 + b").names == ("b", "x1", "x2", "x10")
    assert Polynomial.from_string("b + a", ["b", "c", "a"]).names == ("b", "c", "a")
    x1, x2, x10 = sympy.symbols("x1 x2 x10")
    assert Polynomial.from_sympy(x10 + x2 + x1).names == ("x1", "x2", "x10")
    assert Polynomial.from_sympy([x10, 2], [x10, "y"]).names == ("x10", "y")


def test_long_sums_are_read():
    exponents = torch.cartesian_prod(*[torch.arange(15)] * 3)
    coefficients = torch.arange(1.0, len(exponents) + 1).double()[None]
    f = Polynomial(exponents, coefficients, ("a", "b", "c"))
    x = uniform(5, 3, -1, 1)
    close(Polynomial.from_string(str(f)).values(x), f.values(x))


def test_sympy_keeps_numbers_exact_until_the_end():
    a = sympy.Symbol("a", positive=True)
    f = Polynomial.from_sympy(sympy.Matrix([a / 3 + sympy.sqrt(2) * a**2, sympy.pi * (a + 1) ** 2]))
    expected = torch.tensor([[2**0.5, 1 / 3, 0], [torch.pi, 2 * torch.pi, torch.pi]], dtype=torch.float64)
    close(f.coefficients, expected, 1e-15)
    assert f.exponents.flatten().tolist() == [2, 1, 0]


def test_to_sympy_is_the_expanded_expression():
    a, b = sympy.symbols("a b")
    assert Polynomial.from_sympy([(a + b) ** 3, a - b]).to_sympy() == [sympy.expand((a + b) ** 3), a - b]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a + sin(a)", r"cannot read 'sin\(a\)' in '\+ sin\(a\)': expected numbers.*tenflex.sample"),
        ("__import__('os').system('x')", r"cannot read \"__import__"),
        ("a.b + 1", r"cannot read 'a.b'"),
        ("x[0]", r"cannot read 'x\[0\]'"),
        ("a if b else c", r"cannot read 'a if b else c'"),
        ("lambda: a", r"cannot read 'lambda: a'"),
        ("[a for a in b]", r"cannot read"),
        ("a, b", r"cannot read 'a, b'"),
        ("a < b", r"cannot read 'a < b'"),
        ("a // 2", r"cannot read 'a // 2': expected numbers"),
        ("a = 2", r"cannot read 'a = 2' as a part of a polynomial \(invalid syntax\)"),
        ("3*a + 2b", r"cannot read '\+ 2b' as a part .*every product written out"),
        ("a b", r"cannot read 'a b' as a part"),
        ("(a + b", r"cannot read '\(a \+ b' as a part"),
        ("a # + b", r"cannot read 'a # \+ b' as a part of a polynomial \(a comment\)"),
        ("a\0", r"cannot read"),
        ("'a'", r"cannot read \"'a'\": expected a real number"),
        ("2j*a", r"cannot read '2j' in '2j\*a': expected a real number"),
        ("a + True", r"cannot read 'True' in '\+ True': expected a real number"),
        ("a**b", r"cannot read 'b' in 'a\*\*b': a power must be a whole number from 0 to 1000"),
        ("a^-1", r"cannot read '-1' in 'a\*\*-1': a power must be a whole number"),
        ("a**0.5", r"cannot read '0.5' in 'a\*\*0.5': a power must be a whole number"),
        ("a**1001", r"cannot read '1001' in 'a\*\*1001': a power must be"),
        ("9**9**9", r"cannot read '9\*\*9' in '9\*\*9\*\*9': a power must be"),
        ("(a**999)**999", r"cannot read '\(a\*\*999\)\*\*999': powers of a variable must be at most 1000"),
        ("(a + b + c + d + e)**200", r"it takes more than 1000000 products to multiply out"),
        ("10**999", r"cannot read '10\*\*999': its numbers are too large"),
        ("1" + "0" * 400 + "*a", r"cannot read '1000*\.\.\.' in '10*\.\.\.': its numbers are too large"),
        ("a/b", r"cannot read 'b' in 'a/b': only a number may divide"),
        ("a/(1 - 1)", r"cannot read '\(?1 - 1\)?' in 'a/\(1 - 1\)': it is zero, and divides"),
        ("(" * 300 + "a" + ")" * 300, r"cannot read '\(+\.\.\.' as a part of a polynomial \(too many nested"),
        ("-" * 9000 + "a", r"cannot read '-+\.\.\.'"),
        ("a*" * 3000 + "a", r"cannot read 'a\*a.*\.\.\.'"),
        ("a;;b", r"output 2 of 3 is empty in 'a;;b': write 0 for none"),
        ("", r"output 1 of 1 is empty"),
        ("3; 4", r"at least one variable, got constants: name the variables"),
    ],
)
def test_text_that_is_not_a_polynomial_is_refused_with_the_part(text, message):
    with pytest.raises(ValueError, match=message):
        Polynomial.from_string(text)


def test_text_is_never_run(tmp_path):
    written = tmp_path / "written"
    with pytest.raises(ValueError, match="cannot read"):
        Polynomial.from_string(f"a + open({str(written)!r}, 'w').write('x')")
    assert not written.exists()


def test_unknown_variables_are_named():
    with pytest.raises(
        ValueError, match=r"cannot read 'speeed' in .*: the variables are speed, b; did you mean 'speed'"
    ):
        Polynomial.from_string("b + speeed", ["speed", "b"])
    with pytest.raises(ValueError, match="the symbol c is none of the variables a, b"):
        Polynomial.from_sympy(sympy.Symbol("c"), ["a", "b"])


@pytest.mark.parametrize("variables", ["a b", "ab"])
def test_variables_in_one_text_are_refused(variables):
    with pytest.raises(TypeError, match="variables must be a list of names, got the text"):
        Polynomial.from_string("a", variables)


def test_repeated_variables_are_refused():
    with pytest.raises(ValueError, match="variables must be different, got a, a"):
        Polynomial.from_string("a", ["a", "a"])


@pytest.mark.parametrize(
    "expression", ["sin(a)", "1/a", "a**b", "sqrt(a)", "Abs(a)", "Piecewise((a, a > 0), (0, True))"]
)
def test_other_sympy_expressions_are_refused_with_the_way_out(expression):
    with pytest.raises(ValueError, match=r"output 2 is not a polynomial in a, b: .*tenflex.sample"):
        Polynomial.from_sympy([sympy.Symbol("a"), sympy.sympify(expression)], ["a", "b"])


def test_sympy_numbers_must_be_real_and_finite():
    a = sympy.Symbol("a")
    for number in (sympy.I, sympy.oo, sympy.nan):
        with pytest.raises(ValueError, match=r"output 1 (has the coefficient|is not a polynomial)"):
            Polynomial.from_sympy(number * a + a**2, ["a"])


def test_what_is_not_sympy_is_refused():
    for wrong in ("a + b", ["a"], [None], [torch.ones(2)]):
        with pytest.raises(TypeError, match=r"expected sympy expressions, got .*from_string"):
            Polynomial.from_sympy(wrong)
    with pytest.raises(TypeError, match="expected a text or a list of texts, got a: use from_sympy"):
        Polynomial.from_string(sympy.Symbol("a"))
    with pytest.raises(ValueError, match="two different symbols have the same name"):
        Polynomial.from_sympy(sympy.Symbol("a") + sympy.Symbol("a", positive=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"exponents": torch.ones(2, 2)}, TypeError, r"exponents must be .* whole numbers, got torch.float32"),
        ({"exponents": [[1, 2]]}, TypeError, r"exponents must be .* whole numbers, got list"),
        ({"exponents": torch.tensor([1, 2])}, ValueError, r"exponents must have the shape \(T, m\), got \(2,\)"),
        ({"exponents": torch.tensor([[1, -1], [0, 0]])}, ValueError, r"from 0 to 1000, got -1 to 1"),
        ({"exponents": torch.tensor([[1, 2000], [0, 0]])}, ValueError, r"from 0 to 1000, got 0 to 2000"),
        ({"exponents": torch.tensor([[1, 1], [1, 1]])}, ValueError, r"exponents \[1, 1\] occur 2 times: add"),
        ({"exponents": torch.tensor([[1, 1]])}, ValueError, r"exponents \(T, m\) and coefficients \(n, T\), got"),
        ({"coefficients": torch.tensor([[1, 2]])}, TypeError, r"coefficients must be real floating-point"),
        ({"coefficients": torch.ones(2)}, ValueError, r"exponents \(T, m\) and coefficients \(n, T\), got"),
        ({"coefficients": torch.ones(0, 2)}, ValueError, r"at least one input and one output"),
        ({"coefficients": torch.tensor([[1, torch.nan]])}, ValueError, r"coefficients must be finite"),
        ({"names": ("a",)}, ValueError, r"expected 2 different names, one for each input, got \('a',\)"),
        ({"names": ("a", "a")}, ValueError, r"expected 2 different names"),
        ({"names": (1, 2)}, TypeError, r"names must be strings"),
    ],
)
def test_bad_numbers_are_refused(change, error, message):
    good = {"exponents": torch.tensor([[1, 0], [0, 2]]), "coefficients": torch.ones(1, 2)}
    with pytest.raises(error, match=message):
        Polynomial(**{**good, **change})


def test_wrong_points_are_refused():
    f = Polynomial.from_string("a*b")
    with pytest.raises(ValueError, match=r"one point of shape \(2,\), got \(3, 2\): values\(x\) takes many"):
        f(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"expected points \(S, 2\), got \(2,\)"):
        f.values(torch.ones(2))
    with pytest.raises(TypeError, match="x must be real floating-point"):
        f.values(torch.ones(3, 2).long())


def test_polynomials_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Polynomial.from_string("a").coefficients = torch.ones(1, 1)
