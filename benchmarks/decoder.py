"""Output maps along modes: the decoder of an autoencoder of digits in fewer numbers; no labels, no training, 3 draws.

The decoder, 16 -> 128 -> 784, gives images, whose lowest cosines W tells, or directions computed from them. Beside it
stand the same layers without modes, singular value decompositions and kept nodes at as many numbers, these behind the
same computed directions, too. Errors are those of the decoder's outputs for codes of test digits. Sizes of modes were
chosen by `python -m benchmarks.decoder`, which tells the errors on training digits that were not drawn. The claim: with
modes the error is at most half of that of any way without, and no rival behind the same directions does better.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compression import DRAWS, draw
from benchmarks.record import DOCS, insert, markdown, write
from tenflex import Block, Cosine, Tucker, compress
from tenflex.baselines import asymmetric_svd, data_aware_svd
from tenflex.demo.digits import Digits, load_digits
from tenflex.evaluate.cost import stored_numbers
from tenflex.kept import Own
from tenflex.modes import Modes, Multilinear
from tenflex.planning.sizes import block_size

IMAGES, EPOCHS, CODE, HIDDEN = 2000, 30, 16, 128
PIXELS = (28, 28)

SIZES = (5_000, 10_000)
"""The most numbers of the decoder, of 103,312."""

COSINES, COMPUTED = {5_000: 12, 10_000: 14}, {5_000: 8, 10_000: 10}
"""Directions along both axes."""


class Autoencoder(nn.Module):
    """Images through a code of sixteen numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images.flatten(1)))


