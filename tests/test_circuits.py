"""Product-unit networks: the tensors they stand for, the ranks that the paper claims, and their range of numbers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tenflex.nn.circuits import PatchFunctions, ProductCircuit, quad_order

SHAPES = {  # channels, widths, pools
    "shallow": (3, (5,), (4,)),
    "deep": (2, (3, 2), (2, 2)),
    "unequal pools": (2, (2, 3), (3, 2)),
    "deeper": (2, (2, 3, 2), (2, 2, 2)),
}


def circuit_of(channels: int, widths: tuple[int, ...], pools: tuple[int, ...], outputs: int = 1) -> ProductCircuit:
    """A circuit with weights of both signs, in float64."""
    circuit = ProductCircuit(channels, widths, pools, outputs).double()
    generator = torch.Generator().manual_seed(3)
    return circuit.filled_(
        [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in circuit.weights]
    )


def matricized(tensor: Tensor, rows: list[int]) -> Tensor:
    """Some modes against the others."""
    columns = [mode for mode in range(tensor.ndim) if mode not in rows]
    return tensor.permute(*rows, *columns).flatten(0, len(rows) - 1).flatten(1)


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_multilinear_with_the_tensor(name: str) -> None:
    circuit = circuit_of(*SHAPES[name], outputs=3)
    N, M = circuit.positions, circuit.weights[0].shape[2]
    f = torch.randn(6, N, M, dtype=torch.float64)
    A = circuit.tensor()
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for index in product(range(M), repeat=N):
        expected += f[:, range(N), index].prod(1)[:, None] * A[(slice(None), *index)]
    torch.testing.assert_close(circuit.scores(f), expected)
    torch.testing.assert_close(circuit(f), expected.abs().log())


CASES = [  # N, M, widths, rank of odd against even positions, rank of halves
    (4, 2, (2, 2), 4, 2),
    (4, 3, (3, 2), 9, 2),
    (8, 2, (2, 2, 2), 16, 2),
    (8, 2, (2, 3, 2), 16, 2),
    (8, 3, (3, 2, 2), 81, 2),
    (8, 2, (1, 2, 2), 1, 1),
]


@pytest.mark.parametrize(("N", "M", "widths", "odd_even", "half"), CASES)
def test_ranks_of_deep_circuits(N: int, M: int, widths: tuple[int, ...], odd_even: int, half: int) -> None:
    """Cohen, Sharir, Shashua 2016, theorem 1: min(r_0, M)^(N / 2); halves are separated by r_(L-1) channels."""
    A = circuit_of(M, widths, (2,) * len(widths)).tensor()[0]
    assert odd_even == min(widths[0], M) ** (N // 2)
    assert torch.linalg.matrix_rank(matricized(A, list(range(0, N, 2)))) == odd_even
    assert torch.linalg.matrix_rank(matricized(A, list(range(N // 2)))) == half <= widths[-1]


def test_ranks_of_shallow_circuits() -> None:
    A = circuit_of(2, (5,), (8,)).tensor()[0]
    assert torch.linalg.matrix_rank(matricized(A, [0, 2, 4, 6])) == 5
    assert torch.linalg.matrix_rank(matricized(A, [0, 1, 2, 3])) == 5


@pytest.mark.parametrize(("N", "M"), [(2, 3), (4, 2), (4, 3), (8, 2)])
def test_a_circuit_has_the_tensor_it_was_made_from(N: int, M: int, generator: torch.Generator) -> None:
    tensor = torch.randn(2, *[M] * N, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ProductCircuit.from_tensor(tensor).tensor(), tensor)


def test_a_deep_tensor_gives_back_a_small_circuit() -> None:
    circuit = circuit_of(2, (2, 2), (2, 2), outputs=2)
    again = ProductCircuit.from_tensor(circuit.tensor())
    torch.testing.assert_close(again.tensor(), circuit.tensor())
    assert again.weights[1].shape[2] <= 4  # a channel for every pair of two bases of rank 2


def test_a_shallow_circuit_from_components(generator: torch.Generator) -> None:
    components = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    weights = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    found = ProductCircuit.from_components(components, weights).tensor()
    torch.testing.assert_close(found, torch.einsum("yz,za,zb,zc,zd->yabcd", weights, *components))


def test_gradients() -> None:
    circuit = circuit_of(2, (3, 2), (2, 2), outputs=2)
    names, values = zip(*circuit.named_parameters(), strict=True)

    def run(f: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(circuit, dict(zip(names, weights, strict=True)), f)

    f = torch.rand(3, 4, 2, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(run, (f.requires_grad_(), *(one.detach().requires_grad_() for one in values)))


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_many_positions_neither_vanish_nor_explode(size: float) -> None:
    circuit = ProductCircuit(4, (5, 5, 6, 7), (4, 4, 4, 4), 3)
    f = (size * torch.rand(2, 256, 4)).requires_grad_()
    found = circuit(f)
    found.sum().backward()
    assert found.isfinite().all()
    assert f.grad is not None
    assert f.grad.isfinite().all()
    assert f.grad.abs().max() > 0
    exact = circuit.double()(f.detach().double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)


def test_the_order_is_that_of_a_quad_tree() -> None:
    assert quad_order(2).tolist() == [0, 1, 2, 3]
    assert quad_order(4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_patches_in_their_order() -> None:
    layer = PatchFunctions((1, 6, 6), grid=2, channels=2).double()
    layer.map.weight.data = torch.eye(2, 9, dtype=torch.float64)
    layer.map.bias.data.zero_()
    image = torch.arange(36.0, dtype=torch.float64).reshape(1, 36) / 36
    corners = torch.tensor([[0.0, 1.0], [3.0, 4.0], [18.0, 19.0], [21.0, 22.0]]).double() / 36
    torch.testing.assert_close(layer(image)[0], corners.sigmoid())
    assert PatchFunctions((1, 28, 28), grid=8, channels=3)(torch.zeros(2, 784)).shape == (2, 64, 3)


def test_parity_is_a_circuit() -> None:
    """No sum of functions of single positions tells it."""
    signs = torch.cartesian_prod(*[torch.arange(2)] * 4)
    parity = signs.sum(1) % 2
    tensor = torch.stack([1.0 - parity, 1.0 * parity]).reshape(2, 2, 2, 2, 2).double()
    circuit = ProductCircuit.from_tensor(tensor)
    f = nn.functional.one_hot(signs, 2).double()
    torch.testing.assert_close(circuit.scores(f), nn.functional.one_hot(parity, 2).double())


def test_it_is_trained_and_keeps_its_signs(generator: torch.Generator) -> None:
    f = torch.rand(100, 4, 3, generator=generator)
    labels = (f[:, 0, 0] * f[:, 1, 1] > f[:, 2, 2] * f[:, 3, 0]).long()
    circuit = ProductCircuit(3, (4, 4), (2, 2), 2)
    optimizer = torch.optim.Adam(circuit.parameters(), lr=0.05)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(circuit(f), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.6 * losses[0].item()
    assert all((one > 0).all() for one in circuit.weights)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"expected as many pools as widths, got \(2,\) and \(3, 3\)"):
        ProductCircuit(2, (3, 3), (2,), 2)
    with pytest.raises(ValueError, match=r"\(S, 4, 2\), got \(5, 3, 2\)"):
        ProductCircuit(2, (3, 3), (2, 2), 2)(torch.zeros(5, 3, 2))
    with pytest.raises(ValueError, match="grid must be a power of two, got 6"):
        PatchFunctions((1, 28, 28), 6, 4)
    with pytest.raises(ValueError, match=r"with 2, 4, 8, \.\.\. modes, got \(1, 2, 2, 2\)"):
        ProductCircuit.from_tensor(torch.zeros(1, 2, 2, 2))
