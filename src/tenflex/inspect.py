"""The verb: what of a network can be replaced, how nonlinear it is, and what that would take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.blocks.estimate import active_in, expected_seconds
from tenflex.blocks.heads import size_root
from tenflex.blocks.nonlinearity import nonlinearity
from tenflex.blocks.rows import drawn_rows, views_of
from tenflex.planning.plan import Block, Plan
from tenflex.planning.sizes import first_try
from tenflex.planning.survey import survey
from tenflex.planning.surveyed import Candidate, Measured, Survey
from tenflex.progress import OnProgress, Progress, silent
from tenflex.sampling.capture import capture
from tenflex.sampling.inputs import gather
from tenflex.sampling.memory import Budget
from tenflex.sampling.metric import in_metric, turned
from tenflex.split import SHARE, split_samples
from tenflex.surgery import Cut, find_blocks, find_cut
from tenflex.surgery.batch import Batch, count_samples, take
from tenflex.surgery.twin import twin

FORM = 4
"""So many inputs say how tensors flow."""

EXAMPLES, ROWS = 400, 1000
"""So many inputs, and rows of a block, tell how nonlinear it is."""

ALIKE = 3
"""Of blocks that are alike so many are measured."""

SAMPLES = Plan({"": Block(1)}).samples
"""What a compression draws unless told otherwise."""


@torch.inference_mode(False)
def inspect(model: nn.Module, inputs: Any = None, *, seed: int = 0, on_progress: OnProgress = silent) -> Survey:
    """Look for the blocks of a network that a flexible layer can replace, and measure them; nothing is solved for.

    With inputs each block is taken out of the network once, to see whether it can be. Of those that can, a few hundred
    inputs tell the share of the outputs' variance that no affine map explains (`tenflex.blocks.nonlinearity`), and one
    timed piece tells about how long a compression by the default settings takes, and how much memory.

    Args:
        model: Any network in eval mode; it stays as it is.
        inputs: Whatever `compress` takes, as many of it as are meant for it; None to look at the network alone.
        seed: Of the draws.
        on_progress: Called after every block.

    Returns:
        The blocks, outer ones first; shown, it is a table.

    Raises:
        TypeError: if the inputs are not tensors or arrays of numbers, or the model is no module.
        ValueError: if no block of the network could be replaced, or it cannot be run on the inputs.

    Example:
        >>> found = inspect(model, inputs)
        >>> [(one.name, one.obstacle) for one in found.candidates]
        [('', None), ('0:2', None), ('0', None), ('2', None)]
        >>> found.candidates[2].measured.nonlinearity < 1e-6 < found.candidates[0].measured.nonlinearity
        True
    """
    if inputs is None:
        return survey(model, None)
    batch = gather(model, inputs, SAMPLES, seed, on_progress)
    found = survey(model, take(batch, slice(FORM)))
    able = [one.name for one in found.candidates if one.obstacle is None]
    model, measured = twin(model), {}
    for done, one in enumerate(found.candidates):
        if one.name in able:
            measured[one.name] = _measured(model, one, batch, seed)
        on_progress(Progress("inspect", done + 1, len(found.candidates)))
    candidates = [replace(one, measured=measured.get(one.name)) for one in found.candidates]
    return replace(found, candidates=tuple(candidates))


def _measured(model: nn.Module, one: Candidate, batch: Batch, seed: int) -> Measured | None:
    """What the inputs tell of a candidate; None if a block cannot be differentiated."""
    names = list(find_blocks(model, [one.name]))
    some = names[:: -(-len(names) // ALIKE)]
    try:
        all_of = [measure(model, find_cut(model, name, batch), batch, one, seed) for name in some]
    except (TypeError, ValueError):  # such as whole numbers that arrive: `compress` says what is wrong
        return None
    shares = [found.nonlinearity for found in all_of if found.nonlinearity is not None]
    return replace(all_of[0], nonlinearity=sum(shares) / len(shares) if shares else None)


def measure(model: nn.Module, cut: Cut, batch: Batch, one: Candidate, seed: int = 0) -> Measured:
    """How nonlinear a block is, and what compressing it would take.

    Args:
        model: The network.
        cut: The block.
        batch: The inputs that a compression would draw; the first of them are used.
        one: The candidate that it is.
        seed: Of the draw of its rows.

    Raises:
        TypeError: if no floating-point numbers arrive at it.
        ValueError: if it cannot be differentiated, or something is not finite.
    """
    few, plan = take(batch, slice(EXAMPLES)), Plan({cut.name: Block(1)}, samples=ROWS, seed=seed)
    rows = drawn_rows(model, [cut], [few], plan)[0][cut.name]
    x, y = capture(model, [cut], [few], {cut.name: rows})[cut.name]
    function = rows.unit.function(cut.function(model))
    root = None if cut.several is None else size_root(cut.several, y)
    counted = (function, y) if root is None else (in_metric(function, root), turned(y, root))
    share = nonlinearity(counted[0], x, counted[1], split_samples(rows.groups, 0.5))
    layer = one.suggestion or first_try(x[0].numel(), y[0].numel(), one.parameters)
    if layer is None:
        return Measured(share, None, None, None)
    total = rows.total * count_samples(batch) // count_samples(few)
    return Measured(share, layer, *expense(function, x, y, layer, min(total, SAMPLES)))


def expense(function: nn.Module, x: Tensor, y: Tensor, layer: Block, count: int) -> tuple[float, int]:
    """About the seconds, and the bytes at the peak, that a layer from so many samples takes.

    Args:
        function: The block.
        x: Some rows of what arrives at it.
        y: The same rows of what leaves it.
        layer: What is asked for.
        count: The samples that would be used.
    """
    plan = Plan({"": layer})
    n, m, fitted = y[0].numel(), x[0].numel(), count - round(SHARE * count)
    views = views_of(plan, layer, (fitted, n, m), plan.memory)
    seconds = expected_seconds(function, x, n, layer, views, fitted, count)
    return seconds, Budget(plan.memory, n, m, views).taken(count, active_in(function, x, n))
