"""The spectral decoder on codes that still come: the same layers, each with a window of its own on its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .stream import OverlapAdd, Window

if TYPE_CHECKING:
    from .spectral import ConvNeXtBlock, SpectralDecoder


class SpectralStream:
    """A spectral decoder and where each of its layers stands."""

    def __init__(self, decoder: SpectralDecoder):
        self._decoder = decoder
        self._frame_window = _window(decoder.frame_block)
        self._windows = [_window(block) for block in decoder.blocks]
        self._wave = InverseStft(decoder.config.n_fft, decoder.config.hop, decoder.window)

    def push(self, codes: Tensor, last: bool) -> Tensor:
        """Codes [B,K,t], t may be 0 -> the sound [B,1,n] that is final now."""
        d = self._decoder
        x = self._run(d.frame_block, self._frame_window, self._frames(codes), last)
        if x.shape[1]:
            x = d.spread_frames(x)
        for block, window in zip(d.blocks, self._windows, strict=True):
            x = self._run(block, window, x, last)
        if not x.shape[1]:
            return x.new_zeros(codes.shape[0], 1, 0)
        wave = self._wave.push(d.spectrum(x, self._wave.columns), last)
        return wave.unsqueeze(1)

    def ready(self, frames: int) -> int:
        """How many samples are final after so many frames, while more will come."""
        config = self._decoder.config
        columns = self._frame_window.ready(frames) * config.stride
        for window in self._windows:
            columns = window.ready(columns)
        return max(0, columns * config.hop - config.n_fft // 2)

    def _frames(self, codes: Tensor) -> Tensor:
        d = self._decoder
        if not codes.shape[2]:
            return d.window.new_zeros(codes.shape[0], 0, d.config.decoder_dim)
        return d.frames(d.look_up(codes))

    @staticmethod
    def _run(block: ConvNeXtBlock, window: Window, x: Tensor, last: bool) -> Tensor:
        ready = window.push(x, last)
        return block.valid(ready) if ready.shape[1] else ready


class InverseStft:
    """torch.istft with center=True, on columns that come in chunks; the last column counts twice, at its own end too.

    Each column's wave is laid down, windowed, at its place, and the sum divided by that of the squared windows
    (Griffin and Lim 1984, equation 6).
    """

    def __init__(self, n_fft: int, hop: int, window: Tensor):
        self._n_fft, self._hop, self._window = n_fft, hop, window
        self._waves, self._weights = OverlapAdd(hop), OverlapAdd(hop)
        self.columns = self._given = 0

    def push(self, spectrum: Tensor, last: bool) -> Tensor:
        """Complex columns [B,t,bins] -> the samples [B,n] that are final now; `hop` a column in all."""
        self.columns += spectrum.shape[1]
        if last:
            spectrum = torch.cat([spectrum, spectrum[:, -1:]], dim=1)
        pieces = torch.fft.irfft(spectrum, self._n_fft) * self._window
        squares = self._window.square().expand(1, pieces.shape[1], -1)
        waves, weights = self._waves.push(pieces, last), self._weights.push(squares, last)
        begin = max(0, self._n_fft // 2 - self._given)
        end = self.columns * self._hop + self._n_fft // 2 - self._given if last else waves.shape[1]
        self._given += waves.shape[1]
        return waves[:, begin:end] / weights[:, begin:end]


def _window(block: ConvNeXtBlock) -> Window:
    context = block.conv.kernel_size[0] - 1
    return Window(context, context // 2, context // 2)
