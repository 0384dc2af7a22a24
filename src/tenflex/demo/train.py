"""Train a small classifier, reproducibly: what the demo and the benchmarks start from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.evaluate import fidelity


def train_classifier(
    make: Callable[[], nn.Module],
    images: Float[Tensor, "S *pixels"],
    labels: Int[Tensor, " S"],
    *,
    epochs: int,
    seed: int,
    batch: int = 64,
    learning_rate: float = 1e-3,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train by Adam with a one-cycle learning rate; the global random state is left as it was.

    Args:
        make: Gives the network, with random weights from the global random state.
        images: What it is trained on.
        labels: Their classes.
        epochs: Passes over the images.
        seed: Of weights, order and changes.
        batch: Images in a step.
        learning_rate: Half of the largest.
        augment: Makes changed images of images, in every step anew; None to leave them as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        steps = epochs * (len(images) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * learning_rate, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for step in range(len(images) // batch):
                chosen = order[step * batch : (step + 1) * batch]
                given = images[chosen] if augment is None else augment(images[chosen])
                loss = F.cross_entropy(model(given), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: Float[Tensor, "S *pixels"], labels: Int[Tensor, " S"]) -> float:
    """The fraction of images whose largest output is at the label, in [0, 1]."""
    return fidelity.accuracy(fidelity.predict(model, images), labels)
