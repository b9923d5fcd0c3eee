"""EnCodec's decoder (SEANet, Defossez et al. 2022, arXiv 2210.13438), fast and in chunks.

The weights are those of transformers' EncodecDecoder with the weight norm folded in. Time comes first, [T,B,C], so that
every convolution is a few matrix products on rows that lie in memory as they are, one for each tap of the kernel, and
a transposed convolution whose kernel is twice its stride is one with two taps that makes `stride` samples a row.
A long sound is decoded in stretches, so that what the layers hand on stays in the processor's cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .stream import Window

if TYPE_CHECKING:
    from transformers.models.encodec.modeling_encodec import (
        EncodecConv1d,
        EncodecConvTranspose1d,
        EncodecDecoder,
        EncodecLSTM,
        EncodecResnetBlock,
    )


class Taps(nn.Module):
    """A convolution without padding: weight [kernel,Cin,Cout], bias [Cout]."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1):
        super().__init__()
        self.weight, self.bias = _fixed(weight), _fixed(bias)
        self.dilation = dilation

    @property
    def context(self) -> int:
        return (self.weight.shape[0] - 1) * self.dilation

    def forward(self, x: Tensor) -> Tensor:
        """[n + context,B,Cin] -> [n,B,Cout]."""
        batch = x.shape[1]
        rows, step = x.flatten(0, 1), self.dilation * batch
        count = rows.shape[0] - self.context * batch
        out = torch.addmm(self.bias, rows[:count], self.weight[0])
        for tap in range(1, self.weight.shape[0]):
            out.addmm_(rows[tap * step : tap * step + count], self.weight[tap])
        return out.unflatten(0, (-1, batch))


class Conv(nn.Module):
    """EncodecConv1d: padding at the two ends of the sound, a convolution, and where asked an ELU before it."""

    def __init__(self, like: EncodecConv1d, elu: bool = False):
        super().__init__()
        self.taps, self.left, self.right, self.reflect = _convolution(like)
        self.elu = elu

    def open(self) -> Window:
        return Window(self.taps.context, self.left, self.right, self.reflect)

    def ready(self, length: int) -> int:
        return self.open().ready(length)

    def forward(self, x: Tensor, window: Window, last: bool) -> Tensor:
        """[t,B,Cin] -> [n,B,Cout]."""
        x = window.push(F.elu_(x) if self.elu else x, last)
        return self.taps(x) if x.shape[0] else _nothing(x, self.taps.bias.shape[0])


class Residual(nn.Module):
    """EncodecResnetBlock: x + conv1(elu(conv3(elu(x)))), or a convolution of x in the place of x."""

    def __init__(self, like: EncodecResnetBlock):
        super().__init__()
        self.wide, self.left, self.right, self.reflect = _convolution(like.block[1])
        self.narrow = _convolution(like.block[3])[0]
        self.shortcut = None if isinstance(like.shortcut, nn.Identity) else _convolution(like.shortcut)[0]

    def open(self) -> Window:
        return Window(self.wide.context, self.left, self.right, self.reflect)

    def ready(self, length: int) -> int:
        return self.open().ready(length)

    def forward(self, x: Tensor, window: Window, last: bool) -> Tensor:
        """[t,B,C] -> [n,B,C]."""
        x = window.push(x, last)
        if not x.shape[0]:
            return x
        made = self.narrow(F.elu_(self.wide(F.elu(x))))
        x = x[self.left : self.left + made.shape[0]]
        return made.add_(x if self.shortcut is None else self.shortcut(x))


class _Upsampling:
    """Where a transposed convolution stands: its window, and whether its first samples have been cut off."""

    def __init__(self) -> None:
        self.window = Window(context=1, left=1, right=1)
        self.begun = False


class Upsample(nn.Module):
    """ELU and EncodecConvTranspose1d, whose kernel is twice its stride.

    With W [Cin,Cout,2 * stride], the samples of row t are x[t] W[..., :stride] + x[t-1] W[..., stride:].
    """

    def __init__(self, like: EncodecConvTranspose1d):
        super().__init__()
        self.stride = like.conv.stride[0]
        newer, older = like.conv.weight.permute(0, 2, 1).flatten(1).chunk(2, dim=1)
        self.taps = Taps(torch.stack([older, newer]), like.conv.bias.repeat(self.stride))
        self.trim_right = math.ceil(self.stride * like.trim_right_ratio) if like.causal else self.stride // 2
        self.trim_left = self.stride - self.trim_right

    def open(self) -> _Upsampling:
        return _Upsampling()

    def ready(self, length: int) -> int:
        return max(0, length * self.stride - self.trim_left)

    def forward(self, x: Tensor, state: _Upsampling, last: bool) -> Tensor:
        """[t,B,Cin] -> [n,B,Cout]."""
        x = state.window.push(F.elu_(x), last)
        channels = self.taps.bias.shape[0] // self.stride
        if not x.shape[0]:
            return _nothing(x, channels)
        made = self.taps(x)
        made = made.unflatten(2, (self.stride, channels)).transpose(1, 2).flatten(0, 1)
        begin = 0 if state.begun else self.trim_left
        state.begun = True
        return made[begin : made.shape[0] - (self.trim_right if last else 0)]


