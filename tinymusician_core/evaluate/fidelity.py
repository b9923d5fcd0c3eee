"""What a codec's round trip costs: decoded sound against the sound that was encoded.

`log_mel_l1` is the distance that our codec was trained to make small, at windows of 512 to 4096 samples: what is heard.
`si_sdr_db` compares waveforms. A codec that rebuilds magnitudes and makes up the phases, as ours does, is far below
0 dB there and none the worse for it; one that codes waveforms, as EnCodec does, should be above.

B batch, C channels, N samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..records import Waveform

SCALES = ((512, 64), (1024, 96), (2048, 128), (4096, 160))
MEASURES = ("log_mel_l1", "si_sdr_db")
SLACK_S = 0.1


class MelScales(nn.Module):
    """Log-mel distance at several window lengths: the codec's loss and its figure of merit."""

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        for n_fft, mels in SCALES:
            bank = melscale_fbanks(
                n_fft // 2 + 1, 20.0, sample_rate_hz / 2, mels, sample_rate_hz, norm="slaney", mel_scale="slaney"
            )
            self.register_buffer(f"bank{n_fft}", bank, persistent=False)
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Waves [B,1,N] -> (mean L1 of natural-log mel magnitudes, mean spectral convergence of linear
        magnitudes)."""
        return self.compare(self.power(made), self.power(real))

    def power(self, wave: Tensor) -> list[Tensor]:
        """Wave [B,1,N] -> power spectrum [B,frames,bins] at each window length."""
        found = []
        for n_fft, _ in SCALES:
            window = getattr(self, f"window{n_fft}")
            spectrum = torch.stft(wave[:, 0].float(), n_fft, n_fft // 4, window=window, return_complex=True)
            found.append((spectrum.real**2 + spectrum.imag**2).clamp_min(1e-10).transpose(1, 2))
        return found

    def compare(self, made: list[Tensor], real: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What `forward` gives, of two sounds' `power`."""
        logs, linear = [], []
        for (n_fft, _), x, y in zip(SCALES, made, real, strict=True):
            x, y = x.sqrt(), y.sqrt()
            a, b = ((m @ self.bank(n_fft)).clamp_min(1e-4).log() for m in (x, y))
            logs.append((a - b).abs().mean())
            linear.append(torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(y).clamp_min(1e-3))
        return torch.stack(logs).mean(), torch.stack(linear).mean()

    def bank(self, n_fft: int) -> Tensor:
        """The mel filters [bins,mels] for windows of `n_fft` samples."""
        return getattr(self, f"bank{n_fft}")


@torch.inference_mode()
def log_mel_l1(made: np.ndarray, real: np.ndarray, sample_rate_hz: int) -> float:
    """Mean absolute difference of natural-log mel magnitudes, over four window lengths and all channels.

    Args:
        made, real: float32 [C,N], as many channels and samples each.
        sample_rate_hz: of both.

    Raises:
        ValueError: shapes that differ, or sound shorter than half the longest window.
    """
    made, real = _pair(made, real)
    if real.shape[1] <= SCALES[-1][0] // 2:
        raise ValueError(f"a log-mel distance needs more than {SCALES[-1][0] // 2} samples, got {real.shape[1]}")
    scales = MelScales(sample_rate_hz)
    return float(scales(torch.from_numpy(made).float()[:, None], torch.from_numpy(real).float()[:, None])[0])


def si_sdr(made: np.ndarray, real: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., "SDR - Half-baked or Well Done?", ICASSP 2019):

        10 log10 (|t|^2 / |made - t|^2)    with    t = real <made, real> / |real|^2

    after each channel's mean was taken off. All channels count as one signal; float64.

    Args:
        made, real: [C,N], as many channels and samples each.

    Returns:
        Infinity for the same sound at any level, minus infinity for one that shares nothing with it.

    Raises:
        ValueError: shapes that differ, or a `real` that is silent: nothing can be compared with silence.
    """
    made, real = (x - x.mean(axis=1, keepdims=True) for x in _pair(made, real))
    power = float((real**2).sum())
    if power == 0.0:
        raise ValueError("SI-SDR needs a sound to compare with, got silence")
    target = real * (float((made * real).sum()) / power)
    signal, noise = float((target**2).sum()), float(((made - target) ** 2).sum())
    if signal == 0.0:
        return -math.inf
    return 10.0 * math.log10(signal / noise) if noise > 0.0 else math.inf


def fidelity(made: np.ndarray, real: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
    """Both measures of a clip, by the names in `MEASURES`.

    Args:
        made: what was decoded, float32 [C,N] in -1..1.
        real: what was encoded. The longer of the two is cut to the other: codecs work in whole frames.
        sample_rate_hz: of both.

    Raises:
        ValueError: no sound, unlike channels, lengths that differ by more than 0.1 s, or a silent `real`.
    """
    made, real = Waveform(made, sample_rate_hz).audio, Waveform(real, sample_rate_hz).audio
    if abs(made.shape[1] - real.shape[1]) > SLACK_S * sample_rate_hz:
        lengths = f"{made.shape[1] / sample_rate_hz:.2f} s and {real.shape[1] / sample_rate_hz:.2f} s"
        raise ValueError(f"made and real must be equally long, to {SLACK_S} s, got {lengths}")
    shorter = min(made.shape[1], real.shape[1])
    made, real = made[:, :shorter], real[:, :shorter]
    return {"log_mel_l1": log_mel_l1(made, real, sample_rate_hz), "si_sdr_db": si_sdr(made, real)}


def _pair(made: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [C,N]; ValueError where their shapes differ."""
    made, real = np.asarray(made, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if made.shape != real.shape or made.ndim != 2:
        raise ValueError(f"made and real must be [channels, samples] of one shape, got {made.shape} and {real.shape}")
    return made, real
