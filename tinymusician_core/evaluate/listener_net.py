"""The listener's network: a branch for timbre and rhythm over log-mel bands, a branch for the key over pitches.

The pitch branch treats every semitone alike, as deep chroma and key networks do (Korzeniowski and Widmer, "End-to-end
musical key estimation using a convolutional neural network", 2017): convolutions that share their weights along pitch,
octaves folded into twelve pitch classes, circular convolutions over these. Its judgement is a score for each of the 24
keys; the mode follows from them whatever the tonic is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .spectra import BINS_PER_SEMITONE, FLOOR, MELS, SEMITONES, Spectra

PITCH_CLASSES, OCTAVES = 12, SEMITONES // 12
FLUX_BANDS, LAGS = 6, 200
DEVIATION_FLOOR = 1e-4
PITCH_FLOOR = -4.0  # a partial weaker than this, 17 dB below the mean power of a mel band, says little about the key


@dataclass(frozen=True)
class ListenerConfig:
    """Sizes of the network: widths of the two branches, and of the embedding that all heads read."""

    rhythm_dim: int = 96
    rhythm_blocks: int = 6
    period_dim: int = 64
    pitch_dim: int = 24
    chroma_dim: int = 40
    chroma_blocks: int = 2
    embedding_dim: int = 64

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def scaled(log_power: Tensor, floor: float = FLOOR) -> Tensor:
    """Levelled log power, nothing below the floor -> about -2 to 2."""
    return (log_power.clamp_min(floor) - floor / 2) / 4


def statistics(x: Tensor) -> Tensor:
    """Mean and standard deviation over the last axis: [...,D,T] -> [...,2 * D] with D the last but one."""
    x = x.float()
    return torch.cat([x.mean(-1), (x.var(-1, unbiased=False) + DEVIATION_FLOOR).sqrt()], -1)


def periodicity(mel: Tensor) -> Tensor:
    """Levelled mel [B,F,MELS] -> autocorrelation, -1 to 1, of what each group of bands gains in power from frame to
    frame, at lags of 1 to `LAGS` frames of 20 ms: [B,FLUX_BANDS,LAGS].

    The spectral flux is that of Dixon, "Onset detection revisited" (DAFx 2006), over logarithms.
    """
    gain = mel.float().diff(dim=1).relu().unflatten(2, (FLUX_BANDS, -1)).mean(3).transpose(1, 2)
    gain = gain - gain.mean(2, keepdim=True)
    frames = gain.shape[2]
    power = torch.fft.rfft(gain, 2 * max(frames, LAGS + 1)).abs().square()
    products = torch.fft.irfft(power)[..., : LAGS + 1]
    return products[..., 1:] / products[..., :1].clamp_min(DEVIATION_FLOOR * frames)


class TimeBlock(nn.Module):
    """A dilated depthwise convolution over time, then a perceptron a frame, added to the input: [B,D,T] -> [B,D,T]."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 5, padding=2 * dilation, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).transpose(1, 2))
        return x + self.down(F.gelu(self.up(y))).transpose(1, 2)


