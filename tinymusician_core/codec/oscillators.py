"""Sinusoids that run on from frame to frame, at a fixed frequency each.

A decoder that makes every STFT column from what its codes say alone makes the same column again while a note is held:
its sound then repeats with every code frame, and has no frequencies but multiples of the frame rate. Here the layers
say how loud each sinusoid is and where it begins, and the time itself turns it. In the manner of differentiable
additive synthesis (Engel et al. 2020, arXiv 2001.04643), but written as STFT columns, so that noise and attacks join in
before the transform is inverted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..onednn import Linear
from .pitch import BINS_PER_OCTAVE, LOWEST_HZ

UNIT = 0.1  # the amplitude of a sinusoid for outputs of 0 (its loudness) and 1
QUIET, LOUD = -4.0, 2.0  # log amplitude, beside UNIT: at the start of training, and at most
SKIRT = 40  # bins: beyond, the skirts of a Hann window lie more than 100 dB below its middle
GOLDEN = (5**0.5 - 1) / 2  # turns between the phases of neighbours at the start: no two of them peak together


class Oscillators(nn.Module):
    """[B,t,dim] -> complex STFT columns [B,t,bins] of `count` sinusoids a third of a semitone apart, from LOWEST_HZ.

    Seen from its middle a Hann window has a real spectrum, so a sinusoid is one complex number times real bins; those
    more than `SKIRT` above the highest sinusoid are left at zero.
    """

    def __init__(self, dim: int, count: int, sample_rate_hz: int, n_fft: int, hop: int) -> None:
        super().__init__()
        hz = LOWEST_HZ * 2 ** (torch.arange(count, dtype=torch.float64) / BINS_PER_OCTAVE)
        turns = (torch.arange(n_fft, dtype=torch.float64) - n_fft / 2) * hz[:, None] / sample_rate_hz
        wave = torch.polar(torch.hann_window(n_fft, dtype=torch.float64).expand_as(turns), 2 * torch.pi * turns)
        alternating = 1 - 2 * (torch.arange(n_fft // 2 + 1) % 2)  # the transform counts from the window's start
        columns = (torch.fft.fft(wave)[:, : n_fft // 2 + 1] * alternating).real * UNIT / 2
        self.reach = int(columns[-1].abs().argmax()) + 1  # bins, from the lowest, that have oscillators in them
        self.silent_bins = max(0, columns.shape[1] - self.reach - SKIRT)
        columns = (columns * alternating)[:, : columns.shape[1] - self.silent_bins]
        self.register_buffer("columns", columns.float().contiguous(), persistent=False)
        self.turns = tuple((hz * hop / sample_rate_hz).tolist())  # of each from one column to the next
        self.middle = n_fft / 2 / hop  # of a column, in columns from where it starts
        self.loudness, self.direction = Linear(dim, count), Linear(dim, 2 * count)
        for weight in (self.loudness.weight, self.direction.weight):
            nn.init.zeros_(weight)
        nn.init.constant_(self.loudness.bias, QUIET)
        angle = 2 * torch.pi * GOLDEN * torch.arange(count)
        with torch.no_grad():
            self.direction.bias.copy_(torch.stack([angle.cos(), angle.sin()], dim=1).flatten())

    def forward(self, x: Tensor, first: int) -> Tensor:
        """The columns of x, the first of which is number `first` of the whole sound."""
        size = torch.view_as_complex(self.direction(x).float().unflatten(-1, (-1, 2)).contiguous())
        size = size * self.loudness(x).float().clamp(max=LOUD).exp()
        number = torch.arange(first, first + x.shape[1], dtype=torch.float64, device=x.device)
        turns = torch.tensor(self.turns, dtype=torch.float64, device=x.device)
        angle = (2 * torch.pi * ((number[:, None] + self.middle) * turns).frac()).float()
        size = size * torch.polar(torch.ones_like(angle), angle)
        bins = F.pad(torch.stack([size.real, size.imag]) @ self.columns, (0, self.silent_bins))
        return torch.complex(*bins)
