"""Feed-forward parts of a transformer keep half of their own nodes, chosen and refitted at what really arrives."""

import torch
from torch import nn

import tenflex
from tenflex.kept import Own


class Layer(nn.Module):
    """Attention and a feed-forward part, each beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer()).eval()
    sequences = torch.randn(80, 10, 16)
    result = tenflex.compress(model, sequences, {"*.mlp": tenflex.Block(rank=32, basis=Own())})
    print(result)


if __name__ == "__main__":
    main()
