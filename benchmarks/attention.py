"""Attention of PyTorch's own in a budget: a vision transformer as it is, and with its projections as layers.

The small vision transformer on Fashion-MNIST, its attention written as `nn.MultiheadAttention` with the same numbers,
from 1,000 images without labels or training. A budget sees the feed-forward parts of the one, and of what
`tenflex.nn.opened` makes of it the projections of attention, too. The claim: opened it loses no more accuracy, in the
median of the draws, at either size. What is recorded is not measured anew.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import fashion
from benchmarks.networks import Attended, vision_transformer
from benchmarks.record import DOCS, insert, markdown, recorded, write
from tenflex import compress
from tenflex.demo.train import accuracy
from tenflex.evaluate.cost import stored_numbers
from tenflex.nn import opened

DRAWS, IMAGES = (0, 1, 2), 1000
SHARES = ("50%", "40%")
WAYS = {"as it is": lambda model: model, "opened": opened}


class Layer(nn.Module):
    """A layer of the transformer with the attention of PyTorch, of the same numbers.

    Args:
        like: The layer.
    """

    def __init__(self, like: Attended) -> None:
        super().__init__()
        self.norm1, self.norm2, self.feed_forward = like.norm1, like.norm2, like.feed_forward
        self.attention = nn.MultiheadAttention(like.mixed.in_features, like.heads, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(like.queries.weight)
            self.attention.in_proj_bias.copy_(like.queries.bias)
        self.attention.out_proj.load_state_dict(like.mixed.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.feed_forward(self.norm2(x))


def network() -> nn.Module:
    """The trained vision transformer with such layers."""
    model = copy.deepcopy(vision_transformer())
    model.layers = nn.Sequential(*map(Layer, model.layers))
    return model.eval()


def measured(share: str, way: str, draw: int) -> dict[str, Any]:
    """One draw of one size."""
    data, model, began = fashion(), WAYS[way](network()), time.process_time()
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(draw))
    smaller = compress(model, data.train_images[order[:IMAGES]], budget=share, seed=draw).model
    seconds = round(time.process_time() - began)
    before, after = (accuracy(one, data.test_images, data.test_labels) for one in (model, smaller))
    return {
        "share": share,
        "way": way,
        "draw": draw,
        "numbers": stored_numbers(smaller),
        "original": round(100 * before, 2),
        "drop": round(100 * (before - after), 2),
        "cpu_seconds": seconds,
    }


def main() -> bool:
    """Measure what is not recorded; true if the claim holds."""
    rows = recorded("attention")
    known = {(row["share"], row["way"], row["draw"]) for row in rows}
    for draw in DRAWS:
        for share in SHARES:
            for way in WAYS:
                if (share, way, draw) not in known:
                    rows.append(measured(share, way, draw))
                    write("attention", rows)
    return told(rows)


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the table; true if the claim holds for what is recorded."""
    heads = ["kept", "attention", "numbers", "points lost, each draw", "median", "CPU seconds"]
    lines, medians = [], {}
    for share in SHARES:
        for way in WAYS:
            mine = [row for row in rows if (row["share"], row["way"]) == (share, way)]
            if not mine:
                continue
            median, numbers, seconds = (
                statistics.median(row[name] for row in mine) for name in ("drop", "numbers", "cpu_seconds")
            )
            medians[share, way] = median
            drops = ", ".join(f"{row['drop']:.2f}" for row in mine)
            lines.append([share, way, f"{numbers:,.0f}", drops, f"{median:.2f}", f"{seconds:,.0f}"])
    insert("attention", markdown(heads, lines), DOCS / "budget.md")
    return all(medians[share, "opened"] <= medians[share, "as it is"] for share in SHARES)


if __name__ == "__main__":
    print(told(recorded("attention")))
