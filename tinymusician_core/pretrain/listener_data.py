"""Rendered pieces -> the listener's windows: spectra kept on disk, cut at random, with what is true of each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinymusician_core.evaluate.listener import HEADS, WINDOW_S
from tinymusician_core.evaluate.spectra import (
    BINS_PER_SEMITONE,
    LOWEST_PITCH,
    MEL_FFT,
    MEL_HOP,
    MEL_LOW_HZ,
    MELS,
    PITCH_BINS,
    PITCH_FFT,
    PITCH_HOP,
    SAMPLE_RATE_HZ,
    SILENCE,
    Spectra,
    mel_bank,
    mel_frames,
    pitch_frames,
    spectra,
)
from tinymusician_core.pretrain.accompany import DRUMS
from tinymusician_core.pretrain.arrange import Piece
from tinymusician_core.pretrain.pieces import read_audio, read_pieces
from tinymusician_core.pretrain.render import SAMPLES_PER_FRAME
from tinymusician_core.tokens import SPLITS

MEL_PER_PITCH = PITCH_HOP // MEL_HOP
TRANSPOSITIONS = 5
EQUALIZER_DB = 4.0  # standard deviation of the gain at each of its knots, an octave apart
HELD_SHARE, HELD_AT_MOST = 0.5, 0.4  # of the windows, and of their mel bands
BATCH = 16


def spectra_folder(work: Path) -> Path:
    return work / "listener" / "spectra"


def write_spectra(work: Path, pieces: Sequence[Piece]) -> None:
    """Write `<id>.mel.npy` and `<id>.pitch.npy` (float16 log power, not levelled) of each piece."""
    torch.set_num_threads(1)
    for piece in pieces:
        seen = spectra(torch.from_numpy(read_audio(work, piece))[None])
        for name, part in (("pitch", seen.pitch), ("mel", seen.mel)):
            target = spectra_folder(work) / f"{piece.id}.{name}.npy"
            partial = target.with_name(f"{target.name}.part")
            with partial.open("wb") as file:
                np.save(file, part[0].half().numpy())
            os.replace(partial, target)


def build_spectra(work: Path, processes: int = 2, splits: Sequence[str] = SPLITS) -> None:
    """The spectra of the pieces of `work` whose audio is rendered; what is there already is kept."""
    folder = spectra_folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in read_pieces(work) if p.split in splits]
    missing = [p for p in chosen if not (folder / f"{p.id}.mel.npy").exists()]
    batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
    if not batches:
        return
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        waiting = [pool.apply_async(write_spectra, (work, batch)) for batch in batches]
        for done, job in enumerate(waiting, 1):
            job.get()
            if done % 10 == 0 or done == len(batches):
                to_go = (time.monotonic() - began) / done * (len(batches) - done)
                print(f"listener: spectra {done}/{len(batches)} batches, {to_go:.0f} s to go", flush=True)


def sounding(piece: Piece) -> np.ndarray:
    """float16 [frames, 12]: 1 where a note of that pitch class sounds in the codec frame, drums left out."""
    roll = np.zeros((piece.frames, 12), np.float16)
    for track in piece.tracks:
        if track.role != DRUMS:
            for note in track.notes:
                roll[note.start : note.end, note.pitch % 12] = 1
    return roll


@cache
def octaves() -> tuple[Tensor, Tensor]:
    """How many octaves above 40 Hz each mel band [MELS] and each bin of the pitch spectra [PITCH_BINS] is centred."""
    hertz = torch.linspace(0, SAMPLE_RATE_HZ / 2, MEL_FFT // 2 + 1)
    mel = (hertz @ mel_bank()) / mel_bank().sum(0)
    pitch = 440 * 2 ** ((LOWEST_PITCH - 69 + torch.arange(PITCH_BINS) / BINS_PER_SEMITONE) / 12)
    return torch.log2(mel / MEL_LOW_HZ), torch.log2(pitch / MEL_LOW_HZ)


@dataclass(frozen=True)
class Windows:
    """Windows of one length: spectra, class indices head -> int64 [B], tonics int64 [B], and how much of the time each
    pitch class sounds around every second pitch frame, float32 [B,12,T/2]."""

    seen: Spectra
    classes: dict[str, Tensor]
    tonic: Tensor
    chroma: Tensor

    def transposed(self, semitones: int) -> Windows:
        """Pitch spectra, tonics and chroma moved up by so many semitones (down where negative)."""
        bins = semitones * BINS_PER_SEMITONE
        pitch = self.seen.pitch.roll(bins, 2)
        edge = slice(0, bins) if bins >= 0 else slice(bins, None)
        pitch[:, :, edge] = float(np.log(SILENCE))
        tonic, chroma = (self.tonic + semitones) % 12, self.chroma.roll(semitones, 1)
        return Windows(Spectra(self.seen.mel, pitch), self.classes, tonic, chroma)

    def equalized(self, rng: torch.Generator) -> Windows:
        """The bands of each window turned up and down by a curve of its own, as a mixing desk does."""
        knots = int(octaves()[0].max()) + 2
        gains = torch.randn(len(self.tonic), knots, generator=rng) * EQUALIZER_DB * np.log(10) / 10

        def turned(log_power: Tensor, at: Tensor) -> Tensor:
            below = at.floor().clamp(0, knots - 2).long()
            curve = torch.lerp(gains[:, below], gains[:, below + 1], (at - below).clamp(0, 1))
            return log_power + curve[:, None]

        mel, pitch = (turned(x, at) for x, at in zip((self.seen.mel, self.seen.pitch), octaves(), strict=True))
        return replace(self, seen=Spectra(mel, pitch))

    def held(self, rng: torch.Generator) -> Windows:
        """In some of the windows a run of mel bands held at its mean over time, so that no band alone tells the time
        (SpecAugment, Park et al. 2019, arXiv 1904.08779, masks them to zero)."""
        batch = len(self.tonic)
        chosen, wide, at = torch.rand(3, batch, 1, generator=rng)
        wide = wide * HELD_AT_MOST * (chosen < HELD_SHARE) * MELS
        first = at * (MELS - wide)
        band = torch.arange(MELS)
        mask = (band >= first) & (band < first + wide)
        mel = self.seen.mel
        return replace(self, seen=Spectra(torch.where(mask[:, None], mel.mean(1, keepdim=True), mel), self.seen.pitch))


class ListenerData:
    """The pieces of a split whose spectra are on disk."""

    def __init__(self, work: Path, split: str) -> None:
        folder = spectra_folder(work)
        chosen = [p for p in read_pieces(work) if p.split == split and (folder / f"{p.id}.mel.npy").exists()]
        if not chosen:
            raise FileNotFoundError(f"{work} holds no rendered {split} pieces; run the audio stage first")
        self.folder, self.pieces = folder, chosen
        self.samples = np.array([p.frames * SAMPLES_PER_FRAME for p in chosen])
        self._sounding = [sounding(p) for p in chosen]
        self.classes = {
            name: np.array([classes.index(getattr(p.facts, name)) for p in chosen]) for name, classes in HEADS.items()
        }

    def shares(self, head: str) -> np.ndarray:
        """The share of the pieces that each class of a head has, float64 [classes]."""
        return np.bincount(self.classes[head], minlength=len(HEADS[head])) / len(self.pieces)

    def window(self, index: int, row: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mel, pitch and chroma of `samples` samples of a piece, from its pitch frame `row` on."""
        name = self.pieces[index].id
        mel = np.load(self.folder / f"{name}.mel.npy", mmap_mode="r")
        pitch = np.load(self.folder / f"{name}.pitch.npy", mmap_mode="r")
        first, frames = MEL_PER_PITCH * row, pitch_frames(samples)
        columns = (frames + 1) // 2
        step = 2 * PITCH_HOP // SAMPLES_PER_FRAME
        at = (row * PITCH_HOP + PITCH_FFT // 2) // SAMPLES_PER_FRAME + step * np.arange(columns)
        near = (at[:, None] + np.arange(-2, 3)).clip(0, self.pieces[index].frames - 1)
        chroma = self._sounding[index][near].mean(1, dtype=np.float32).T
        return mel[first : first + mel_frames(samples)], pitch[row : row + frames], chroma

    def gather(self, places: Sequence[tuple[int, int]], samples: int) -> Windows:
        """The windows at (piece, pitch frame)."""
        mel, pitch, chroma = (np.stack(x) for x in zip(*(self.window(i, r, samples) for i, r in places), strict=True))
        seen = Spectra(torch.from_numpy(mel).float(), torch.from_numpy(pitch).float())
        of = [i for i, _ in places]
        classes = {name: torch.from_numpy(values[of]) for name, values in self.classes.items()}
        tonic = torch.tensor([self.pieces[i].facts.tonic for i in of])
        return Windows(seen, classes, tonic, torch.from_numpy(chroma))

    def batch(self, rng: torch.Generator, size: int, seconds: float) -> Windows:
        """Random windows of random pieces that are long enough, all transposed by one random interval, each with its
        bands turned up and down, some of them held."""
        samples = round(seconds * SAMPLE_RATE_HZ)
        rows = (self.samples - samples) // PITCH_HOP + 1
        fit = np.flatnonzero(rows > 0)
        if not len(fit):
            raise ValueError(
                f"no piece is {seconds:g} s long; the longest has {self.samples.max() / SAMPLE_RATE_HZ:g} s"
            )
        chosen = fit[torch.randint(0, len(fit), (size,), generator=rng).numpy()]
        draws = torch.rand(size, generator=rng).numpy()
        windows = self.gather([(i, int(d * rows[i])) for i, d in zip(chosen, draws, strict=True)], samples)
        by = int(torch.randint(-TRANSPOSITIONS, TRANSPOSITIONS + 1, (), generator=rng))
        return windows.transposed(by).equalized(rng).held(rng)

    def places(self, seconds: float = WINDOW_S) -> list[tuple[int, int]]:
        """Every window that evaluation judges, as (piece, first pitch frame): one after another from the beginning."""
        samples = round(seconds * SAMPLE_RATE_HZ)
        return [(i, k * samples // PITCH_HOP) for i, n in enumerate(self.samples) for k in range(n // samples)]
