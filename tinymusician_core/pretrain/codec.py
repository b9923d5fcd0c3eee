"""Train the spectral codec on the rendered pieces: magnitudes at four resolutions, a probe on the first codebook that
must tell the melody, and one on the second that must tell what accompanies it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician_core.codec.spectral import (
    Latents,
    SpectralCodec,
    SpectralConfig,
    SpectralDecoder,
    SpectralEncoder,
    nearest,
)
from tinymusician_core.evaluate.fidelity import MelScales
from tinymusician_core.pretrain.accompany import DRUMS, LEAD
from tinymusician_core.pretrain.arrange import Piece
from tinymusician_core.pretrain.pieces import read_audio, read_pieces
from tinymusician_core.pretrain.quantizer import MovingCodebook
from tinymusician_core.pretrain.render import SAMPLES_PER_FRAME
from tinymusician_core.training import Trainer, TrainSettings

CONFIG = SpectralConfig(harmony_dim=32)
LOW_PITCH, PITCHES, CHROMA = 36, 60, 12
CHORD = slice(3 * PITCHES, 3 * PITCHES + CHROMA)  # pitch classes of the accompaniment, in `score_targets`
MELODY, HARMONY = 2 * PITCHES, PITCHES + 3 * CHROMA
NOTE_WEIGHTS = (1.0, 2.0, 0.3, 1.0, 1.0, 1.0)  # of the parts of `score_targets`
FLOAT_STEPS = 250
STACKS = tuple(
    [f"encoder.{part}" for part in ("blocks", "gather", "mix")]
    + [f"decoder.{part}" for part in ("frame_block", "spread", "widen", "blocks")]
)  # what Muon trains


def score_targets(piece: Piece) -> np.ndarray:
    """uint8 [frames, MELODY + HARMONY]: the lead's sounding notes and its onsets; then of the accompaniment, drums left
    out, the sounding notes, their pitch classes, those that begin, and the pitch class of the lowest."""
    melody = np.zeros((piece.frames, 2, PITCHES), np.uint8)
    notes = np.zeros((piece.frames, 128), np.uint8)
    begins = np.zeros((piece.frames, CHROMA), np.uint8)
    for track in piece.tracks:
        for note in track.notes:
            row = note.pitch - LOW_PITCH
            if track.role == LEAD and 0 <= row < PITCHES:
                melody[note.start : note.end, 0, row] = 1
                melody[note.start, 1, row] = 1
            elif track.role not in (LEAD, DRUMS):
                notes[note.start : note.end, note.pitch] = 1
                begins[note.start, note.pitch % CHROMA] = 1
    octaves = np.pad(notes, ((0, 0), (0, -128 % CHROMA))).reshape(piece.frames, -1, CHROMA)
    lowest = np.eye(CHROMA, dtype=np.uint8)[notes.argmax(1) % CHROMA] * notes.any(1, keepdims=True)
    parts = [notes[:, LOW_PITCH : LOW_PITCH + PITCHES], octaves.max(1), begins, lowest]
    return np.concatenate([melody.reshape(piece.frames, -1), *parts], axis=1)


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
        self.harmony_book = MovingCodebook(self.decoder.harmony_codebook)
        self.sound_books = nn.ModuleList(MovingCodebook(b) for b in self.decoder.codebooks)
        self.probe = nn.Sequential(nn.Linear(config.score_dim, 192), nn.GELU(), nn.Linear(192, MELODY))
        self.harmony_probe = nn.Sequential(nn.Linear(config.harmony_dim, 192), nn.GELU(), nn.Linear(192, HARMONY))
        self.scales = MelScales(config.sample_rate_hz)
        sizes = torch.tensor([PITCHES, PITCHES, PITCHES, CHROMA, CHROMA, CHROMA])
        weights = torch.tensor(NOTE_WEIGHTS).repeat_interleave(sizes)
        self.register_buffer("note_weights", weights, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def start_codebooks(self, latents: Latents, rng: torch.Generator) -> None:
        """k-means for every codebook; those of the sound each on what the ones before it left over."""
        self.score_book.start(latents.score.flatten(0, 1), rng)
        self.harmony_book.start(latents.harmony.flatten(0, 1), rng)
        rest = latents.sound.flatten(0, 1)
        for book in self.sound_books:
            book.start(rest, rng)
            rest = rest - book.table.weight[nearest(rest, book.table.weight)]

    def quantize(self, latents: Latents, rng: torch.Generator | None) -> tuple[Latents, Tensor]:
        """Latents -> their quantized forms and the commitment loss."""
        score, _, commit = self.score_book(latents.score, rng)
        harmony, _, cost = self.harmony_book(latents.harmony, rng)
        total, rest, commit = torch.zeros_like(latents.sound), latents.sound, commit + cost
        for book in self.sound_books:
            rows, _, cost = book(rest, rng)
            total, rest, commit = total + rows, rest - rows, commit + cost
        return Latents(score, harmony, latents.sound + (total - latents.sound).detach()), commit

    def forward(self, audio: Tensor, target: Tensor, rng: torch.Generator | None) -> dict[str, Tensor]:
        """Audio [B,1,N], score targets [B,T,.] -> losses. The sound never steers the codes of score and harmony: they
        are detached for it."""
        latents = Latents(*(x.float() for x in self.encoder(audio)))
        commit = torch.zeros(())
        if self.steps >= FLOAT_STEPS:
            latents, commit = self.quantize(latents, rng if self.training else None)
        if self.training:
            self.steps += 1
        logits = torch.cat([self.probe(latents.score), self.harmony_probe(latents.harmony)], -1).float()
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        notes = (each * self.note_weights).sum(-1).mean()
        made = self.decoder(Latents(latents.score.detach(), latents.harmony.detach(), latents.sound))
        mel, convergence = self.scales(made, audio)
        return {
            "loss": mel + 0.5 * convergence + 0.1 * commit + 0.2 * notes,
            "mel": mel,
            "convergence": convergence,
            "notes": notes,
            "commit": commit,
            "f1": note_f1(logits[..., :PITCHES], target[..., :PITCHES]),
            "harmony_f1": note_f1(logits[..., CHORD], target[..., CHORD]),
        }


def note_f1(logits: Tensor, target: Tensor) -> Tensor:
    """F1 of sounding notes, frame by frame."""
    hit = ((logits > 0) & (target > 0.5)).sum()
    return 2 * hit / ((logits > 0).sum() + (target > 0.5).sum()).clamp_min(1)


def finished_codec(work: Path) -> Path:
    """The folder of the codec to ship: the polished one, where there is one."""
    polished = work / "polish" / "model"
    return polished if polished.is_dir() else work / "codec" / "model"


def carry_over(model: CodecTraining, folder: Path) -> None:
    """Start from the layers of the codec in `folder` that have the same names and sizes; codebooks start afresh."""
    earlier = SpectralCodec.from_folder(folder)
    for own, theirs in ((model.encoder, earlier.encoder), (model.decoder, earlier.decoder)):
        state = own.state_dict()
        known = theirs.state_dict()
        same = {n: v for n, v in known.items() if "codebook" not in n and n in state and v.shape == state[n].shape}
        own.load_state_dict(state | same)


def train_codec(
    work: Path, minutes: float, pieces: int = 1000, device: str = "cpu", start_from: Path | None = None
) -> None:
    """Train (or go on training) in `work/codec` and write the codec folder `work/codec/model`; a new codec may start
    from the layers of an earlier one's folder."""
    config = CONFIG
    torch.manual_seed(0)
    model = CodecTraining(config)
    if start_from is not None:
        carry_over(model, start_from)
    settings = TrainSettings(
        learning_rate=2e-3,
        minutes=minutes,
        warm_up_steps=100,
        clip_norm=2.0,
        betas=(0.8, 0.98),
        muon=STACKS,
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
                model.start_codebooks(Latents(*(x.float() for x in model.encoder(audio.to(device)))), rng)
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
