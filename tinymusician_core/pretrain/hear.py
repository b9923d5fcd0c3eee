"""Train the codec's ear for notes alone, on many more pieces than the whole codec can be trained on: what the rest of
the encoder makes of a piece is computed once and kept. Codebooks and everything else stay, so every code keeps its
meaning and every sound its codes."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician_core.codec.spectral import Latents, SpectralCodec
from tinymusician_core.files import whole_file
from tinymusician_core.pretrain.arrange import Piece
from tinymusician_core.pretrain.codec import CONFIG, NoteBooks, finished_codec
from tinymusician_core.pretrain.notes import vocabulary
from tinymusician_core.pretrain.pieces import read_audio, read_pieces, read_plan
from tinymusician_core.training import Trainer, TrainSettings

FRAMES = 100  # of a window
# The parts of the encoder that nothing but the notes goes through.
EAR = ("note_blocks", "note_norm", "to_score", "to_harmony", "to_players")
MUON = ("encoder.note_blocks",)
UNSEEN_SHARE = 0.3  # of what is seen of a frame: left out in training, so that no single trait gives the players away
EVERY = 100


def is_ear(name: str) -> bool:
    """Whether the encoder's parameter of this name belongs to its ear."""
    return name.split(".")[0] in EAR


@dataclass
class SeenPieces:
    """What the encoder sees of many pieces, float16 [F,D] and end to end, their note codes int16 [NOTES,F], and the
    frame that each begins at, with the end of the last."""

    frames: np.ndarray
    notes: np.ndarray
    starts: np.ndarray

    @classmethod
    def read(cls, work: Path, codec: SpectralCodec, split: str, limit: int, device: str) -> SeenPieces:
        """The first `limit` rendered pieces of a split; what is seen of each is kept in `work/hear`.

        Raises:
            FileNotFoundError: none has been rendered.
        """
        known = vocabulary(work, read_plan(work), CONFIG.codebook_size)
        pieces = [p for p in read_pieces(work) if p.split == split][:limit]
        if not pieces:
            raise FileNotFoundError(f"{work} holds no rendered {split} pieces; run the audio stage first")
        folder = work / "hear" / f"seen-{eye_of(codec)}"
        see(work, codec, pieces, folder, device)
        frames = np.concatenate([np.load(folder / f"{p.id}.npy") for p in pieces])
        notes = np.concatenate([known.codes(p) for p in pieces], axis=1).astype(np.int16)
        return cls(frames, notes, np.cumsum([0, *(p.frames for p in pieces)]))

    def batch(self, rng: torch.Generator, size: int, frames: int) -> tuple[Tensor, Tensor]:
        """Windows [B,T,D] and their note codes int64 [B,NOTES,T], each of one piece: the longer a piece, the likelier.
        Where a piece is shorter than a window, that begins with the end of the piece before."""
        at = torch.randint(0, self.starts[-1], (size,), generator=rng).numpy()
        ends = self.starts[np.searchsorted(self.starts, at, side="right")]
        at = np.maximum(np.minimum(at, ends - frames), 0)
        seen = np.stack([self.frames[a : a + frames] for a in at])
        notes = np.stack([self.notes[:, a : a + frames] for a in at])
        return torch.from_numpy(seen).float(), torch.from_numpy(notes).long()


def eye_of(codec: SpectralCodec) -> str:
    """8 hexadecimal digits that change when the encoder sees other frames: a hash of all of it but its ear."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.encoder.state_dict().items()):
        if not is_ear(name):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def see(work: Path, codec: SpectralCodec, pieces: Sequence[Piece], folder: Path, device: str) -> None:
    """Write what the encoder sees of each piece, float16 [T,D], into `folder`, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in pieces if not (folder / f"{p.id}.npy").exists()]
    began = time.monotonic()
    for done, piece in enumerate(missing, 1):
        audio = torch.from_numpy(read_audio(work, piece))[None, None].to(device)
        with whole_file(folder / f"{piece.id}.npy") as partial:
            np.save(partial, codec.encoder.frames(audio)[0].cpu().numpy().astype(np.float16))
        if done % EVERY == 0:
            left_s = (time.monotonic() - began) / done * (len(missing) - done)
            print(f"hear: {done}/{len(missing)} pieces seen, {left_s:.0f} s to go", flush=True)


class EarTraining(nn.Module):
    """The encoder of a trained codec, of which the ear alone learns, and the codebooks that it is to hear."""

    def __init__(self, codec: SpectralCodec) -> None:
        super().__init__()
        self.encoder, self.books = codec.encoder, NoteBooks(codec.decoder)
        self.requires_grad_(False)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(is_ear(name))

    def forward(self, seen: Tensor, notes: Tensor) -> dict[str, Tensor]:
        """What is seen of frames [B,T,D] and their notes as written [B,NOTES,T] -> of each book what it loses (nats)
        and the share of frames that it hears right, and the `loss` of all."""
        if self.training:
            seen = F.dropout(seen, UNSEEN_SHARE)
        heard = [x.float() for x in self.encoder.notes(seen)]
        _, losses = self.books(Latents(*heard, sound=None), notes)
        return {"loss": sum(losses[name] for name in self.books.names), **losses}


def train_ear(work: Path, minutes: float, pieces: int = 3500, batch: int = 32, device: str = "cpu") -> None:
    """Train (or go on training) in `work/hear` the ear of the codec as it was polished; writes `work/hear/model`."""
    codec = SpectralCodec.from_folder(finished_codec(work, ("codec", "polish")))
    codec.encoder.to(device)
    torch.manual_seed(0)
    train = SeenPieces.read(work, codec, "train", pieces, device)
    held_out = SeenPieces.read(work, codec, "validation", pieces, device)
    model = EarTraining(codec.to(device))
    settings = TrainSettings(
        learning_rate=1e-3,
        minutes=minutes,
        warm_up_steps=100,
        weight_decay=0.2,
        betas=(0.9, 0.98),
        muon=MUON,
        ema=0.998,
        log_every=100,
        validate_every_s=120,
    )
    trainer = Trainer(model, settings, work / "hear", device)
    trainer.resume()

    def loss(rng: torch.Generator, _: float) -> dict[str, Tensor]:
        model.train()
        return model(*(x.to(device) for x in train.batch(rng, batch, FRAMES)))

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        windows = held_out.batch(torch.Generator().manual_seed(1), 256, FRAMES)
        return {f"validation_{k}": float(v) for k, v in model(*(x.to(device) for x in windows)).items()}

    trainer.run(
        loss,
        validate,
        lambda progress: print(f"hear: {progress}", flush=True),
    )
    average = trainer.averaged_state()
    codec.encoder.load_state_dict({k: average[f"encoder.{k}"] for k in codec.encoder.state_dict()})
    shutil.rmtree(work / "hear" / "model", ignore_errors=True)
    codec.save(work / "hear" / "model", codec.encoder)
