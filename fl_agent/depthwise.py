"""Gradients of single images of depthwise convolutions.

Opacus multiplies the windows of each channel with the gradients of every channel and keeps the diagonal: for 1152
channels and a kernel of 5 x 5, 130 MB for each image. Here a channel meets its own gradient alone.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Tell whether each channel is filtered by itself, in a form that `depthwise_gradients` takes."""
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.dilation == (1, 1)
        and not isinstance(layer.padding, str)
        and layer.padding_mode == "zeros"
    )


def depthwise_gradients(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Give the gradient of each image for each trained parameter, as Opacus's own samplers do.

    Parameters
    ----------
    layer : Conv2d
        See `is_depthwise`.
    activations : list of Tensor
        Its input alone, shape (images, channels, rows, columns).
    backprops : Tensor, shape (images, channels, rows', columns')
        Gradient of the loss by its output.

    Returns
    -------
    dict of Parameter to Tensor, shape (images, ...)
    """
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = _weights(layer, activations[0].to(backprops.dtype), backprops)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = backprops.sum((2, 3))
    return found


def _weights(layer: nn.Conv2d, given: Tensor, backprops: Tensor) -> Tensor:
    above, beside = (int(size) for size in layer.padding)
    (down, across), (high, wide) = layer.stride, backprops.shape[2:]
    given = functional.pad(given, (beside, beside, above, above))
    rows, columns = layer.kernel_size
    found = backprops.new_empty((len(backprops), *layer.weight.shape))
    for row in range(rows):
        for column in range(columns):
            # What this weight of each channel was multiplied with, at each position.
            seen = given[:, :, row : row + down * high : down, column : column + across * wide : across]
            found[:, :, 0, row, column] = (seen[:, :, :high, :wide] * backprops).sum((2, 3))
    return found
