"""Two convolutions with pooling between become one flexible convolution, from patches of a few images."""

import torch
from torch import nn

import tenflex


def network() -> nn.Module:
    """Your own trained network stands here."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()


def main() -> None:
    model = network()
    images = torch.rand(60, 1, 16, 16)
    result = tenflex.compress(model, images, {"0": tenflex.Block(rank=8, factor=6)}, samples=300)
    print(result)
    print(result.model[0])


if __name__ == "__main__":
    main()
