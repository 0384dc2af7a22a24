"""The fused kernels of PyTorch's transformer encoder, which read the weights of submodules instead of calling them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.surgery.paths import ancestors, get_module


def leave_fused_(model: nn.Module, path: str) -> None:
    """Let the encoder layers around a replaced module call their submodules, as they do in train mode.

    In eval mode they would hand `linear1.weight` and others to one kernel, and so pass by what was put in their place.
    """
    for outer in ancestors(path):
        module = get_module(model, outer)
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            call_layers_(module)


def call_layers_(encoder: nn.TransformerEncoder) -> None:
    """Let an encoder call its layers for padded inputs, too, and give what it gives without: zeros at padding."""
    if encoder.use_nested_tensor:
        encoder.use_nested_tensor = False
        encoder.register_forward_hook(Unpadded(), with_kwargs=True)


class Unpadded:
    """A hook of an encoder that no longer leaves out padded positions: what it gives there is what it gave before.

    In eval mode PyTorch packs the positions that are no padding, if they come first, and fills up with zeros before the
    last norm. Networks that take sums over positions rely on it.
    """

    def __call__(
        self, encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """The output with those positions filled."""
        given = dict(zip(("src", "mask", "src_key_padding_mask"), args, strict=False)) | dict(kwargs)
        padding = given.get("src_key_padding_mask")
        if not isinstance(output, Tensor) or not isinstance(padding, Tensor):
            return output
        if not _packs(encoder, output, given.get("mask"), padding):
            return output
        filled = output.new_zeros(output.shape[-1])
        filled = filled if encoder.norm is None else encoder.norm(filled)
        return torch.where(_is_padding(padding)[..., None], filled, output)


def _packs(encoder: nn.TransformerEncoder, output: Tensor, mask: Any, padding: Tensor) -> bool:
    """Whether an encoder with its fused path takes it."""
    if mask is not None or output.dim() != 3:
        return False
    if encoder.layers[0].training or torch.is_autocast_enabled():
        return False
    left = _is_padding(padding)
    return torch.compiler.is_compiling() or not encoder.mask_check or bool((left[:, 1:] >= left[:, :-1]).all())


def _is_padding(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask != 0


@contextmanager
def filling_padding(model: nn.Module) -> Iterator[None]:
    """Inside, encoders that call their layers although they need not give the same at padding as if they did not."""
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
                hooks.callback(module.register_forward_hook(Unpadded(), with_kwargs=True).remove)
        yield
