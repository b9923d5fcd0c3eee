"""Polish the codec's decoder on the rendered pieces, first by spectra alone, then with adversarial and feature losses.
Codebooks and encoder stay, so every code keeps its meaning and no token has to be made anew."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain.codec import STACKS, CodecData, SoundDistance, as_told
from tinymusician_core.pretrain.discriminator import (
    Discriminators,
    feature_distance,
    passing_for_real,
    telling_apart,
)
from tinymusician_core.pretrain.notes import NOTES
from tinymusician_core.training import Trainer, TrainSettings

FRAMES = 32
SOUND_WEIGHT, FEATURE_WEIGHT = 10.0, 2.0
JUDGED_FROM = 0.2  # the share of the budget after which the discriminators take part
HEEDED_AFTER = 0.05  # another share, in which what they say comes to count: at first they know nothing
OSCILLATORS = 216  # six octaves from 55 Hz
ALONE_SHARE = 0.5  # of the windows: where the oscillators reach they are all that sounds, and learn to hold notes
MUON = tuple(stack for stack in STACKS if stack.startswith("decoder."))


class PolishTraining(nn.Module):
    """The decoder of a trained codec, and what judges it.

    One loss trains all: the discriminators see the made sound detached, the decoder sees them frozen, so that no
    gradient of one reaches the other.
    """

    def __init__(self, codec: SpectralCodec) -> None:
        super().__init__()
        self.decoder, self.judges = codec.decoder, Discriminators()
        for table in self.decoder.modules():
            if isinstance(table, nn.Embedding):
                table.requires_grad_(False)
        self.distance = SoundDistance(codec.sample_rate_hz)

    def forward(
        self, audio: Tensor, codes: Tensor, heed: float | None = 1.0, alone: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Audio [B,1,N] and its codes [B,K,T] -> losses, of spectra alone where there is no `heed`: how much what the
        discriminators say counts, 0 to 1. In some windows the oscillators are left `alone` (bool [B])."""
        made = self.decoder(self.decoder.look_up(codes), alone).float()
        losses = self.distance(made, audio)
        losses["loss"] = SOUND_WEIGHT * losses["sound"]
        if heed is not None:
            real = self.judges(audio)
            losses["judged"] = telling_apart(real, self.judges(made.detach()))
            seen = self.judges.detached(made)
            losses["fooled"], losses["features"] = passing_for_real(seen), feature_distance(real, seen)
            said = losses["fooled"] + FEATURE_WEIGHT * losses["features"]
            losses["loss"] = losses["loss"] + losses["judged"] + heed * said
        return losses


def to_polish(folder: Path) -> SpectralCodec:
    """The codec in `folder`; one without oscillators gets them, quiet at first."""
    codec = SpectralCodec.from_folder(folder)
    if codec.config.oscillators:
        return codec
    richer = SpectralCodec(replace(codec.config, oscillators=OSCILLATORS), codec.encoder_file)
    richer.decoder.load_state_dict(richer.decoder.state_dict() | codec.decoder.state_dict())
    return richer


def heed_at(spent: float, judged_from: float = JUDGED_FROM) -> float | None:
    """How much the discriminators count when a share of the budget is spent; None while they take no part."""
    if spent < judged_from:
        return None
    return min(1.0, (spent - judged_from) / HEEDED_AFTER)


def polish_codec(
    work: Path,
    minutes: float,
    learning_rate: float = 1e-3,
    pieces: int = 1000,
    judged_from: float = JUDGED_FROM,
    batch: int = 8,
    device: str = "cpu",
) -> None:
    """Train (or go on training) in `work/polish` from the codec in `work/codec/model`, on so many pieces; writes
    `work/polish/model`. The discriminators take part from a share of the budget on, with 1.0 never."""
    codec = to_polish(work / "codec" / "model")
    codec.encoder.to(device)
    torch.manual_seed(0)
    model = PolishTraining(codec.to(device))
    settings = TrainSettings(
        learning_rate=learning_rate,
        minutes=minutes,
        warm_up_steps=100,
        weight_decay=0.0,
        betas=(0.8, 0.98),
        muon=MUON,
        steady=("judges",),
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
        audio, notes = (x.to(device) for x in train.batch(rng, batch, FRAMES))
        codes = codec.encode(audio).clone()
        codes[:, :NOTES] = as_told(codes[:, :NOTES], notes, rng)
        alone = (torch.rand(batch, generator=rng) < ALONE_SHARE).to(device)
        return model(audio, codes, heed_at(spent, judged_from), alone)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        audio = held_out.batch(torch.Generator().manual_seed(1), 16, 4 * FRAMES)[0].to(device)
        found = model(audio, codec.encode(audio).clone())
        return {f"validation_{name}": float(value) for name, value in found.items()}

    trainer.run(
        loss,
        validate,
        lambda progress: print(f"polish: {progress}", flush=True),
    )
    average = trainer.averaged_state()
    codec.decoder.load_state_dict({name: average[f"decoder.{name}"] for name in codec.decoder.state_dict()})
    shutil.rmtree(work / "polish" / "model", ignore_errors=True)
    codec.save(work / "polish" / "model", codec.encoder)
