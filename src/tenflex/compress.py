"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tenflex.checks import require_finite, require_floating
from tenflex.decouple import decouple
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.report import BlockReport, Report
from tenflex.nn import FlexibleLayer
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture, positions
from tenflex.sampling.checks import gather, require_samplable
from tenflex.sampling.jacobian import sample_block
from tenflex.sampling.memory import MOST_MEMORY, Budget
from tenflex.solution import Solution
from tenflex.solvers import Solver
from tenflex.storage.network import Replacement, save_compressed
from tenflex.surgery import Cut, find_blocks, find_cut, require_disjoint


@dataclass(frozen=True)
class Compression:
    """A compressed network and all that is known of how it came about.

    Args:
        model: The compressed network, a new module in eval mode; the original is untouched.
        report: Per block and in all: parameters, MACs, activation operations, errors, time.
        plan: The settings, with wildcards resolved to block names.
        solutions: For each block, its solution.
        replacements: For each block, where its layer stands.
        original: The network that was compressed, for `evaluate`.
    """

    model: nn.Module
    report: Report
    plan: Plan
    solutions: Mapping[str, Solution]
    replacements: tuple[Replacement, ...]
    original: nn.Module

    def evaluate(self, inputs: Tensor, labels: Int[Tensor, " S"] | None = None) -> Fidelity:
        """How close the compressed network stays to the original one on other inputs.

        Args:
            inputs: A batch, samples first.
            labels: The classes, for the accuracy.

        Raises:
            TypeError: if inputs or labels are no tensors of the right kind.
            ValueError: if they do not fit each other.
        """
        return fidelity(self.model, self.original, inputs, labels)

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `config.json` and `report.json`; a run that dies leaves the previous result.

        Raises:
            OSError: if the folder cannot be made or written.
            ValueError: if the folder holds other files than a previous result.
        """
        save_compressed(folder, self.model, self.plan.to_dict(), self.replacements, self.report.to_dict())


def compress(
    model: nn.Module,
    inputs: Any,
    blocks: Mapping[str, Block],
    *,
    solver: Solver[Any] | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Compression:
    r"""Replace blocks of a trained network by flexible layers, without labels and without training.

    Every block is sampled on what really arrives at it, after earlier replacements, with the original network's outputs
    as target. The original model and the caller's tensors stay as they are.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        model: Any network in eval mode.
        inputs: A few hundred unlabelled inputs: a batch, or an iterable of batches; of tuples or lists such as a
            DataLoader gives, the first entry is used; mappings are passed as keyword arguments.
        blocks: What to replace: a module ("encoder.layer.3.mlp"), a span of modules that feed each other ("fc1:fc3"),
            the whole network (""), or wildcards ("encoder.layer.*.mlp"), each with its layer.
        solver: The algorithm; None for the default recipe.
        on_progress: Called while sampling and after every step of a solver.
        **settings: Those of a `Plan` besides its blocks: `samples`, the most inputs (or positions of sequences) that
            are used, `basis`, `coupling`, `coordinates`, `held_out` and `seed`. The same seed on the same machine, with
            the same number of threads (`torch.get_num_threads()`), gives the same bits.

    Returns:
        The compressed network with its report.

    Raises:
        TypeError: if an argument is of the wrong type, such as integer inputs to a block.
        ValueError: if the model, the inputs or a block cannot be used; the message says what to do.
    """
    plan = Plan.of(blocks, settings)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = find_blocks(model, plan.blocks)
    batches = gather(inputs, plan.samples, plan.seed)
    require_samplable(model, batches[0])
    cuts = [find_cut(model, name, batches[0]) for name in found]
    require_disjoint(cuts)
    plan = replace(plan, blocks={name: plan.blocks[pattern] for name, pattern in found.items()})
    return _compressed(model, batches, cuts, plan, solver, on_progress or silent)


def _compressed(
    model: nn.Module, batches: list[Any], cuts: list[Cut], plan: Plan, solver: Solver[Any] | None, report: OnProgress
) -> Compression:
    """Replace all blocks, from the front to the back."""
    began = time.perf_counter()
    originals = capture(model, cuts, batches)
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(model, cuts, originals, plan)
    smaller = copy.deepcopy(model)
    blocks, replacements, solutions = [], [], dict[str, Solution]()
    for index, cut in enumerate(cuts):
        start = time.perf_counter()
        arriving, leaving = originals.pop(cut.name)
        if index > 0:
            arriving = arrivals(smaller, cut, batches)
        tell = _about(cut.name or "network", report)
        kept = sum(one.problem.samples.jacobians.nbytes for one in solutions.values())
        block = sampled_block(cut.function(model), arriving, leaving, plan, tell, MOST_MEMORY - kept)
        solution = solved(block, cut.name, plan, solver, tell)
        layer = block.layer(solution)
        smaller = cut.replace_(smaller, layer)
        seconds = time.perf_counter() - start
        costs = cost(block.function, arriving), cost(layer, arriving)
        errors = solution.output_error, solution.jacobian_error
        blocks.append(BlockReport(cut.name, *costs, *errors, solution.result, seconds))
        solutions[cut.name] = solution
        replacements.append(Replacement(cut, layer.to_dict()))
    smaller.eval()
    costs = cost(model, batches[0]), cost(smaller, batches[0])
    total = Report(tuple(blocks), *costs, time.perf_counter() - began)
    return Compression(smaller, total, plan, solutions, tuple(replacements), model)


def _about(task: str, report: OnProgress) -> OnProgress:
    return lambda progress: report(replace(progress, task=task))


def require_block(cut: Cut, arriving: Tensor, leaving: Tensor) -> None:
    """Raise unless a block's own inputs and outputs can be used."""
    require_floating(f"the input of block {cut.name!r}", arriving)
    require_finite(f"what arrives at block {cut.name!r}", arriving)
    require_finite(f"what leaves block {cut.name!r}", leaving)


