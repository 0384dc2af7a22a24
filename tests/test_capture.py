"""What arrives at blocks and leaves them, and networks that cannot be sampled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.demo.digits import Digits
from tenflex.demo.networks import LeNet300
from tenflex.sampling.capture import capture
from tenflex.sampling.checks import require_samplable
from tenflex.surgery import Cut, find_cut


class Overwriting(nn.Module):
    """Changes what passes between its layers in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        h = self.fc2(F.relu(self.fc1(x), inplace=True))
        y = self.fc3(F.relu_(h))
        return y.add_(1)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return self.fc(left * right)


def overwriting() -> Overwriting:
    return Overwriting().eval()


# capture


def test_captured_samples_are_those_of_the_block_alone(lenet: LeNet300, digits: Digits) -> None:
    images = digits.test_images[:70]
    names = ["", "fc1:fc3", "fc2"]
    cuts = [find_cut(lenet, name, images[:3]) for name in names]
    found = capture(lenet, cuts, [images[:40], images[40:]], chunk=16)
    assert list(found) == names
    with torch.no_grad():
        for cut in cuts:
            arrived, left = found[cut.name]
            assert len(arrived) == 70
            torch.testing.assert_close(cut.function(lenet)(arrived), left)
        assert torch.equal(found[""][0], images)
        torch.testing.assert_close(found["fc1:fc3"][0], images.flatten(1))
        torch.testing.assert_close(found["fc1:fc3"][1], lenet(images))


def test_samples_are_copies_from_before_anything_changes_them() -> None:
    model, x = overwriting(), torch.randn(9, 4)
    given = x.clone()
    names = ["fc1:fc2", "fc3", "fc1"]
    found = capture(model, [find_cut(model, name, x) for name in names], [x], chunk=4)
    assert torch.equal(x, given)
    first = model.fc1(2 * x)
    second = model.fc2(F.relu(first))
    expected = {"fc1:fc2": (2 * x, second), "fc3": (F.relu(second), model.fc3(F.relu(second))), "fc1": (2 * x, first)}
    for name, pair in found.items():
        assert not any(tensor.requires_grad for tensor in pair)
        torch.testing.assert_close(pair, expected[name])


def test_capture_after_another_block_was_replaced() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval(), torch.randn(6, 4)
    cuts = [find_cut(model, name, x) for name in ("0", "2")]
    twin = copy.deepcopy(model)
    layer = nn.Linear(4, 5).eval()
    twin = cuts[0].replace_(twin, layer)
    arrived, left = capture(twin, cuts[1:], [x])["2"]
    torch.testing.assert_close(arrived, torch.tanh(layer(x)).detach())
    torch.testing.assert_close(left, model[2](arrived).detach())


def test_capture_with_keyword_inputs() -> None:
    model = Keyword().eval()
    batch = {"left": torch.randn(5, 4), "right": torch.randn(5, 4)}
    arrived, _ = capture(model, [find_cut(model, "fc", batch)], [batch], chunk=2)["fc"]
    assert torch.equal(arrived, batch["left"] * batch["right"])


def test_capture_leaves_no_hooks_and_draws_no_numbers(unchanged_rng: Callable[[], Any]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), Noisy()).eval(), torch.randn(4, 4)
    cut = Cut("0", "0", "0")
    with unchanged_rng():
        capture(model, [cut], [x])
    with pytest.raises(ValueError, match="Sequential fails on the input float32"):
        capture(model, [cut], [x[:, :3]])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.ones(2, 4), torch.ones(3, 7)], r"fails on the input float32 \(3, 7\): RuntimeError: mat1 and mat2"),
        ([torch.ones(2, 4, dtype=torch.float64)], r"fails on the input float64 \(2, 4\): RuntimeError: .*dtype"),
        ([torch.ones(2, 3, 4), torch.ones(2, 4)], r"samples of one shape, but what arrives at 'fc1' has the shapes"),
        ([], "pass at least one batch"),
        ([torch.tensor(1.0)], "first dimension counts the samples"),
    ],
    ids=str,
)
def test_batches_that_cannot_be_captured(batches: list[Tensor], message: str) -> None:
    model = overwriting()
    cut = find_cut(model, "fc1", torch.randn(2, 4))
    with pytest.raises(ValueError, match=message):
        capture(model, [cut], batches)


def test_blocks_that_another_input_does_not_reach() -> None:
    class Sometimes(Overwriting):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x) if len(x) > 1 else x

    with pytest.raises(ValueError, match=r"one tensor to arrive at 'fc1', .* find the cut with an example like it"):
        capture(Sometimes().eval(), [Cut("fc1", "fc1", "fc1")], [torch.randn(1, 4)])


# require_samplable


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class OverBatch(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x - x.mean(0)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 4)


def with_nan(name: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model.state_dict()[name][0] = torch.nan if name != "1.running_mean" else torch.inf
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), r"in train mode.*call \.eval\(\)"),
        (with_nan("0.weight"), "parameter '0.weight' must be finite"),
        (with_nan("1.running_mean"), "buffer '1.running_mean' must be finite"),
        (Noisy().eval(), "two runs differ: look for dropout called with training=True"),
        (OverBatch().eval(), "the first sample gives something else without the others of its batch"),
        (Fixed().eval(), r"any number of samples, but it does not on the first one alone: Fixed fails on the input"),
    ],
    ids=str,
)
def test_networks_that_cannot_be_sampled(model: nn.Module, message: str, unchanged_rng: Callable[[], Any]) -> None:
    x = torch.randn(4, 4)
    with unchanged_rng(), pytest.raises(ValueError, match=message):
        require_samplable(model, x)


def test_train_mode_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))).eval()
    model[1][0].train()
    with pytest.raises(ValueError, match=r"1 of its modules are in train mode, the first is '1\.0'"):
        require_samplable(model, torch.randn(2, 4))


def test_inputs_and_outputs_must_be_finite() -> None:
    with pytest.raises(ValueError, match="input tensor 0 must be finite"):
        require_samplable(nn.Linear(2, 2).eval(), torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(ValueError, match="the output of the network must be finite"):
        require_samplable(Logarithm().eval(), torch.zeros(2, 2))


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_a_mask_of_minus_infinity_is_no_fault(lenet: LeNet300, digits: Digits) -> None:
    model = nn.Linear(4, 4).eval()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    require_samplable(model, torch.randn(3, 4))
    require_samplable(lenet, digits.test_images[:5])


def test_sampling_checks_run_on_mappings_and_tuples() -> None:
    batch = {"left": torch.randn(5, 4), "right": torch.randn(5, 4)}
    require_samplable(Keyword().eval(), batch)
    require_samplable(nn.Bilinear(4, 4, 2).eval(), tuple(batch.values()))
    with pytest.raises(TypeError, match="expected a batch of network input"):
        require_samplable(Keyword().eval(), 3)  # type: ignore[arg-type]
