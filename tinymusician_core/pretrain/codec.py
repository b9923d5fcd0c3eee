"""Train the spectral codec on the rendered pieces: magnitudes at four resolutions, and a score probe on the
first codebook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralDecoder, SpectralEncoder, nearest
from tinymusician_core.evaluate.fidelity import MelScales
from tinymusician_core.pretrain.accompany import DRUMS, LEAD
from tinymusician_core.pretrain.arrange import Piece
from tinymusician_core.pretrain.pieces import read_audio, read_pieces
from tinymusician_core.pretrain.quantizer import MovingCodebook
from tinymusician_core.pretrain.render import SAMPLES_PER_FRAME
from tinymusician_core.training import Trainer, TrainSettings

LOW_PITCH, PITCHES, CHROMA = 36, 60, 12
FLOAT_STEPS = 250


def score_targets(piece: Piece) -> np.ndarray:
    """uint8 [frames, 2 * PITCHES + CHROMA]: the lead's sounding notes, its onsets, and the pitch classes of
    the accompaniment."""
    roll = np.zeros((piece.frames, 2 * PITCHES + CHROMA), np.uint8)
    for track in piece.tracks:
        for note in track.notes:
            if track.role == LEAD and 0 <= note.pitch - LOW_PITCH < PITCHES:
                roll[note.start : note.end, note.pitch - LOW_PITCH] = 1
                roll[note.start, PITCHES + note.pitch - LOW_PITCH] = 1
            elif track.role not in (LEAD, DRUMS):
                roll[note.start : note.end, 2 * PITCHES + note.pitch % 12] = 1
    return roll


@dataclass
class CodecData:
    """Audio int16 [N] and score targets uint8 [F, .] of many pieces end to end, with the first frame of each
    piece."""

    audio: np.ndarray
    score: np.ndarray
    starts: np.ndarray

    @classmethod
    def read(cls, work: Path, split: str, limit: int) -> CodecData:
        pieces = [p for p in read_pieces(work) if p.split == split][:limit]
        if not pieces:
            raise FileNotFoundError(f"{work} holds no rendered {split} pieces; run the audio stage first")
        audio = np.concatenate([(read_audio(work, p) * 32767).astype(np.int16) for p in pieces])
        starts = np.cumsum([0, *(p.frames for p in pieces)])
        return cls(audio, np.concatenate([score_targets(p) for p in pieces]), starts)

    def batch(self, rng: torch.Generator, size: int, frames: int) -> tuple[Tensor, Tensor]:
        """Audio [B,1,N] and score targets [B,T,.] of random windows that start on a frame."""
        at = torch.randint(0, len(self.score) - frames, (size,), generator=rng).tolist()
        audio = np.stack([self.audio[a * SAMPLES_PER_FRAME : (a + frames) * SAMPLES_PER_FRAME] for a in at])
        score = np.stack([self.score[a : a + frames] for a in at])
        return torch.from_numpy(audio).float()[:, None] / 32767, torch.from_numpy(score).float()


class CodecTraining(nn.Module):
    """Encoder, quantizers, decoder and probe, and the losses between them."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = SpectralEncoder(config), SpectralDecoder(config)
        self.score_book = MovingCodebook(self.decoder.score_codebook)
        self.sound_books = nn.ModuleList(MovingCodebook(b) for b in self.decoder.codebooks)
        self.probe = nn.Sequential(nn.Linear(config.score_dim, 192), nn.GELU(), nn.Linear(192, 2 * PITCHES + CHROMA))
        self.scales = MelScales(config.sample_rate_hz)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def start_codebooks(self, score: Tensor, latent: Tensor, rng: torch.Generator) -> None:
        """k-means for every codebook, each on what the ones before it left over."""
        self.score_book.start(score.flatten(0, 1), rng)
        rest = latent.flatten(0, 1)
        for book in self.sound_books:
            book.start(rest, rng)
            rest = rest - book.table.weight[nearest(rest, book.table.weight)]

    def quantize(self, score: Tensor, latent: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents -> their quantized forms and the commitment loss."""
        score, _, commit = self.score_book(score, rng)
        total, rest = torch.zeros_like(latent), latent
        for book in self.sound_books:
            rows, _, cost = book(rest, rng)
            total, rest, commit = total + rows, rest - rows, commit + cost
        return score, latent + (total - latent).detach(), commit

    def forward(self, audio: Tensor, target: Tensor, rng: torch.Generator | None) -> dict[str, Tensor]:
        """Audio [B,1,N], score targets [B,T,.] -> losses. The sound never steers the score codes: they are
        detached for it."""
        score, latent = (x.float() for x in self.encoder(audio))
        commit = torch.zeros(())
        if self.steps >= FLOAT_STEPS:
            score, latent, commit = self.quantize(score, latent, rng if self.training else None)
        if self.training:
            self.steps += 1
        logits = self.probe(score).float()
        weight = torch.cat([torch.ones(PITCHES), torch.full((PITCHES,), 2.0), torch.full((CHROMA,), 0.3)]).to(logits)
        notes = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum(-1).mean()
        made = self.decoder(score.detach(), latent)
        mel, convergence = self.scales(made, audio)
        return {
            "loss": mel + 0.5 * convergence + 0.1 * commit + 0.2 * notes,
            "mel": mel,
            "convergence": convergence,
            "notes": notes,
            "commit": commit,
            "f1": note_f1(logits[..., :PITCHES], target[..., :PITCHES]),
        }


def note_f1(logits: Tensor, target: Tensor) -> Tensor:
    """F1 of the lead's sounding notes, frame by frame."""
    hit = ((logits > 0) & (target > 0.5)).sum()
    return 2 * hit / ((logits > 0).sum() + (target > 0.5).sum()).clamp_min(1)


def finished_codec(work: Path) -> Path:
    """The folder of the codec to ship: the polished one, where there is one."""
    polished = work / "polish" / "model"
    return polished if polished.is_dir() else work / "codec" / "model"


def train_codec(work: Path, minutes: float, pieces: int = 600, device: str = "cpu") -> None:
    """Train (or go on training) in `work/codec` and write the codec folder `work/codec/model`."""
    config = SpectralConfig()
    torch.manual_seed(0)
    model = CodecTraining(config)
    settings = TrainSettings(
        learning_rate=2e-3,
        minutes=minutes,
        warm_up_steps=100,
        clip_norm=2.0,
        betas=(0.8, 0.98),
        log_every=25,
        validate_every_s=240,
    )
    trainer = Trainer(model, settings, work / "codec", device)
    trainer.resume()
    train, held_out = CodecData.read(work, "train", pieces), CodecData.read(work, "validation", 40)

    def loss(rng: torch.Generator, _: float) -> dict[str, Tensor]:
        model.train()
        warm = int(model.steps) == FLOAT_STEPS
        audio, target = train.batch(rng, 256 if warm else 20, 32)
        if warm:
            with torch.no_grad():
                score, latent = model.encoder(audio.to(device))
                model.start_codebooks(score.float(), latent.float(), rng)
            audio, target = audio[:20], target[:20]
        return model(audio.to(device), target.to(device), rng)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        audio, target = held_out.batch(torch.Generator().manual_seed(1), 32, 100)
        return {f"validation_{k}": float(v) for k, v in model(audio.to(device), target.to(device), None).items()}

    trainer.run(
        loss,
        validate,
        lambda p: print(
            f"codec: step {p.step}, {p.fraction:.0%}, {p.eta_s:.0f} s to go, "
            + ", ".join(f"{k} {v:.3f}" for k, v in p.losses.items()),
            flush=True,
        ),
    )
    codec = SpectralCodec(config)
    codec.decoder = model.decoder
    codec.save(work / "codec" / "model", model.encoder)