class ChromaBlock(nn.Module):
    """A depthwise convolution around the circle of twelve pitch classes, one over time, then a perceptron, added to the
    input: [B,D,12,T] -> [B,D,12,T]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.around = nn.Parameter(torch.randn(dim, PITCH_CLASSES) / PITCH_CLASSES**0.5)
        self.time = nn.Conv2d(dim, dim, (1, 5), padding=(0, 2))
        self.norm = nn.GroupNorm(1, dim)
        self.up, self.down = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(PITCH_CLASSES)
        circle = self.around[:, (steps[:, None] - steps) % PITCH_CLASSES]
        y = self.time(torch.einsum("dqp,bdpt->bdqt", circle, x))
        return x + self.down(F.gelu(self.up(self.norm(y))))


class RhythmBranch(nn.Module):
    """Levelled mel [B,F,MELS] -> mean and deviation over time of features that see about 10 s: [B, 2 * rhythm_dim]."""

    def __init__(self, config: ListenerConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, (5, 3), (2, 1), (2, 1)),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 48, 3, 2, 1),
            nn.GELU(),
        )
        self.inlet = nn.Conv1d(48 * MELS // 8, config.rhythm_dim, 1)
        self.blocks = nn.Sequential(*(TimeBlock(config.rhythm_dim, 2**i) for i in range(config.rhythm_blocks)))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.stem(scaled(mel).transpose(1, 2)[:, None])
        return statistics(self.blocks(self.inlet(x.flatten(1, 2))))


class PitchBranch(nn.Module):
    """Levelled pitch spectra [B,T,PITCH_BINS] -> chroma features [B,D,12,T/2] and summary [B, 2 * D, 12]."""

    def __init__(self, config: ListenerConfig) -> None:
        super().__init__()
        dim, wide = config.pitch_dim, config.chroma_dim
        self.semitones = nn.Conv2d(1, dim, (9, 5), (BINS_PER_SEMITONE, 2), (3, 2))
        self.partials = nn.Conv2d(dim, dim, (49, 1), padding=(24, 0), groups=dim)
        up, down = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.mix = nn.Sequential(nn.GroupNorm(1, dim), up, nn.GELU(), down)
        self.fold = nn.Conv2d(dim * OCTAVES, wide, 1)
        self.blocks = nn.Sequential(*(ChromaBlock(wide) for _ in range(config.chroma_blocks)))

    def forward(self, pitch: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.semitones(scaled(pitch, PITCH_FLOOR).transpose(1, 2)[:, None]))
        x = F.gelu(x + self.mix(self.partials(x)))
        batch, dim, _, frames = x.shape
        x = x.reshape(batch, dim * OCTAVES, PITCH_CLASSES, frames)
        x = self.blocks(self.fold(x))
        return x, statistics(x.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class Judgement:
    """What the network says of a batch: `embedding` [B,D], `logits` head -> [B,classes], `keys` [B,modes,12] and
    `chroma` [B,D,12,T] before the summary, from which training reads the sounding notes."""

    embedding: Tensor
    logits: dict[str, Tensor]
    keys: Tensor
    chroma: Tensor


class ListenerNet(nn.Module):
    """Levelled spectra -> judgement."""

    def __init__(self, config: ListenerConfig, classes: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        wide = 2 * config.chroma_dim
        self.rhythm, self.pitch = RhythmBranch(config), PitchBranch(config)
        self.around = nn.Conv1d(wide, wide, PITCH_CLASSES)
        self.keys = nn.Conv1d(wide, classes["mode"], 1)
        self.period = nn.Linear(FLUX_BANDS * LAGS, config.period_dim)
        joined = 2 * config.rhythm_dim + config.period_dim + 2 * wide + classes["mode"]
        self.norm, self.dropout = nn.LayerNorm(joined), nn.Dropout(0.1)
        self.embed = nn.Linear(joined, config.embedding_dim)
        self.heads = nn.ModuleDict({name: nn.Linear(config.embedding_dim, n) for name, n in classes.items()})

    def forward(self, seen: Spectra) -> Judgement:
        chroma, summary = self.pitch(seen.pitch)
        tonal = F.gelu(self.around(torch.cat([summary, summary[..., :-1]], -1)))
        keys = self.keys(tonal).float()
        modes = keys.logsumexp(-1)
        period = F.gelu(self.period(periodicity(seen.mel).flatten(1)))
        parts = (self.rhythm(seen.mel), period.float(), tonal.float().mean(-1), tonal.float().amax(-1), modes)
        joined = torch.cat(parts, -1)
        embedding = self.embed(self.dropout(self.norm(joined))).float()
        return Judgement(embedding, {k: head(embedding).float() for k, head in self.heads.items()}, keys, chroma)
