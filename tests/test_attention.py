"""Attention with projections of its own computes what PyTorch's does, and can be made smaller."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tenflex import Block, Compression, compress, inspect
from tenflex.cli.weights import load_weights_
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity
from tenflex.nn import Attention, opened
from tenflex.planning.plan import LowRank
from tenflex.solvers import ConstrainedALS
from tenflex.surgery.quiet import unfused

WIDTH, HEADS, LENGTH = 8, 2, 5


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def attention(**settings: object) -> nn.MultiheadAttention:
    made = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **settings)  # type: ignore[arg-type]
    for one in made.parameters():  # biases start at zero
        nn.init.normal_(one, std=0.5)
    return made.eval()


def masks(kind: str) -> dict[str, Tensor]:
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    by_head = torch.randn(3 * HEADS, LENGTH, LENGTH, dtype=torch.float64)
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "by head": {"attn_mask": by_head},
        "added": {"attn_mask": by_head[0], "key_padding_mask": torch.randn(3, LENGTH, dtype=torch.float64)},
    }[kind]


class TestAttention:
    @pytest.mark.parametrize("kind", ["none", "causal", "padding", "both", "by head", "added"])
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("weights", [None, "of the mean", "of each head"])
    def test_the_same_as_that_of_torch(self, kind: str, batch_first: bool, weights: str | None) -> None:
        theirs = attention(batch_first=batch_first)
        x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
        x = x if batch_first else x.transpose(0, 1)
        more = {**masks(kind), "need_weights": weights is not None, "average_attn_weights": weights == "of the mean"}
        expected, found = theirs(x, x, x, **more), Attention(theirs)(x, x, x, **more)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
        assert (found[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("bias", [True, False])
    def test_other_keys_and_values(self, bias: bool) -> None:
        theirs = attention(kdim=6, vdim=7, bias=bias)
        q, k, v = (torch.randn(length, 3, m, dtype=torch.float64) for length, m in ((4, WIDTH), (9, 6), (9, 7)))
        for found, expected in zip(Attention(theirs)(q, k, v), theirs(q, k, v), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_one_sequence_without_a_batch(self) -> None:
        theirs, x = attention(), torch.randn(LENGTH, WIDTH, dtype=torch.float64)
        more = {"key_padding_mask": torch.tensor([False] * 4 + [True])}
        for found, expected in zip(Attention(theirs)(x, x, x, **more), theirs(x, x, x, **more), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_gradients_are_the_same(self) -> None:
        theirs, x = attention(), torch.randn(LENGTH, 3, WIDTH, dtype=torch.float64)
        ours = Attention(theirs)
        theirs(x, x, x)[0].square().sum().backward()
        ours(x, x, x)[0].square().sum().backward()
        expected = theirs.in_proj_weight.grad
        found = torch.cat([one.weight.grad for one in (ours.q_proj, ours.k_proj, ours.v_proj)])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_dropout_of_training_as_that_of_torch(self) -> None:
        theirs = attention(dropout=0.5).train()
        ours, x = Attention(theirs), torch.randn(LENGTH, 3, WIDTH, dtype=torch.float64)
        found = []
        for one in (theirs, ours):
            torch.manual_seed(1)
            found.append(one(x, x, x)[0])
        assert ours.training
        torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)

    def test_a_hint_without_its_mask_is_refused_as_torch_does(self) -> None:
        theirs, x = attention(), torch.randn(LENGTH, 3, WIDTH, dtype=torch.float64)
        for one in (theirs, Attention(theirs)):
            with pytest.raises(RuntimeError, match="attn_mask"):
                one(x, x, x, is_causal=True)

    @pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
    def test_what_is_appended_is_refused_and_left(self, settings: dict[str, bool]) -> None:
        theirs = attention(**settings)
        with pytest.raises(ValueError, match="expected an attention without appended"):
            Attention(theirs)
        assert type(opened(nn.Sequential(theirs))[0]) is nn.MultiheadAttention

    def test_large_scores_in_half_precision(self) -> None:
        theirs = attention().half()
        x = 60 * torch.randn(LENGTH, 3, WIDTH).half()
        for found, expected in zip(Attention(theirs)(x, x, x), theirs(x, x, x), strict=True):
            assert expected.isfinite().all()
            assert found.isfinite().all()

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            ({"key_padding_mask": torch.ones(3, LENGTH).long()}, TypeError, r"truth values .* got torch\.int64"),
            ({"key_padding_mask": torch.zeros(1, LENGTH).bool()}, ValueError, r"shape \(3, 5\), got \(1, 5\)"),
            ({"attn_mask": torch.zeros(1, LENGTH).bool()}, ValueError, r"shape \(5, 5\) or \(6, 5, 5\), got \(1, 5\)"),
        ],
    )
    def test_masks_that_torch_refuses(self, masks: dict[str, Tensor], error: type[Exception], message: str) -> None:
        theirs = attention(batch_first=True)
        x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
        with pytest.raises((AssertionError, RuntimeError)):
            theirs(x, x, x, **masks)
        with pytest.raises(error, match=message):
            Attention(theirs)(x, x, x, **masks)

    def test_keys_of_other_sequences_are_refused(self) -> None:
        x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
        with pytest.raises(ValueError, match="expected keys for 3 sequences, as queries, got 1"):
            Attention(attention(batch_first=True))(x, x[:1], x[:1])

    @pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 6, "vdim": 7}])
    def test_it_loads_weights_of_the_other(self, settings: dict[str, object]) -> None:
        theirs = attention(**settings)
        other = Attention(nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **settings))  # type: ignore[arg-type]
        nn.ModuleList([other]).load_state_dict(nn.ModuleList([theirs]).state_dict())
        for name, value in Attention(theirs).state_dict().items():
            assert torch.equal(other.state_dict()[name], value)


class Encoder(nn.Module):
    """An embedding, PyTorch's encoder, and a head."""

    def __init__(self, layers: int = 2, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=batch_first)
        self.head = nn.Linear(16, 3)
        self.batch_first = batch_first

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=mask)
        return self.head(x.mean(1 if self.batch_first else 0))


