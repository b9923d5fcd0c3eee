"""A discriminator on complex spectrograms of several window lengths, and the losses that it gives.

Spectrogram discriminators as in EnCodec (Defossez et al. 2022, arXiv 2210.13438, section 3.4) and Vocos (Siuzdak 2023,
arXiv 2306.00814), narrow enough to train on a CPU: most of the way the stride halves the frequency axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOWS = (2048, 1024, 512)
CHANNELS = 16
SLOPE = 0.1


class SpectrogramDiscriminator(nn.Module):
    """Waves [B,1,N] -> how real every patch of their spectrogram looks [B,1,F,T], and the features on the way."""

    def __init__(self, n_fft: int, channels: int = CHANNELS) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        widths = (2, channels, channels, 2 * channels, 2 * channels)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, (9, 3), stride=(2, 1), padding=(4, 1)))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.verdict = nn.utils.parametrizations.weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The spectrum goes in as real and imaginary part, its size compressed to the power 0.5, so that quiet partials
        weigh."""
        spectrum = torch.stft(wave[:, 0].float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        size = (spectrum.real**2 + spectrum.imag**2 + 1e-8).sqrt()
        x = torch.stack([spectrum.real, spectrum.imag], dim=1) / size.sqrt()[:, None]
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.verdict(x), features


class Discriminators(nn.Module):
    """One `SpectrogramDiscriminator` a window length."""

    def __init__(self, windows: tuple[int, ...] = WINDOWS, channels: int = CHANNELS) -> None:
        super().__init__()
        self.each = nn.ModuleList(SpectrogramDiscriminator(n, channels) for n in windows)

    def forward(self, wave: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [one(wave) for one in self.each]

    def detached(self, wave: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """The same, with gradients to the wave alone and none to the discriminators."""
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (wave,))


def telling_apart(real: list[tuple[Tensor, list[Tensor]]], made: list[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """The discriminators' hinge loss: 0 where every real patch is above 1 and every made one below -1."""
    costs = [F.relu(1 - r).mean() + F.relu(1 + m).mean() for (r, _), (m, _) in zip(real, made, strict=True)]
    return torch.stack(costs).mean()


def passing_for_real(made: list[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """The decoder's adversarial loss: minus the mean verdict."""
    return torch.stack([-m.mean() for m, _ in made]).mean()


def feature_distance(real: list[tuple[Tensor, list[Tensor]]], made: list[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """Mean L1 between the features of real and made sound, each layer relative to its mean size in real sound."""
    costs = [
        (m - r.detach()).abs().mean() / r.detach().abs().mean().clamp_min(1e-4)
        for (_, reals), (_, mades) in zip(real, made, strict=True)
        for r, m in zip(reals, mades, strict=True)
    ]
    return torch.stack(costs).mean()