@cache
def autoencoder() -> Autoencoder:
    """Trained on the shipped digits, from a seed."""
    images = load_digits().train_images.flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Autoencoder()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images)).split(64):
                loss = F.mse_loss(model(images[chosen]), images[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def largest(most: int, block: Callable[[int], Block]) -> Block:
    """The layer with most nodes that stores no more numbers."""
    sizes = ((rank, block_size(block(rank), CODE, PIXELS)) for rank in count(1))
    return block(next(rank for rank, size in sizes if size > most) - 1)


def layer(most: int, modes: Modes | None) -> Block:
    """In the place of the decoder."""
    return largest(most, lambda rank: Block(rank, output_modes=modes))


def kept(most: int) -> Block:
    """The best of the decoder's own nodes."""
    return Block((most - 784) // (CODE + 1 + 784), basis=Own())


class Widened(nn.Module):
    """A small decoder of what directions tell of images, and these images."""

    def __init__(self, core: nn.Module, frames: Multilinear) -> None:
        super().__init__()
        self.core, self.frames = core, frames

    def forward(self, codes: Tensor) -> Tensor:
        return self.frames.widen(self.core(codes))


def behind(most: int, images: Tensor, make: Callable[[nn.Module, Tensor, int], nn.Module]) -> tuple[nn.Module, int]:
    """A rival behind the directions that our layers are behind, and the numbers of both."""
    model, modes = autoencoder(), Tucker(COMPUTED[most], shape=PIXELS)
    with torch.no_grad():
        codes = model.encoder(images.flatten(1))
        frames = modes.choose_outputs(model.decoder(codes))
        narrow = copy.deepcopy(model.decoder)
        last = nn.Linear(HIDDEN, modes.core_size((784,)))
        last.weight.copy_(frames.narrow(narrow[2].weight.mT.double()).mT)
        last.bias.copy_(frames.narrow(narrow[2].bias.double()))
        narrow[2] = last
    left = most - modes.stored_numbers((784,))
    core = make(narrow.eval(), codes, left)
    return Widened(core, frames), stored_numbers(core) + most - left


def nodes(narrow: nn.Module, codes: Tensor, most: int) -> nn.Module:
    """The best of the decoder's own nodes."""
    outputs = narrow[2].out_features  # type: ignore[index]
    kept_nodes = Block(min(HIDDEN - 1, int((most - outputs) // (CODE + 1 + outputs))), basis=Own())  # type: ignore[operator]
    return compress(narrow, codes, {"": kept_nodes}).model


BEHIND: dict[str, Callable[[nn.Module, Tensor, int], nn.Module]] = {
    "own nodes behind Tucker modes": nodes,
    "data-aware SVD behind Tucker modes": data_aware_svd,
    "asymmetric SVD behind Tucker modes": asymmetric_svd,
}
"""Rivals that are given the same directions."""


def error(decoder: nn.Module, images: Tensor) -> float:
    """Relative, of all pixels for the codes of images."""
    model = autoencoder()
    with torch.no_grad():
        codes = model.encoder(images.flatten(1))
        wanted, found = model.decoder(codes).double(), decoder(codes).double()
    return float((found - wanted).norm() / (wanted - wanted.mean(0)).norm())


def ours(images: Tensor, block: Block, seed: int) -> nn.Module:
    """The decoder that comes of a layer."""
    return compress(autoencoder(), images, {"decoder": block}, seed=seed).model.decoder


WAYS: dict[str, Callable[[Tensor, int, int], nn.Module]] = {
    "cosines": lambda x, most, seed: ours(x, layer(most, Cosine(COSINES[most], shape=PIXELS)), seed),
    "Tucker modes": lambda x, most, seed: ours(x, layer(most, Tucker(COMPUTED[most], shape=PIXELS)), seed),
    "no modes": lambda x, most, seed: ours(x, layer(most, None), seed),
    "own nodes": lambda x, most, seed: ours(x, kept(most), seed),
    "data-aware SVD": lambda x, most, seed: thin(data_aware_svd, x, most),
    "asymmetric SVD": lambda x, most, seed: thin(asymmetric_svd, x, most),
}
WITH_MODES = ("cosines", "Tucker modes")


def thin(method: Callable[..., nn.Module], images: Tensor, most: int) -> nn.Module:
    """The decoder's linear layers as products of thin ones."""
    with torch.no_grad():
        codes = autoencoder().encoder(images.flatten(1))
    return method(autoencoder().decoder, codes, most)


def main() -> bool:
    """Measure all; true if the claim holds."""
    rows = [row for most in SIZES for row in (*measured(most, WAYS), *measured(most, BEHIND))]
    return told(rows)


def measured(most: int, ways: Mapping[str, Callable[..., Any]]) -> list[dict[str, Any]]:
    """One size by several ways, three draws."""
    digits, rows = load_digits(), []
    for way, make in ways.items():
        found = []
        for seed in DRAWS:
            images = draw(digits, IMAGES, seed)
            made = behind(most, images, make) if way in BEHIND else make(images, most, seed)
            found.append(made if isinstance(made, tuple) else (made, stored_numbers(made)))
        errors = [round(error(decoder, digits.test_images), 4) for decoder, _ in found]
        rows.append({"most": most, "way": way, "numbers": found[-1][1], "errors": errors})
    return rows


def told(rows: list[dict[str, Any]]) -> bool:
    """Record rows, and write the table of the page; true if the claim holds."""
    whole = stored_numbers(autoencoder().decoder)
    write("decoder", rows, original=whole)
    heads = ["most numbers", "way", "numbers", "error, three draws", "median"]
    cells = [
        [
            f"{row['most']:,}",
            row["way"],
            f"{row['numbers']:,}",
            ", ".join(f"{one:.3f}" for one in row["errors"]),
            f"{statistics.median(row['errors']):.3f}",
        ]
        for row in rows
    ]
    insert("decoder", markdown(heads, cells), DOCS / "modes.md")
    return all(holds(rows, most) for most in SIZES)


def holds(rows: list[dict[str, Any]], most: int) -> bool:
    """Whether some modes lose at most half of what any way without loses, and no more than rivals behind them."""
    found = {row["way"]: statistics.median(row["errors"]) for row in rows if row["most"] == most}
    best, rivals = min(found[way] for way in WITH_MODES), min(found[way] for way in BEHIND)
    others = min(one for way, one in found.items() if way not in (*WITH_MODES, *BEHIND))
    return bool(2 * best <= others and best <= rivals)


def chosen(digits: Digits, seed: int = 0) -> None:
    """Print the errors of modes of several sizes on training digits that were not drawn."""
    images, rest = draw(digits, IMAGES, seed), draw(digits, len(digits.train_images), seed)[IMAGES:]
    for most in SIZES:
        for kind, sizes in ((Cosine, (10, 12, 14, 16)), (Tucker, (6, 8, 10, 12))):
            for size in sizes:
                block = layer(most, kind(size, shape=PIXELS))
                print(most, block, f"{error(ours(images, block, seed), rest):.4f}", flush=True)


if __name__ == "__main__":
    chosen(load_digits())
