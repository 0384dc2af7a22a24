"""Product-unit networks on the shipped digits: deep and shallow circuits with as many numbers, trained alike.

A deep circuit (products over four neighbours, three times) must reach 93 % on the 2,000 test images; the shallow one
(one product over all 64 positions) stands beside it, with ReLU between two linear maps for the scale of things.
"""

from __future__ import annotations

import time

from torch import nn

from benchmarks.record import write
from tenflex.demo.digits import load_digits
from tenflex.demo.train import accuracy, train_classifier
from tenflex.evaluate.cost import stored_numbers
from tenflex.nn.circuits import PatchFunctions, ProductCircuit

SHAPE, GRID, CHANNELS, EPOCHS = (1, 28, 28), 8, 24, 12

NETWORKS = {
    "deep circuit": lambda: nn.Sequential(
        PatchFunctions(SHAPE, GRID, CHANNELS), ProductCircuit(CHANNELS, (24, 32, 64), (4, 4, 4), 10)
    ),
    "shallow circuit": lambda: nn.Sequential(
        PatchFunctions(SHAPE, GRID, CHANNELS), ProductCircuit(CHANNELS, (37,), (64,), 10)
    ),
    "784-72-10, ReLU": lambda: nn.Sequential(nn.Linear(784, 72), nn.ReLU(), nn.Linear(72, 10)),
}
LEAST = 0.93


def main() -> bool:
    """Train all three; true if the deep one reaches what is asked."""
    digits = load_digits()
    rows = []
    for name, make in NETWORKS.items():
        began = time.perf_counter()
        rate = 1e-3 if "ReLU" in name else 2.5e-2
        model = train_classifier(
            make, digits.train_images, digits.train_labels, epochs=EPOCHS, seed=0, learning_rate=rate
        )
        rows.append(
            {
                "network": name,
                "parameters": stored_numbers(model),
                "accuracy": accuracy(model, digits.test_images, digits.test_labels),
                "train_accuracy": accuracy(model, digits.train_images, digits.train_labels),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
    write("circuits", rows)
    return float(str(rows[0]["accuracy"])) >= LEAST