class Lstm(nn.Module):
    """EncodecLSTM: x + lstm(x), whose state goes on from chunk to chunk."""

    def __init__(self, like: EncodecLSTM):
        super().__init__()
        self.layers = nn.ModuleList(LstmLayer(like.lstm, i) for i in range(like.lstm.num_layers))

    def open(self) -> list[tuple[Tensor, Tensor] | None]:
        return [None] * len(self.layers)

    def ready(self, length: int) -> int:
        return length

    def forward(self, x: Tensor, states: list, last: bool) -> Tensor:
        """[t,B,C] -> [t,B,C]."""
        y = x
        for i, layer in enumerate(self.layers):
            y, states[i] = layer(y, states[i])
        return x + y


class LstmLayer(nn.Module):
    """One layer; its input's products for all frames at once, then frame by frame what depends on the frame before."""

    def __init__(self, like: nn.LSTM, layer: int):
        super().__init__()
        weights = (getattr(like, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        wide, recurrent, bias, more = weights
        self.wide, self.recurrent, self.bias = _fixed(wide.T), _fixed(recurrent.T), _fixed(bias + more)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[t,B,C] and the hidden and cell state [B,C] -> [t,B,C] and the new state."""
        hidden, cell = (x.new_zeros(x.shape[1:]),) * 2 if state is None else state
        gates = torch.addmm(self.bias, x.flatten(0, 1), self.wide).unflatten(0, x.shape[:2])
        made = []
        for row in gates:
            enter, forget, new, leave = row.addmm_(hidden, self.recurrent).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            made.append(hidden)
        return (torch.stack(made) if made else x), (hidden, cell)


class Seanet(nn.Module):
    """The whole decoder: vectors at frame rate to sound.

    Args:
        like: transformers' decoder, whose weights are copied, the weight norm folded in; weights on "meta" stay there.

    Raises:
        ValueError: a decoder with another norm than weight norm: group norm looks at the whole sound at once.
    """

    def __init__(self, like: EncodecDecoder):
        super().__init__()
        self.layers = nn.ModuleList(_layers(like))

    def open(self) -> SeanetStream:
        return SeanetStream(self)

    def ready(self, length: int) -> int:
        """How many samples are final after `length` frames, while more will come."""
        for layer in self.layers:
            length = layer.ready(length)
        return length


class SeanetStream:
    """A decoder and where each of its layers stands."""

    def __init__(self, decoder: Seanet):
        self._steps = [(layer, layer.open()) for layer in decoder.layers]

    def push(self, x: Tensor, last: bool) -> Tensor:
        """Vectors [t,B,D] -> the sound [n,B,C] that is final now."""
        for layer, state in self._steps:
            x = layer(x, state, last)
        return x


def _layers(like: EncodecDecoder) -> list[nn.Module]:
    found: list[nn.Module] = []
    elu = False
    for layer in like.layers:
        kind = type(layer).__name__
        if getattr(layer, "norm_type", "weight_norm") != "weight_norm":
            raise ValueError(f"this EnCodec decoder has {layer.norm_type}; one with weight_norm can be decoded")
        if kind == "ELU":
            elu = True
            continue
        found.append(Conv(layer, elu) if kind == "EncodecConv1d" else _KINDS[kind](layer))
        elu = False
    return found


_KINDS = {"EncodecLSTM": Lstm, "EncodecConvTranspose1d": Upsample, "EncodecResnetBlock": Residual}


def _convolution(like: EncodecConv1d) -> tuple[Taps, int, int, bool]:
    """Its weights, and how much it pads on the left and on the right, and whether with the mirrored sound."""
    taps = Taps(like.conv.weight.permute(2, 1, 0), like.conv.bias, like.conv.dilation[0])
    right = 0 if like.causal else taps.context // 2
    return taps, taps.context - right, right, like.pad_mode == "reflect"


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().float().clone(memory_format=torch.contiguous_format), requires_grad=False)


def _nothing(x: Tensor, channels: int) -> Tensor:
    return x.new_zeros(0, x.shape[1], channels)
