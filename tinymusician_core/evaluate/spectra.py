"""What the listener sees of a sound: log-mel bands for timbre and rhythm, and thirds of semitones for pitch.

Every frame lies wholly inside the sound, so the frames of a window cut out of a longer sound are the longer sound's own
frames. Frame t of `pitch` begins where frame `PITCH_HOP // MEL_HOP` * t of `mel` begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 32000
MEL_FFT, MEL_HOP, MELS = 2048, 640, 96
PITCH_FFT, PITCH_HOP = 8192, 2560
MEL_LOW_HZ = 40.0
BINS_PER_SEMITONE, LOWEST_PITCH, SEMITONES = 3, 36, 84
PITCH_BINS = BINS_PER_SEMITONE * SEMITONES
SILENCE = 1e-10
FLOOR = -16.0  # nats below a window's mean power: 69 dB, above the rounding noise of 16-bit sound at a usual level


@dataclass(frozen=True)
class Spectra:
    """Natural logarithms of power: `mel` [B,F,MELS] every 20 ms and `pitch` [B,T,PITCH_BINS] every 80 ms."""

    mel: Tensor
    pitch: Tensor

    def levelled(self) -> Spectra:
        """The same relative to the mean mel power of each row, nothing below `FLOOR`: a gain changes nothing."""
        level = self.mel.float().logsumexp((1, 2), keepdim=True)
        level = level - torch.log(torch.tensor(float(self.mel.shape[1] * self.mel.shape[2])))
        return Spectra((self.mel - level).clamp_min(FLOOR), (self.pitch - level).clamp_min(FLOOR))


def mel_frames(samples: int) -> int:
    """How many mel frames lie wholly in that many samples."""
    return max(0, (samples - MEL_FFT) // MEL_HOP + 1)


def pitch_frames(samples: int) -> int:
    """How many pitch frames lie wholly in that many samples."""
    return max(0, (samples - PITCH_FFT) // PITCH_HOP + 1)


@cache
def mel_bank() -> Tensor:
    """Triangular mel filters of equal area [bins, MELS] (Slaney, "Auditory Toolbox", 1998)."""
    from torchaudio.functional import melscale_fbanks

    top = SAMPLE_RATE_HZ / 2
    bins = MEL_FFT // 2 + 1
    return melscale_fbanks(bins, MEL_LOW_HZ, top, MELS, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney")


@cache
def pitch_bank() -> Tensor:
    """Triangular filters [bins, PITCH_BINS], three a semitone from C2 up; each as wide as its neighbours are apart, but
    at least a bin of the Fourier transform either side, and with weights that sum to 1."""
    bin_hz = SAMPLE_RATE_HZ / PITCH_FFT
    pitch = LOWEST_PITCH + torch.arange(PITCH_BINS, dtype=torch.float64) / BINS_PER_SEMITONE
    centre = 440.0 * 2 ** ((pitch - 69) / 12)
    width = (centre * (2 ** (1 / (12 * BINS_PER_SEMITONE)) - 1)).clamp_min(bin_hz)
    frequency = torch.arange(PITCH_FFT // 2 + 1, dtype=torch.float64) * bin_hz
    bank = (1 - (frequency[:, None] - centre).abs() / width).clamp_min(0)
    return (bank / bank.sum(0)).float()


def log_power(audio: Tensor, n_fft: int, hop: int, bank: Tensor) -> Tensor:
    """Wave [B,N] -> log of the power in each band of a Hann-windowed Fourier transform [B,frames,bands]."""
    frames = audio.unfold(1, n_fft, hop) * torch.hann_window(n_fft)
    spectrum = torch.fft.rfft(frames)
    return ((spectrum.real**2 + spectrum.imag**2) @ bank).clamp_min(SILENCE).log()


def spectra(audio: Tensor) -> Spectra:
    """Mono sound float32 [B,N] at `SAMPLE_RATE_HZ` -> its spectra, not levelled.

    Raises:
        ValueError: sound of another shape, or shorter than one pitch frame.
    """
    if audio.ndim != 2 or audio.shape[1] < PITCH_FFT:
        raise ValueError(f"spectra need sound [B,N] of at least {PITCH_FFT} samples, got {list(audio.shape)}")
    mel = log_power(audio, MEL_FFT, MEL_HOP, mel_bank())
    return Spectra(mel, log_power(audio, PITCH_FFT, PITCH_HOP, pitch_bank()))
