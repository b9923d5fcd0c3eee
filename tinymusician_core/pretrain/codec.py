"""Train the spectral codec on the rendered pieces: magnitudes at four resolutions for the sound; the codes of the first
three codebooks are given (`notes`), and the encoder must hear them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician_core.codec.pitch import PitchSpectrum
from tinymusician_core.codec.spectral import (
    Latents,
    SpectralCodec,
    SpectralConfig,
    SpectralDecoder,
    SpectralEncoder,
    count_ages,
    nearest,
)
from tinymusician_core.evaluate.fidelity import SCALES, MelScales
from tinymusician_core.pretrain.notes import AGES, PLAYERS, Companies, melody_groups, vocabulary
from tinymusician_core.pretrain.pieces import read_audio, read_pieces, read_plan
from tinymusician_core.pretrain.quantizer import MovingCodebook
from tinymusician_core.pretrain.render import SAMPLES_PER_FRAME
from tinymusician_core.training import Trainer, TrainSettings

CONFIG = SpectralConfig(harmony_dim=32, note_blocks=2, note_ages=AGES, players_dim=32)
FLOAT_STEPS = 250
NOTE_SPREAD = 0.5  # of the entries of melody and harmony, at the start
NOTES_WEIGHT, COMMIT_WEIGHT = 0.2, 0.1
CONVERGENCE_WEIGHT, PITCH_WEIGHT, ENERGY_WEIGHT = 0.5, 2.0, 1.0
TILE_SCALES, TILE_SAMPLES, TILE_BANDS, TILE_FLOOR = (512, 2048), 2048, 4, 1e-8
PITCH_FLOOR = -1.5  # log magnitude, 60 dB below a partial of amplitude 0.1: what is softer does not count
TOLD_SHARE = 0.5  # of the windows: the decoder gets the notes as they are written, else as the encoder hears them
STACKS = tuple(
    [f"encoder.{part}" for part in ("blocks", "gather", "mix", "note_blocks")]
    + [f"decoder.{part}" for part in ("frame_block", "spread", "widen", "blocks")]
)  # what Muon trains


@dataclass
class CodecData:
    """Audio int16 [N] and note codes int16 [NOTES,F] of many pieces end to end, with the first frame of each piece."""

    audio: np.ndarray
    notes: np.ndarray
    starts: np.ndarray

    @classmethod
    def read(cls, work: Path, split: str, limit: int) -> CodecData:
        plan = read_pieces(work)
        known = vocabulary(work, read_plan(work), CONFIG.codebook_size)
        pieces = [p for p in plan if p.split == split][:limit]
        if not pieces:
            raise FileNotFoundError(f"{work} holds no rendered {split} pieces; run the audio stage first")
        audio = np.concatenate([(read_audio(work, p) * 32767).astype(np.int16) for p in pieces])
        starts = np.cumsum([0, *(p.frames for p in pieces)])
        notes = np.concatenate([known.codes(p) for p in pieces], axis=1)
        return cls(audio, notes.astype(np.int16), starts)

    def batch(self, rng: torch.Generator, size: int, frames: int) -> tuple[Tensor, Tensor]:
        """Audio [B,1,N] and note codes int64 [B,NOTES,T] of random windows that start on a frame."""
        at = torch.randint(0, self.notes.shape[1] - frames, (size,), generator=rng).tolist()
        audio = np.stack([self.audio[a * SAMPLES_PER_FRAME : (a + frames) * SAMPLES_PER_FRAME] for a in at])
        notes = np.stack([self.notes[:, a : a + frames] for a in at])
        return torch.from_numpy(audio).float()[:, None] / 32767, torch.from_numpy(notes).long()


class NoteBook(nn.Module):
    """A codebook whose entries have a meaning: an encoder's vectors must lie nearer to the right one than to others.

    Entries of one of `groups` sound alike, and any of them is right; without groups each is one of its own.
    """

    def __init__(self, table: nn.Embedding, groups: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        groups = torch.arange(table.num_embeddings) if groups is None else groups
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("members", groups == torch.arange(int(groups.max()) + 1)[:, None], persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [B,T,D] and codes int64 [B,T] -> codes as heard [B,T], cross-entropy of the group (nats), and the
        share of frames whose group is heard right."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for differences of distances
            distance = torch.cdist(x.flatten(0, 1), self.table.weight).square().unflatten(0, target.shape)
        heard, right = distance.argmin(-1), self.groups[target]
        nearness = (-distance).log_softmax(-1)
        loss = -nearness.masked_fill(~self.members[right], -torch.inf).logsumexp(-1).mean()
        return heard, loss, (self.groups[heard] == right).float().mean()


class NoteBooks(nn.ModuleList):
    """The books of a decoder's melody, harmony and players."""

    names = ("melody", "harmony", "players")

    def __init__(self, decoder: SpectralDecoder) -> None:
        groups = melody_groups(decoder.config.codebook_size)
        apart = (decoder.harmony_codebook, decoder.players_codebook)
        super().__init__([NoteBook(decoder.score_codebook, groups), *map(NoteBook, apart)])

    def forward(self, latents: Latents, notes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What an encoder makes of the notes, and their codes [B,NOTES,T] -> codes as heard, with ages counted, and of
        each book what it loses (nats) and the share of frames that it hears right. Who plays is told by all frames
        together."""
        players = latents.players.mean(1, keepdim=True).expand_as(latents.players)
        heard, losses = [], {}
        seen = (latents.score, latents.harmony, players)
        for name, book, x, target in zip(self.names, self, seen, notes.unbind(1), strict=True):
            codes, losses[name], losses[f"{name}_right"] = book(x, target)
            heard.append(codes)
        heard[0] = count_ages(heard[0], AGES)
        return torch.stack(heard, dim=1), losses


def as_told(heard: Tensor, notes: Tensor, rng: torch.Generator) -> Tensor:
    """Note codes [B,NOTES,T] for the decoder to learn from, of those heard and those written: in `TOLD_SHARE` of the
    windows as they are written, else as heard. Who plays is always told: a window of a second does not say it as a
    whole piece does, and the decoder would learn not to heed it."""
    told = torch.rand(len(notes), generator=rng).to(notes.device) < TOLD_SHARE
    given = torch.where(told[:, None, None], notes, heard)
    given[:, PLAYERS] = notes[:, PLAYERS]
    return given


class SoundDistance(nn.Module):
    """How far made sound is from real sound: mel spectra at several window lengths, a spectrum by pitch, whose window
    is long enough to tell the notes of a low chord apart, and how much energy lies in each tile of time and frequency:
    where details cannot be known, the likeliest of them are softer than the sound is."""

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        self.mel = MelScales(sample_rate_hz)
        self.pitches = PitchSpectrum(sample_rate_hz, CONFIG.pitch_fft, SAMPLES_PER_FRAME)

    def forward(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Waves [B,1,N] -> `sound`, and the parts that it is made of. No gradient reaches what is real."""
        with torch.no_grad():
            power_there, pitch_there = self._seen(real)
        power, pitch = self._seen(made)
        mel, convergence = self.mel.compare(power, power_there)
        pitch = (pitch - pitch_there).abs().mean()
        tiles = zip(self._tiles(power), self._tiles(power_there), strict=True)
        energy = torch.stack([(a - b).abs().mean() for a, b in tiles]).mean()
        sound = mel + CONVERGENCE_WEIGHT * convergence + PITCH_WEIGHT * pitch + ENERGY_WEIGHT * energy
        return {"sound": sound, "mel": mel, "convergence": convergence, "pitch": pitch, "energy": energy}

    def _seen(self, wave: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.mel.power(wave), self.pitches(wave[:, 0].float()).clamp_min(PITCH_FLOOR)

    def _tiles(self, power: list[Tensor]) -> list[Tensor]:
        """Half the log power in tiles of `TILE_SAMPLES` by `TILE_BANDS`, which overlap by half, at `TILE_SCALES`."""
        found = []
        for (n_fft, _), spectrum in zip(SCALES, power, strict=True):
            if n_fft in TILE_SCALES:
                columns = TILE_SAMPLES * 4 // n_fft
                size, step = (columns, TILE_BANDS), (columns // 2, TILE_BANDS // 2)
                tiles = F.avg_pool2d((spectrum @ self.mel.bank(n_fft))[:, None], size, step)
                found.append(tiles.clamp_min(TILE_FLOOR).log() / 2)
        return found


class CodecTraining(nn.Module):
    """Encoder, quantizers and decoder, and the losses between them."""

    def __init__(self, config: SpectralConfig, players: Companies) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = SpectralEncoder(config), SpectralDecoder(config)
        for table in (self.decoder.score_codebook, self.decoder.harmony_codebook):
            nn.init.normal_(table.weight, std=NOTE_SPREAD)
        vectors = players.vectors(config.codebook_size, config.players_dim, NOTE_SPREAD)
        self.decoder.players_codebook = nn.Embedding.from_pretrained(vectors)
        self.books = NoteBooks(self.decoder)
        self.sound_books = nn.ModuleList(MovingCodebook(b) for b in self.decoder.codebooks)
        self.distance = SoundDistance(config.sample_rate_hz)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def start_codebooks(self, sound: Tensor, rng: torch.Generator) -> None:
        """k-means for the codebooks of the sound [B,T,D], each on what the ones before it left over."""
        rest = sound.flatten(0, 1)
        for book in self.sound_books:
            book.start(rest, rng)
            rest = rest - book.table.weight[nearest(rest, book.table.weight)]

    def quantize(self, sound: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The sound's latents [B,T,D] -> their quantized form and the commitment loss."""
        total, rest, commit = torch.zeros_like(sound), sound, torch.zeros(())
        for book in self.sound_books:
            rows, _, cost = book(rest, rng)
            total, rest, commit = total + rows, rest - rows, commit + cost
        return sound + (total - sound).detach(), commit

    def forward(self, audio: Tensor, notes: Tensor, rng: torch.Generator | None) -> dict[str, Tensor]:
        """Audio [B,1,N] and note codes [B,NOTES,T] -> losses; without a generator the decoder gets what the encoder
        hears.

        How well the sound comes out never steers what the encoder hears of the notes.
        """
        latents = Latents(*(x.float() for x in self.encoder(audio)))
        sound, commit = latents.sound, torch.zeros(())
        if self.steps >= FLOAT_STEPS:
            sound, commit = self.quantize(sound, rng if self.training else None)
        if self.training:
            self.steps += 1
        heard, losses = self.books(latents, notes)
        if rng is not None:
            heard = as_told(heard, notes, rng)
        made = self.decoder(
            Latents(*(book.table(c) for book, c in zip(self.books, heard.unbind(1), strict=True)), sound)
        )
        losses |= self.distance(made, audio)
        noted = sum(losses[name] for name in self.books.names)
        loss = losses["sound"] + COMMIT_WEIGHT * commit + NOTES_WEIGHT * noted
        return {"loss": loss, "commit": commit, **losses}


def finished_codec(work: Path, stages: Sequence[str] = ("codec", "polish", "hear")) -> Path:
    """The folder of the codec as the last of these stages left it, each of which goes on from the one before: of all
    of them, the one to ship."""
    written = [work / stage / "model" for stage in stages if (work / stage / "model").is_dir()]
    return written[-1] if written else work / stages[0] / "model"


def carry_over(model: CodecTraining, folder: Path) -> None:
    """Start from the layers of the codec in `folder` that have the same names and sizes. Codebooks of the sound start
    afresh; those of melody and harmony are kept where they mean the same: in a codec with ages, of the same plan."""
    earlier = SpectralCodec.from_folder(folder)
    for own, theirs in ((model.encoder, earlier.encoder), (model.decoder, earlier.decoder)):
        state = own.state_dict()
        fresh = ("codebooks.", "players_codebook.") if earlier.config.note_ages else ("codebook",)
        known = {n: v for n, v in theirs.state_dict().items() if not any(part in n for part in fresh)}
        same = {n: v for n, v in known.items() if n in state and v.shape == state[n].shape}
        own.load_state_dict(state | same)


def train_codec(
    work: Path, minutes: float, pieces: int = 1000, device: str = "cpu", start_from: Path | None = None
) -> None:
    """Train (or go on training) in `work/codec` and write the codec folder `work/codec/model`; a new codec may start
    from the layers of an earlier one's folder."""
    config = CONFIG
    torch.manual_seed(0)
    model = CodecTraining(config, vocabulary(work, read_plan(work), config.codebook_size).players)
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
        audio, notes = train.batch(rng, 256 if warm else 20, 32)
        if warm:
            with torch.no_grad():
                model.start_codebooks(model.encoder(audio.to(device)).sound.float(), rng)
            audio, notes = audio[:20], notes[:20]
        return model(audio.to(device), notes.to(device), rng)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        model.eval()
        audio, notes = held_out.batch(torch.Generator().manual_seed(1), 32, 100)
        return {f"validation_{k}": float(v) for k, v in model(audio.to(device), notes.to(device), None).items()}

    trainer.run(
        loss,
        validate,
        lambda progress: print(f"codec: {progress}", flush=True),
    )
    codec = SpectralCodec(config)
    codec.decoder = model.decoder
    codec.save(work / "codec" / "model", model.encoder)