def require_layers(
    model: nn.Module, cuts: list[Cut], originals: Mapping[str, tuple[Tensor, Tensor]], plan: Plan
) -> None:
    """Raise unless the samples of every block are enough for its layers, and few enough for memory, before any work."""
    kept = 0
    for cut in cuts:
        asked = plan.blocks[cut.name]
        x, y = block_rows(cut.function(model), *originals[cut.name], plan)
        count, n, m = len(x), y[0].numel(), x[0].numel()
        try:
            require_sizes(asked.ranks, asked.factor, asked.output_factor, (count, n, m), plan.held_out)
            Budget(MOST_MEMORY - kept, n, m).require(count)
        except ValueError as error:
            raise ValueError(f"block {cut.name!r}: {error}") from None
        kept += 8 * count * n  # along one direction at least


@dataclass(frozen=True)
class SampledBlock:
    """A block with its samples, from which layers of any size can be solved for.

    Args:
        function: The block, as a module of its own.
        samples: What it does, in reduced coordinates.
        in_shape: The shape of one of its inputs.
        out_shape: The shape of one of its outputs.
        dtype: Of its inputs.
    """

    function: nn.Module
    samples: Samples
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype

    def layer(self, solution: Solution) -> FlexibleLayer:
        """The layer of a solution, in the block's place."""
        return FlexibleLayer.from_factors(solution.factors, self.in_shape, self.out_shape, self.dtype).eval()


def sampled_block(
    function: nn.Module,
    arriving: Tensor,
    leaving: Tensor,
    plan: Plan,
    report: OnProgress,
    most_memory: int = MOST_MEMORY,
) -> SampledBlock:
    """Sample a block at what arrives at it, with what should leave it as target."""

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    x, y = block_rows(function, arriving, leaving, plan)
    samples = sample_block(function, x, y, coordinates=plan.coordinates, most_memory=most_memory, on_chunk=tell)
    return SampledBlock(function, samples, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype)


def block_rows(function: nn.Module, arriving: Tensor, leaving: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The samples of a block: its examples, or all positions of them when each position is mapped on its own."""
    if positions(function, arriving):
        arriving, leaving = arriving.flatten(0, -2), leaving.flatten(0, -2)
    if len(arriving) > plan.samples:
        generator = torch.Generator().manual_seed(plan.seed)
        chosen = torch.randperm(len(arriving), generator=generator)[: plan.samples].to(arriving.device)
        arriving, leaving = arriving[chosen], leaving[chosen]
    return arriving, leaving


def solved(block: SampledBlock, name: str, plan: Plan, solver: Solver[Any] | None, report: OnProgress) -> Solution:
    """Solve for the layer that a plan asks for in the place of a block."""
    asked = plan.blocks[name]
    basis = asked.basis or plan.basis
    problem = Problem(
        block.samples,
        asked.rank,
        basis,
        plan.coupling,
        asked.factor,
        asked.output_factor,
        held_out=plan.held_out,
    )
    return decouple(problem, solver, seed=plan.seed, on_progress=report)