def encoder(**settings: object) -> tuple[nn.Module, Tensor]:
    """One whose projections have few large singular values, so that thin layers lose little."""
    model = Encoder(**settings).eval()  # type: ignore[arg-type]
    for one in model.modules():
        if isinstance(one, nn.MultiheadAttention):
            u, s, vt = torch.linalg.svd(one.in_proj_weight.detach().reshape(3, 16, 16))
            one.in_proj_weight.data = ((u * (s * 2.0 ** -torch.arange(16))[:, None]) @ vt).reshape(48, 16)
    return model, torch.randint(0, 40, (100, 6))


class TestOpened:
    def test_the_network_stays_and_the_copy_computes_the_same(self) -> None:
        model, tokens = encoder()
        before = copy.deepcopy(model.state_dict())
        new = opened(model)
        torch.testing.assert_close(new(tokens), model(tokens), rtol=1e-5, atol=1e-5)
        assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        with torch.no_grad():  # the parameters are its own
            new.encoder.layers[0].self_attn.q_proj.weight.zero_()
        assert torch.equal(
            model.state_dict()["encoder.layers.0.self_attn.in_proj_weight"],
            before["encoder.layers.0.self_attn.in_proj_weight"],
        )

    def test_shared_parameters_stay_shared_and_frozen_ones_frozen(self) -> None:
        one, other = attention(), attention()
        other.in_proj_weight, other.out_proj = one.in_proj_weight, one.out_proj
        one.in_proj_weight.requires_grad_(False)
        new = opened(nn.ModuleList([one, other]))
        assert new[0].k_proj.weight is new[1].k_proj.weight
        assert new[0].out_proj is new[1].out_proj
        assert stored_numbers(new) == stored_numbers(nn.ModuleList([one, other]))
        assert not new[0].q_proj.weight.requires_grad
        assert new[0].q_proj.bias.requires_grad
        assert new[0].out_proj.weight.requires_grad

    def test_a_forward_of_its_own_stays_and_attention_kept_elsewhere_is_refused(self) -> None:
        patched = attention()
        patched.forward = lambda *args, **kwargs: (None, None)  # type: ignore[method-assign]
        assert type(opened(nn.Sequential(patched))[0]) is nn.MultiheadAttention
        listed = nn.Sequential(attention())
        listed.kept = [listed[0]]
        with pytest.raises(ValueError, match="'0' is also kept in a list"):
            opened(listed)

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("norm", [False, True])
    def test_padding_gives_what_it_gave(self, norm: bool) -> None:
        """In eval mode PyTorch packs what is no padding, and gives zeros at the others, before its last norm."""
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None).eval()
        for one in model.parameters():
            nn.init.normal_(one, std=0.3)
        x, left = torch.randn(4, 6, 16), torch.arange(6) >= torch.tensor([[6], [3], [5], [1]])
        causal = torch.ones(6, 6).bool().triu(1)
        new = opened(model)
        thin = compress(model, (x,), {"layers.0.linear1": LowRank(9)}).model
        minus = torch.zeros(4, 6).masked_fill(left, -torch.inf)
        for padding, mask in ((left, None), (left.flip(1), None), (minus, None), (left, causal)):
            with torch.no_grad():
                expected = model(x, mask, src_key_padding_mask=padding)
                found = new(x, mask, src_key_padding_mask=padding)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for one in (new, thin):
                expected, found = (every(x, src_key_padding_mask=left) for every in (model, one))
                torch.testing.assert_close(found[left], expected[left])
        for one in (model, new, thin):
            with unfused(one), torch.no_grad():
                torch.testing.assert_close(one(x, src_key_padding_mask=left)[left], expected[left])
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(thin)(x, src_key_padding_mask=left), thin(x, src_key_padding_mask=left))
        for padding in (left, left.flip(1)):  # with gradients PyTorch packs nothing
            expected, found = (every(x, src_key_padding_mask=padding) for every in (model, new))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_a_program_does_at_padding_as_the_network(self) -> None:
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
        new, x = opened(model), torch.randn(4, 6, 16)
        left = torch.arange(6) >= torch.tensor([[6], [3], [5], [1]])
        program = torch.export.export(new, (x,), {"src_key_padding_mask": left}).module()
        with torch.no_grad():
            for padding in (left, left.flip(1)):
                expected = model(x, src_key_padding_mask=padding)
                torch.testing.assert_close(program(x, src_key_padding_mask=padding), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_the_last_norm_is_called_once(self) -> None:
        """It may be a block, or the end of one."""

        class Summed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.encoder, self.head = nn.TransformerEncoder(layer, 1, nn.LayerNorm(8)), nn.Linear(8, 3)

            def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
                return self.head(self.encoder(x, src_key_padding_mask=padding).sum(1))

        model, x = Summed().eval(), torch.randn(100, 5, 8)
        given = {"x": x, "padding": torch.arange(5) >= torch.randint(1, 6, (100, 1))}
        for block in ("encoder.norm", "encoder.norm:head"):
            result = compress(model, given, {block: Block(2)}, solver=ConstrainedALS(1))
            with torch.no_grad():
                wanted, found = model(**given), result.model(**given)
            error = (found - wanted).norm() / (wanted - wanted.mean(0)).norm()
            assert result.evaluate(given).relative_error == pytest.approx(float(error), rel=1e-3)
        compress(model, {"x": x}, {"encoder.layers.0.linear1:encoder.norm": Block(2)}, solver=ConstrainedALS(1))

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_what_is_told_of_sums_over_padded_positions_is_so(self, tmp_path: Path) -> None:
        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
                self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(12, 3)

            def forward(self, x: Tensor, padding: Tensor) -> Tensor:
                total = self.encoder(x, src_key_padding_mask=padding).sum(1)
                return self.head(total / (~padding).sum(1, keepdim=True))

        model, x = Pooled().eval(), torch.randn(120, 6, 12)
        padding = torch.arange(6) >= torch.randint(1, 7, (120, 1))
        result = compress(model, (x, padding), {"encoder.layers.0.linear1": LowRank(6)})
        result.save(tmp_path / "thin")
        with torch.no_grad():
            wanted, found = model(x, padding), result.model(x, padding)
            again = Compression.load(tmp_path / "thin", model).model(x, padding)
        assert torch.equal(again, found)
        error = (found - wanted).norm() / (wanted - wanted.mean(0)).norm()
        assert result.evaluate((x, padding)).relative_error == pytest.approx(float(error), rel=1e-3)

    def test_padded_positions_change_nothing_before_them(self) -> None:
        model, tokens = encoder()
        mask = torch.zeros(100, 6, dtype=torch.bool)
        mask[:, 4:] = True
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyTorch's own, of nested tensors

            x = model.embedding(tokens)
            expected = model.encoder(x, src_key_padding_mask=mask)[:, :4]
            found = opened(model).encoder(x, src_key_padding_mask=mask)[:, :4]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_a_decoder_and_an_attention_alone(self) -> None:
        model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dtype=torch.float64).eval()
        x, y = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
        mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
        torch.testing.assert_close(opened(model)(x, y, tgt_mask=mask), model(x, y, tgt_mask=mask))
        assert isinstance(opened(attention()), Attention)

    def test_shared_attention_stays_shared_and_hooked_ones_stay(self) -> None:
        shared, hooked = attention(), attention()
        hooked.register_forward_hook(lambda *_: None)
        new = opened(nn.ModuleList([shared, shared, hooked]))
        assert new[0] is new[1]
        assert isinstance(new[0], Attention)
        assert type(new[2]) is nn.MultiheadAttention

    def test_kinds_of_parameters_stay(self) -> None:
        frozen = attention().bfloat16().requires_grad_(False)
        new = opened(frozen)
        assert {one.dtype for one in new.parameters()} == {torch.bfloat16}
        assert not any(one.requires_grad for one in new.parameters())
        assert all(one.requires_grad for one in opened(attention()).parameters())
        assert sum(one.numel() for one in new.parameters()) == sum(one.numel() for one in frozen.parameters())


