"""The fused kernels of PyTorch's transformer encoder, which read the weights of submodules instead of calling them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
        encoder.layers[-1].register_forward_hook(Unpadded(encoder.mask_check), with_kwargs=True)


@dataclass(frozen=True)
class Unpadded:
    """A hook of the last layer of an encoder that no longer leaves out padded positions: zeros as before.

    In eval mode PyTorch packs the positions that are no padding, if they come first, and fills up with zeros before the
    last norm, where no gradients are asked for. Networks that take sums over positions rely on it.

    Args:
        checked: Whether padding that comes first is left alone; else nobody looks.
        always: Whether zeros are filled in with gradients, too, as inside of `unfused`.
    """

    checked: bool
    always: bool = False

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """The output with those positions filled."""
        padding = kwargs.get("src_key_padding_mask")
        if not isinstance(output, Tensor) or not isinstance(padding, Tensor) or not self._packs(layer, output, kwargs):
            return output
        left = padding if padding.dtype == torch.bool else padding != 0
        if self.checked:
            left = left & (left[:, 1:] >= left[:, :-1]).all()
        return torch.where(left[..., None], output.new_zeros(()), output)

    def _packs(self, layer: nn.Module, output: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """Whether PyTorch would have packed the positions."""
        if kwargs.get("src_mask") is not None or output.dim() != 3 or layer.training or torch.is_autocast_enabled():
            return False
        if self.always or torch.compiler.is_compiling():  # what is compiled is to be as without gradients
            return True
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in layer.parameters())
        return torch.backends.mha.get_fastpath_enabled() and not learns


@contextmanager
def filling_padding(model: nn.Module) -> Iterator[None]:
    """Inside, encoders that call their layers although they need not give the same at padding as if they did not."""
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and len(module.layers) and _fills(module):
                hook = Unpadded(module.mask_check, always=True)
                hooks.callback(module.layers[-1].register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _fills(encoder: nn.TransformerEncoder) -> bool:
    """Whether an encoder packs positions, or has a hook that does as if."""
    kept = encoder.layers[-1]._forward_hooks.values()
    return bool(encoder.use_nested_tensor) or any(isinstance(one, Unpadded) for one in kept)
