"""A nonlinear system, y_t = f(y_{t-1}, y_{t-2}, u_t), from its data; the model runs on its own outputs."""

import torch

import tenflex


def system(u: torch.Tensor) -> torch.Tensor:
    """What is to be found: a damped oscillator with a saturating force."""
    y = [torch.zeros((), dtype=u.dtype)] * 2
    for force in u:
        y.append(1.2 * y[-1] - 0.5 * y[-2] + 0.4 * torch.tanh(force - 0.5 * y[-1]))
    return torch.stack(y)


def main() -> None:
    torch.manual_seed(0)
    u = torch.randn(300, dtype=torch.float64)
    y = system(u)
    inputs = torch.stack([y[1:-1], y[:-2], u], 1)  # the newest output first, then what comes from outside
    problem = tenflex.Problem(tenflex.sample_table(inputs, y[2:, None]), rank=2, basis=tenflex.BSpline(8))
    solution = tenflex.decouple(problem)
    fresh = torch.randn(100, dtype=torch.float64)
    truth = system(fresh)
    simulated = solution.simulate(truth[:2, None], fresh[:, None])
    error = (simulated[:, 0] - truth[2:]).norm() / truth[2:].norm()
    print(f"simulated on its own outputs for 100 steps, the model is off by {100 * error:.2f} %")


if __name__ == "__main__":
    main()
