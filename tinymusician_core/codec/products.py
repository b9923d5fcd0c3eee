"""What a codec's decoder spends its time on, channels last, by the quickest kernel for the size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import onednn

# From here on a convolution's own kernel is worth arranging its weights for; below, rows are laid side by side instead.
MANY_ROWS = 1024
# A convolution to so few channels, all taps counted, is one product and shifted sums: 4 times as fast at 64 to 1.
FEW_PRODUCTS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows [n,Cin], weight [Cout,Cin], bias [Cout] -> [n,Cout]."""
    if onednn.usable(x):
        return onednn.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_plus(x: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
    """Rows [n,Cin], weight [Cout,Cin], and what is added [n,Cout] -> [n,Cout]."""
    if onednn.usable(x):
        return onednn.linear_plus(x, weight, plus)
    return torch.addmm(plus, x, weight.T)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """A convolution without padding.

    Args:
        x: [B,t,Cin].
        weight: [Cout,kernel,Cin].
        bias: [Cout].

    Returns:
        [B,n,Cout], n = t - (kernel - 1) * dilation.
    """
    outputs, kernel, _ = weight.shape
    context = (kernel - 1) * dilation
    batch, count = x.shape[0], x.shape[1] - context
    if kernel > 1 and outputs * kernel <= FEW_PRODUCTS:
        return _shifted_sums(x, weight, bias, dilation)
    if kernel > 1 and batch * count >= MANY_ROWS:
        image = x.transpose(1, 2).unsqueeze(2)
        made = F.conv2d(image, weight.transpose(1, 2).unsqueeze(2), bias, dilation=(1, dilation))
        return made.squeeze(2).transpose(1, 2)
    rows = x.unfold(1, context + 1, 1)[..., ::dilation].transpose(2, 3)
    return linear(rows.reshape(batch * count, -1), weight.flatten(1), bias).view(batch, count, outputs)


def elu(x: Tensor) -> Tensor:
    """x above 0, exp(x) - 1 below, in a new tensor; ELU of Clevert et al. 2015 (arXiv 1511.07289).

    On a CPU exp(x) - 1 is taken from the sigmoid s of -x, as 1 / s - 2: torch's sigmoid is four times as fast as its
    exponentials, and the whole takes 0.6 of the time of `F.elu`. What is lost is at most 1e-6.
    """
    if x.device.type != "cpu":
        return F.elu(x)
    made = torch.neg(x).clamp_(min=0).sigmoid_().reciprocal_().sub_(2)
    return torch.maximum(x, made, out=made)


def _shifted_sums(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    outputs, kernel, channels = weight.shape
    taps = weight.transpose(0, 1).reshape(-1, channels)
    products = linear(x.reshape(-1, channels), taps, F.pad(bias, (0, taps.shape[0] - outputs)))
    products = products.view(*x.shape[:2], kernel, outputs)
    count = x.shape[1] - (kernel - 1) * dilation
    made = products[:, :count, 0].clone()
    for tap in range(1, kernel):
        made += products[:, tap * dilation : tap * dilation + count, tap]
    return made