class TestCompressed:
    def test_weights_of_the_network_fit_on_the_command_line(self, tmp_path: Path) -> None:
        model, tokens = encoder(layers=1)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        other = opened(Encoder(1).eval())
        assert load_weights_(other, str(tmp_path / "weights.pt")) == []
        assert torch.equal(other(tokens), opened(model)(tokens))

    def test_projections_of_a_network_that_is_not_opened(self, tmp_path: Path) -> None:
        model, tokens = encoder(layers=1)
        block = {"encoder.layers.0.self_attn.q_proj": LowRank(2)}
        with pytest.raises(ValueError, match=r"are modules in tenflex\.nn\.opened\(model\): pass that"):
            compress(model, tokens, block)
        compress(opened(model), tokens, block).save(tmp_path / "thin")
        with pytest.raises(ValueError, match=r"are modules in tenflex\.nn\.opened\(model\): pass that"):
            Compression.load(tmp_path / "thin", model)

    def test_projections_are_seen_and_replaced(self, tmp_path: Path) -> None:
        model, tokens = encoder()
        new = opened(model)
        possible = [one.name for one in inspect(model, tokens).candidates if one.obstacle is None]
        assert not [name for name in possible if "self_attn" in name]
        assert "tenflex.nn.opened" in str(inspect(model))
        assert "tenflex.nn.opened" not in str(inspect(new))
        assert [one for one in inspect(new, tokens).candidates if one.name.endswith("self_attn.q_proj")]
        result = compress(new, tokens, {"encoder.layers.*.self_attn.q_proj": LowRank(2)}, seed=0)
        assert fidelity(result.model, model, tokens).relative_error < 0.1
        result.save(tmp_path / "thin")
        again = Compression.load(tmp_path / "thin", opened(model))
        assert torch.equal(again.model(tokens), result.model(tokens))

    def test_a_budget_makes_them_smaller_and_loses_less(self) -> None:
        model, tokens = encoder(layers=1)
        allowed, error = sum(one.numel() for one in model.parameters()) - 600, {}
        for name, one in (("closed", model), ("open", opened(model))):
            result = compress(one, tokens, budget=allowed, seed=0)
            assert sum(p.numel() for p in result.model.parameters()) <= allowed
            error[name] = fidelity(result.model, model, tokens).relative_error
        assert any("self_attn" in name for name in result.plan.blocks)
        assert error["open"] < error["closed"]
