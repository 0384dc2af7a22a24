"""A table of inputs and outputs: derivatives are estimated, and the number of nodes is found."""

import torch

import tenflex


def main() -> None:
    torch.manual_seed(0)
    x = torch.rand(300, 2, dtype=torch.float64)
    y = torch.stack([torch.sin(2 * x[:, 0] + x[:, 1]), torch.exp(x[:, 0] - x[:, 1])], 1)
    path = tenflex.choose_rank(tenflex.Problem(tenflex.sample_table(x, y), rank=1), tolerance=0.02)
    print(path)
    print(path.solution)


if __name__ == "__main__":
    main()
