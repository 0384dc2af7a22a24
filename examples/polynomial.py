"""A coupled polynomial becomes univariate polynomials between two linear maps; are they unique?"""

import torch

import tenflex
from tenflex.identify import identify


def main() -> None:
    f = tenflex.Polynomial.from_string("a^3 + 3*a*b^2; a^2*b + b^3/3")
    points = torch.rand(50, 2, dtype=torch.float64) * 2 - 1
    solution = tenflex.decouple(tenflex.Problem(tenflex.sample(f, points), rank=2, basis=tenflex.Monomial(3)))
    print(solution)
    print(identify(solution))
    assert torch.allclose(solution(points), f.values(points))


if __name__ == "__main__":
    main()
