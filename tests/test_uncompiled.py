"""PyTorch's compiler is not waited for where nothing is compiled, and nothing else changes by that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from planted import seeded
from torch import Tensor, nn, optim
from torch.utils.flop_counter import FlopCounterMode

from tenflex.evaluate.cost import PRODUCTS, Products, plain_attention
from tenflex.uncompiled import LBFGS

PROGRAM = """
import sys, torch
from torch import nn
from tenflex import Block, LowRank, Monomial, compress
from tenflex.solvers import Chain, ConstrainedALS, Refine

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
solver = Chain((ConstrainedALS(3), Refine(3)))
result = compress(model, torch.randn(40, 4), {"": Block(2)}, basis=Monomial(3), solver=solver)
result.folded()
print(result.report)
images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
compress(images, torch.randn(40, 3, 5, 5), {"0": LowRank(4, form="cpd")})
print("torch._dynamo" in sys.modules)
"""


def test_a_compression_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's."""
    return (1 - x[:-1]).square().sum() + 100 * (x[1:] - x[:-1].square()).square().sum()


def descended(kind: type[optim.LBFGS]) -> Tensor:
    x = torch.full((5,), -0.3, dtype=torch.float64).requires_grad_()
    descent = kind([x], max_iter=30, line_search_fn="strong_wolfe")

    def value() -> Tensor:
        descent.zero_grad()
        (now := valley(x)).backward()
        return now

    for _ in range(3):
        descent.step(value)
    return x.detach()


def test_descents_have_the_same_bits() -> None:
    assert torch.equal(descended(LBFGS), descended(optim.LBFGS))
    with pytest.raises(ValueError, match="empty parameter list"):
        LBFGS([])


def attended(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x @ x.mT + x.sum(), (3, 5)),
        (lambda x: nn.functional.conv2d(x, x[:2], padding=1), (4, 3, 5, 5)),
        (lambda x: torch.einsum("abc,adc->abd", x, x).softmax(-1), (2, 3, 4)),
        (attended, (2, 2, 3, 4)),
        (lambda x: torch.mv(x, x[0]) + torch.addmv(x[:, 0], x, x[0]), (5, 5)),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_are_counted_as_by_pytorch(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], mode: Callable[[], torch.no_grad]
) -> None:
    x = torch.randn(shape, generator=seeded(0))
    theirs = FlopCounterMode(display=False, custom_mapping=PRODUCTS)
    with mode(), plain_attention(nn.Identity()):
        with theirs:
            expected = function(x)
        with Products() as ours:
            found = function(x)
    assert ours.total == theirs.get_total_flops() > 0
    assert torch.equal(found, expected)
