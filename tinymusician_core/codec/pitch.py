"""A spectrum by pitch: how strong each third of a semitone is around the middle of every code frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOWEST_HZ, OCTAVES, BINS_PER_OCTAVE = 55.0, 5, 36
LOG_FLOOR = 1e-5


def pitch_filters(sample_rate_hz: int, n_fft: int) -> Tensor:
    """Weights [n_fft // 2 + 1, OCTAVES * BINS_PER_OCTAVE]: a triangle over log-frequency around every pitch, at
    least as wide as one bin of the transform; each sums to 1."""
    hz = torch.arange(1, n_fft // 2 + 1) * sample_rate_hz / n_fft
    centres = torch.arange(OCTAVES * BINS_PER_OCTAVE)
    at = BINS_PER_OCTAVE * (hz / LOWEST_HZ).log2()
    width = (BINS_PER_OCTAVE * ((hz + sample_rate_hz / n_fft) / hz).log2()).clamp_min(1.0)
    weights = (1 - (at[:, None] - centres).abs() / width[:, None]).clamp_min(0.0)
    return F.pad(weights / weights.sum(0), (0, 0, 1, 0))


class PitchSpectrum(nn.Module):
    """Wave [B,N] -> log magnitude [B, N // hop, bins], of `n_fft` samples around the middle of every `hop`."""

    def __init__(self, sample_rate_hz: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.bins = n_fft, hop, OCTAVES * BINS_PER_OCTAVE
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", pitch_filters(sample_rate_hz, n_fft), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        side = (self.n_fft - self.hop) // 2
        frames = audio.shape[-1] // self.hop
        sound = F.pad(audio.float()[:, : frames * self.hop], (side, side))
        columns = torch.fft.rfft(sound.unfold(1, self.n_fft, self.hop) * self.window).abs()
        return (columns @ self.filters).clamp_min(LOG_FLOOR).log()
