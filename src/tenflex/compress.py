"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tenflex.bases import Basis
from tenflex.checks import require_finite, require_floating
from tenflex.decouple import decouple
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.report import BlockReport, Report
from tenflex.nn import FlexibleLayer
from tenflex.planning.plan import DEFAULT_BASIS, Block, Plan
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress, silent
from tenflex.sampling.capture import capture, positions
from tenflex.sampling.checks import gather, require_samplable
from tenflex.sampling.jacobian import sample_block
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
    samples: int = 2000,
    basis: Basis = DEFAULT_BASIS,
    coupling: float = 3.0,
    solver: Solver | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
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
        samples: The most inputs (or positions of sequences) that are used.
        basis: The functions of every activation.
        coupling: The weight of the outputs' relative error beside the Jacobians'.
        solver: The algorithm; None for the default recipe.
        seed: Of all random choices. The same seed on the same machine gives the same bits.
        on_progress: Called while sampling and after every step of a solver.

    Returns:
        The compressed network with its report.

    Raises:
        TypeError: if an argument is of the wrong type, such as integer inputs to a block.
        ValueError: if the model, the inputs or a block cannot be used; the message says what to do.
    """
    plan = Plan(blocks, samples, basis, coupling, seed)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = find_blocks(model, plan.blocks)
    batches = gather(inputs, plan.samples, plan.seed)
    require_samplable(model, batches[0])
    cuts = [find_cut(model, name, batches[0]) for name in found]
    require_disjoint(cuts)
    plan = replace(plan, blocks={name: plan.blocks[pattern] for name, pattern in found.items()})
    return _Run(model, batches, plan, solver, on_progress or silent).all(cuts)


class _Run:
    """One compression under way."""

    def __init__(
        self, model: nn.Module, batches: list[Any], plan: Plan, solver: Solver | None, report: OnProgress
    ) -> None:
        self.model, self.batches, self.plan, self.solver, self.report = model, batches, plan, solver, report

    def all(self, cuts: list[Cut]) -> Compression:
        """Replace all blocks, from the front to the back."""
        began = time.perf_counter()
        originals = capture(self.model, cuts, self.batches)
        for cut in cuts:
            self._check_block(cut, *originals[cut.name])
        smaller = copy.deepcopy(self.model)
        blocks, solutions, replacements = [], {}, []
        for index, cut in enumerate(cuts):
            arriving = originals[cut.name][0] if index == 0 else capture(smaller, [cut], self.batches)[cut.name][0]
            block, solution, layer = self._replace(cut, arriving, originals[cut.name][1])
            smaller = cut.replace_(smaller, layer)
            blocks.append(block)
            solutions[cut.name] = solution
            replacements.append(Replacement(cut, layer.to_dict()))
        smaller.eval()
        report = self._total(smaller, blocks, time.perf_counter() - began)
        return Compression(smaller, report, self.plan, solutions, tuple(replacements), self.model)

    def _check_block(self, cut: Cut, arriving: Tensor, leaving: Tensor) -> None:
        """The block's own inputs and outputs can be used."""
        require_floating(f"the input of block {cut.name!r}", arriving)
        require_finite(f"what arrives at block {cut.name!r}", arriving)
        require_finite(f"what leaves block {cut.name!r}", leaving)

    def _replace(self, cut: Cut, arriving: Tensor, leaving: Tensor) -> tuple[BlockReport, Solution, FlexibleLayer]:
        """Sample a block, solve for its layer, and report on it."""
        began = time.perf_counter()
        settings = self.plan.blocks[cut.name]
        function = cut.function(self.model)
        x, y = self._rows(function, arriving, leaving)
        samples = sample_block(function, x, y, on_chunk=self._on_chunk(cut.name))
        problem = Problem(
            samples,
            settings.rank,
            settings.basis or self.plan.basis,
            self.plan.coupling,
            settings.factor,
            settings.output_factor,
        )
        solution = decouple(problem, self.solver, seed=self.plan.seed, on_progress=self._on_step(cut.name))
        layer = FlexibleLayer.from_factors(solution.factors, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype).eval()
        block = BlockReport(
            name=cut.name,
            before=cost(function, arriving),
            after=cost(layer, arriving),
            output_error=solution.output_error,
            jacobian_error=solution.jacobian_error,
            result=solution.result,
            seconds=time.perf_counter() - began,
        )
        return block, solution, layer

    def _rows(self, function: nn.Module, arriving: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of a block: its examples, or all positions of them when each position is mapped on its own."""
        if positions(function, arriving):
            arriving, leaving = arriving.flatten(0, -2), leaving.flatten(0, -2)
        if len(arriving) > self.plan.samples:
            generator = torch.Generator().manual_seed(self.plan.seed)
            chosen = torch.randperm(len(arriving), generator=generator)[: self.plan.samples].to(arriving.device)
            arriving, leaving = arriving[chosen], leaving[chosen]
        return arriving, leaving

    def _on_chunk(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(Progress("sample", done, total, task=name or "network"))

    def _on_step(self, name: str) -> OnProgress:
        return lambda progress: self.report(replace(progress, task=name or "network"))

    def _total(self, smaller: nn.Module, blocks: list[BlockReport], seconds: float) -> Report:
        return Report(tuple(blocks), cost(self.model, self.batches[0]), cost(smaller, self.batches[0]), seconds)
