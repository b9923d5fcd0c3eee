"""EnCodec's decoder (SEANet, Defossez et al. 2022, arXiv 2210.13438), fast and in chunks.

The weights are those of transformers' EncodecDecoder with the weight norm folded in. Tensors are [B,t,C], channels
last, so that a convolution is a matrix product on rows that lie in memory as they are, and a transposed convolution
whose kernel is twice its stride is one with two taps that makes `stride` samples a row.
A long sound is decoded in pieces, so that what a layer hands on to the next stays in the processor's cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .products import convolve, elu, linear, linear_plus
from .stream import Window

if TYPE_CHECKING:
    from transformers.models.encodec.modeling_encodec import (
        EncodecConv1d,
        EncodecConvTranspose1d,
        EncodecDecoder,
        EncodecLSTM,
        EncodecResnetBlock,
    )

# Numbers that an upsampling makes at once, and the rows it reads at least: smaller pieces cost more calls, larger ones
# leave the cache (measured with 32 MB of it: 2**18 to 2**22 differ by a tenth).
PIECE = 2**20
FEWEST_ROWS = 64


class Taps(nn.Module):
    """A convolution without padding: weight [Cout,kernel,Cin], bias [Cout]."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1):
        super().__init__()
        self.weight, self.bias = _fixed(weight), _fixed(bias)
        self.dilation = dilation
        self.context = (weight.shape[1] - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B,n + context,Cin] -> [B,n,Cout]."""
        return convolve(x, self.weight, self.bias, self.dilation)


class Conv(nn.Module):
    """EncodecConv1d: padding at the two ends of the sound, a convolution, and where asked an ELU before it."""

    def __init__(self, like: EncodecConv1d, after_elu: bool = False):
        super().__init__()
        self.taps, self.left, self.right, self.reflect = _convolution(like)
        self.after_elu = after_elu

    def open(self) -> Window:
        return Window(self.taps.context, self.left, self.right, self.reflect)

    def ready(self, length: int) -> int:
        return self.open().ready(length)

    def forward(self, x: Tensor, window: Window, last: bool) -> Tensor:
        """[B,t,Cin] -> [B,n,Cout]."""
        x = window.push(elu(x) if self.after_elu else x, last)
        return self.taps(x) if x.shape[1] else _nothing(x, self.taps.bias.shape[0])


class Residual(nn.Module):
    """EncodecResnetBlock: x + narrow(elu(wide(elu(x)))), or a convolution of x in the place of x."""

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
        """[B,t,C] -> [B,n,C]."""
        x = window.push(x, last)
        if not x.shape[1]:
            return x
        made = self.narrow(elu(self.wide(elu(x))))
        x = x[:, self.left : self.left + made.shape[1]]
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
        newer, older = like.conv.weight.permute(2, 1, 0).split(self.stride)
        weight = torch.stack([older, newer], dim=2).flatten(0, 1)
        self.taps = Taps(weight, like.conv.bias.repeat(self.stride))
        self.trim_right = math.ceil(self.stride * like.trim_right_ratio) if like.causal else self.stride // 2
        self.trim_left = self.stride - self.trim_right

    def open(self) -> _Upsampling:
        return _Upsampling()

    def ready(self, length: int) -> int:
        return max(0, length * self.stride - self.trim_left)

    def forward(self, x: Tensor, state: _Upsampling, last: bool) -> Tensor:
        """[B,t,Cin] -> [B,n,Cout]."""
        x = state.window.push(elu(x), last)
        channels = self.taps.bias.shape[0] // self.stride
        if not x.shape[1]:
            return _nothing(x, channels)
        made = self.taps(x)
        made = made.reshape(made.shape[0], -1, channels)
        begin = 0 if state.begun else self.trim_left
        state.begun = True
        return made[:, begin : made.shape[1] - (self.trim_right if last else 0)]


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
        """[B,t,C] -> [B,t,C]."""
        if not x.shape[1]:
            return x
        y = x.transpose(0, 1)
        for i, layer in enumerate(self.layers):
            y, states[i] = layer(y, states[i])
        return x + y.transpose(0, 1)


class LstmLayer(nn.Module):
    """One layer; its input's products for all frames at once, then frame by frame what depends on the frame before."""

    def __init__(self, like: nn.LSTM, layer: int):
        super().__init__()
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        wide, recurrent, bias, more = (getattr(like, f"{name}_l{layer}") for name in names)
        self.wide, self.recurrent, self.bias = _fixed(wide), _fixed(recurrent), _fixed(bias + more)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[t,B,C] and the hidden and cell state [B,C] -> [t,B,C] and the new state."""
        size = x.shape[2]
        hidden, cell = (x.new_zeros(x.shape[1:]) for _ in range(2)) if state is None else state
        gates = linear(x.reshape(-1, size), self.wide, self.bias).unflatten(0, x.shape[:2])
        made = torch.empty_like(x)
        for row, out in zip(gates.unbind(), made.unbind(), strict=True):
            row = linear_plus(hidden, self.recurrent, row)
            enter, forget = row[:, : 2 * size].sigmoid_().chunk(2, dim=1)
            new, leave = row[:, 2 * size : 3 * size].tanh_(), row[:, 3 * size :].sigmoid_()
            cell = (cell * forget).addcmul_(enter, new)
            hidden = torch.mul(leave, cell.tanh(), out=out)
        return made, (hidden.clone(), cell)


class Seanet(nn.Module):
    """The whole decoder: vectors at frame rate to sound.

    Args:
        like: transformers' decoder, whose weights are copied, the weight norm folded in; weights on "meta" stay there.

    Raises:
        ValueError: a decoder with another norm than weight norm (group norm looks at the whole sound at once), or with
            another padding than mirrored sound or zeros.
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
        """Vectors [B,t,D], t may be 0 -> the sound [B,n,C] that is final now; `last` when no more will come."""
        return self._run(0, x, last)

    def _run(self, begin: int, x: Tensor, last: bool) -> Tensor:
        """The layers from `begin` on; where a layer would make much at once, piece by piece."""
        for i in range(begin, len(self._steps)):
            layer, state = self._steps[i]
            if isinstance(layer, Upsample):
                rows = max(FEWEST_ROWS, PIECE // (x.shape[0] * layer.taps.bias.shape[0]))
                if x.shape[1] > rows:
                    pieces = x.split(rows, dim=1)
                    ends = [last and k == len(pieces) - 1 for k in range(len(pieces))]
                    return torch.cat([self._run(i, p, end) for p, end in zip(pieces, ends, strict=True)], dim=1)
            x = layer(x, state, last)
        return x


def _layers(like: EncodecDecoder) -> list[nn.Module]:
    found: list[nn.Module] = []
    after_elu = False
    for layer in like.layers:
        kind = type(layer).__name__
        if getattr(layer, "norm_type", "weight_norm") != "weight_norm":
            raise ValueError(f"this EnCodec decoder has {layer.norm_type}; one with weight_norm can be decoded")
        if kind == "ELU":
            after_elu = True
            continue
        found.append(Conv(layer, after_elu) if kind == "EncodecConv1d" else _KINDS[kind](layer))
        after_elu = False
    return found


_KINDS = {"EncodecLSTM": Lstm, "EncodecConvTranspose1d": Upsample, "EncodecResnetBlock": Residual}


def _convolution(like: EncodecConv1d) -> tuple[Taps, int, int, bool]:
    """Its weights, and how much it pads on the left and on the right, and whether with the mirrored sound."""
    if like.pad_mode not in ("reflect", "constant"):
        raise ValueError(f"this EnCodec decoder pads with {like.pad_mode}; one with reflect or constant can be decoded")
    taps = Taps(like.conv.weight.transpose(1, 2), like.conv.bias, like.conv.dilation[0])
    right = 0 if like.causal else taps.context // 2
    return taps, taps.context - right, right, like.pad_mode == "reflect"


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().float().clone(memory_format=torch.contiguous_format), requires_grad=False)


def _nothing(x: Tensor, channels: int) -> Tensor:
    return x.new_zeros(x.shape[0], 0, channels)
