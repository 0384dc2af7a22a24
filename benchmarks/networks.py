"""The trained networks of the benchmarks: made once from a seed, then read from `benchmarks/cache/`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import Images, fashion, glyphs
from tenflex.demo.digits import Digits
from tenflex.demo.train import train_classifier

CACHE = Path(__file__).parent / "cache"


class LeNet5(nn.Module):
    """LeNet-5 in the sizes of Caffe: two convolutions, then 800 -> 500 -> 10; 431,080 parameters.

    Args:
        rectified: Whether ReLU follows the convolutions too, as is usual now; Caffe's own has none there.
    """

    def __init__(self, rectified: bool = True) -> None:
        super().__init__()
        self.between = F.relu if rectified else torch.clone
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.between(self.conv1(images.view(-1, 1, 28, 28))), 2)
        x = F.max_pool2d(self.between(self.conv2(x)), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class ELUNetwork(nn.Module):
    """784 -> 80 -> 60 -> 40 -> 10 with ELU, the network of the 2021 paper."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 80)
        self.fc2 = nn.Linear(80, 60)
        self.fc3 = nn.Linear(60, 40)
        self.fc4 = nn.Linear(40, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.elu(self.fc1(images))
        x = F.elu(self.fc2(x))
        x = F.elu(self.fc3(x))
        return self.fc4(x)


class ResidualBody(nn.Module):
    """Two convolutions of 3 x 3 with normalisation, ReLU between them; what is added to the skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))


class Residual(nn.Module):
    """A body beside an identity, or beside a convolution of 1 x 1 where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = ResidualBody(inputs, outputs, stride)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class ResNet8(nn.Module):
    """ResNet-8 for images of 28 x 28: a stem of stride 2, residual blocks of 16, 32 and 64 channels, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images.view(-1, 1, 28, 28))).mean((2, 3)))


class Attended(nn.Module):
    """A layer of a transformer: attention, then two linear maps with GELU between, each beside an identity.

    Args:
        width: Numbers a position.
        heads: Heads of the attention.
        nodes: Nodes of the feed-forward part.
    """

    def __init__(self, width: int, heads: int, nodes: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, nodes), nn.GELU(), nn.Linear(nodes, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """Every position as a mean of values of all positions."""
        parts = self.queries(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.mixed(F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """A small transformer for images of 28 x 28: 16 patches of 7 x 7, width 64, four layers; 204,938 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(49, 64)
        self.positions = nn.Parameter(torch.zeros(16, 64))
        self.layers = nn.Sequential(*(Attended(64, 4, 256) for _ in range(4)))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.view(-1, 4, 7, 4, 7).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.head(self.norm(self.layers(self.patches(patches) + self.positions)).mean(1))


class Maxout(nn.Module):
    """The largest of every `pieces` channels that follow each other (Goodfellow et al. 2013)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.pieces)).amax(2)


class CharacterCNN(nn.Module):
    """The character classifier of Jaderberg, Vedaldi, Zisserman 2014, as Lebedev et al. 2015 and the 2021 paper use it.

    24 x 24 grey images, 36 classes; two convolutions of 9 x 9 and dense layers 4096 -> 128 -> 36, all with maxout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.max1 = nn.Conv2d(1, 96, 9), Maxout(2)
        self.conv2, self.max2 = nn.Conv2d(48, 128, 9), Maxout(2)
        self.fc1, self.max3 = nn.Linear(4096, 512), Maxout(4)
        self.fc2, self.max4 = nn.Linear(128, 144), Maxout(4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.max2(self.conv2(self.max1(self.conv1(images.view(-1, 1, 24, 24)))))
        return self.max4(self.fc2(self.max3(self.fc1(x.flatten(1)))))


def trained(name: str, make: Callable[[], nn.Module], digits: Digits | Images, epochs: int) -> nn.Module:
    """A network trained on all training images with seed 0, in eval mode."""
    path = CACHE / f"{name}-{epochs}.safetensors"
    if path.exists():
        model = make()
        model.load_state_dict(load_file(path))
        return model.eval()
    model = train_classifier(make, digits.train_images, digits.train_labels, epochs=epochs, seed=0)
    CACHE.mkdir(exist_ok=True)
    save_file(model.state_dict(), path)
    return model


def lenet5(digits: Digits) -> nn.Module:
    """LeNet-5, trained for 12 epochs."""
    return trained("lenet5", LeNet5, digits, 12)


def caffe_lenet5(digits: Digits) -> nn.Module:
    """LeNet-5 without ReLU after its convolutions, trained for 12 epochs."""
    return trained("caffe-lenet5", lambda: LeNet5(rectified=False), digits, 12)


def elu_network(digits: Digits) -> nn.Module:
    """The ELU network, trained for 20 epochs."""
    return trained("elu", ELUNetwork, digits, 20)


@cache
def resnet8() -> nn.Module:
    """ResNet-8 on Fashion-MNIST, trained for 5 epochs."""
    return trained("fashion-resnet8", ResNet8, fashion(), 5)


@cache
def vision_transformer() -> nn.Module:
    """The small vision transformer on Fashion-MNIST, trained for 10 epochs."""
    return trained("fashion-transformer", VisionTransformer, fashion(), 10)


@cache
def character_cnn() -> nn.Module:
    """The character CNN on rendered glyphs, trained for 4 epochs."""
    return trained("glyphs-character-cnn", CharacterCNN, glyphs(), 4)
