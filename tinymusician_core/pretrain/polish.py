"""Polish the codec's decoder on the rendered pieces, first by spectra alone, then with adversarial and feature losses;
encoder and codebooks stay, so every code keeps its meaning and no token has to be made anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain.codec import CodecData, MelScales
from tinymusician_core.pretrain.discriminator import (
    Discriminators,
    feature_distance,
    passing_for_real,
    telling_apart,
)
from tinymusician_core.training import Trainer, TrainSettings

FRAMES = 32
MEL_WEIGHT, FEATURE_WEIGHT = 10.0, 2.0
JUDGED_FROM = 0.5  # the share of the budget after which the discriminators take part


class PolishTraining(nn.Module):
    """The decoder of a trained codec, and what judges it.

    One loss trains both: the discriminators see the made sound detached, the decoder sees them frozen, so that no
    gradient of one reaches the other.
    """

    def __init__(self, codec: SpectralCodec) -> None:
        super().__init__()
        self.decoder, self.judges = codec.decoder, Discriminators()
        for table in self.decoder.modules():
            if isinstance(table, nn.Embedding):
                table.requires_grad_(False)
        self.scales = MelScales(codec.sample_rate_hz)

    def forward(self, audio: Tensor, codes: Tensor, judged: bool = True) -> dict[str, Tensor]:
        """Audio [B,1,N] and its codes [B,K,T] -> losses; those of spectra alone where nothing is `judged`."""
        made = self.decoder(self.decoder.look_up(codes)).float()
        mel, convergence = self.scales(made, audio)
        spectral = MEL_WEIGHT * (mel + 0.5 * convergence)
        if not judged:
            return {"loss": spectral, "mel": mel, "convergence": convergence}
        real = self.judges(audio)
        told = telling_apart(real, self.judges(made.detach()))
        seen = self.judges.detached(made)
        fooled, features = passing_for_real(seen), feature_distance(real, seen)
        return {
            "loss": spectral + fooled + FEATURE_WEIGHT * features + told,
            "mel": mel,
            "convergence": convergence,
            "features": features,
            "fooled": fooled,
            "judged": told,
        }


def polish_codec(work: Path, minutes: float, pieces: int = 1000, batch: int = 8, device: str = "cpu") -> None:
    """Train (or go on training) in `work/polish` from the codec in `work/codec/model`; writes `work/polish/model`."""
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    encoder = codec.encoder.to(device)
    torch.manual_seed(0)
    model = PolishTraining(codec.to(device))
    settings = TrainSettings(
        learning_rate=1e-3,
        minutes=minutes,
        warm_up_steps=200,
        weight_decay=0.0,
        betas=(0.8, 0.98),
        clip_norm=20.0,
        ema=0.998,
        log_every=25,
        validate_every_s=600,
    )
    trainer = Trainer(model, settings, work / "polish", device)
    trainer.resume()
    train, held_out = CodecData.read(work, "train", pieces), CodecData.read(work, "validation", 40)

    def loss(rng: torch.Generator, spent: float) -> dict[str, Tensor]:
        model.train()
        audio = train.batch(rng, batch, FRAMES)[0].to(device)
        return model(audio, codec.encode(audio).clone(), spent >= JUDGED_FROM)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        audio = held_out.batch(torch.Generator().manual_seed(1), 16, 4 * FRAMES)[0].to(device)
        found = model(audio, codec.encode(audio).clone())
        return {f"validation_{name}": float(value) for name, value in found.items()}

    trainer.run(
        loss,
        validate,
        lambda p: print(
            f"polish: step {p.step}, {p.fraction:.0%}, {p.eta_s:.0f} s to go, "
            + ", ".join(f"{k} {v:.3f}" for k, v in p.losses.items()),
            flush=True,
        ),
    )
    average = trainer.averaged_state()
    codec.decoder.load_state_dict(
        {name.removeprefix("decoder."): value for name, value in average.items() if name.startswith("decoder.")}
    )
    shutil.rmtree(work / "polish" / "model", ignore_errors=True)
    codec.save(work / "polish" / "model", encoder)
