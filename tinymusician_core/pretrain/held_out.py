"""The test split -> `assets/evaluation`: what variants are measured against.

A third of the test tunes gives the real windows, whose captions are the prompts of every evaluation; all others give
the reference that distances are taken to. So real music meets the reference as a variant's clips do: as music of other
tunes. Windows begin on a bar and do not overlap; each piece gives one before any gives a second. How steady music is
over half a minute is kept of longer windows, chosen in the same way from the same tunes.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from tinymusician_core.bundle import load_codec
from tinymusician_core.evaluate.embedders import ListenerEmbedder
from tinymusician_core.evaluate.fidelity import MEASURES, fidelity
from tinymusician_core.evaluate.held_out import FOLDER, ROUND_TRIP, SPLIT, STEADY, codec_identity, write_records
from tinymusician_core.evaluate.held_out import REAL as REAL_FILE
from tinymusician_core.evaluate.jury import Jury
from tinymusician_core.evaluate.limits import REFERENCE as LIMITS
from tinymusician_core.evaluate.listener import Listener
from tinymusician_core.evaluate.reference import REAL as REAL_AUDIO
from tinymusician_core.evaluate.reference import ROUND_TRIP as DECODED
from tinymusician_core.evaluate.steadiness import steadiness
from tinymusician_core.files import sha256_of, whole_file
from tinymusician_core.records import Waveform
from tinymusician_core.tokens import TokenDataset, write_tokens

SECONDS, STEADY_S, REAL, REFERENCE, REAL_SHARE = 10.0, 30.0, 200, 600, 1 / 3
FACTS = ("instrument", "style", "tempo", "mode", "bpm", "tonic", "texture")


@dataclass(frozen=True)
class Window:
    """A part of a piece: its record in the token dataset, and the first frame."""

    piece: int
    start: int


def windows_of(bars: list[int], frames: int, length: int) -> list[int]:
    """Where windows of `length` frames begin: on bars, one after the other, all within `frames`."""
    starts: list[int] = []
    for bar in bars:
        if bar + length <= frames and (not starts or bar >= starts[-1] + length):
            starts.append(bar)
    return starts


def choose(data: TokenDataset, length: int, seed: int = 0) -> tuple[list[Window], list[Window]]:
    """The real windows and those of the reference, of different tunes.

    Raises:
        ValueError: fewer than three tunes.
    """
    rng = random.Random(seed)
    tunes = sorted({_tune(record) for record in data.records})
    if len(tunes) < 3:
        raise ValueError(f"held-out music needs three tunes or more in the test split, got {len(tunes)}")
    rng.shuffle(tunes)
    real_tunes = set(tunes[: max(1, round(REAL_SHARE * len(tunes)))])
    rounds: list[tuple[int, float, Window]] = []
    for piece, record in enumerate(data.records):
        starts = windows_of(record["bars"], data.clip(piece).shape[1], length)
        rounds += [(turn, rng.random(), Window(piece, start)) for turn, start in enumerate(starts)]
    rounds.sort(key=lambda each: each[:2])
    parts: dict[bool, list[Window]] = {True: [], False: []}
    for _, _, window in rounds:
        parts[_tune(data.records[window.piece]) in real_tunes].append(window)
    return parts[True][:REAL], parts[False][:REFERENCE]


def _tune(record: dict) -> str:
    return record["id"].rpartition("-")[0]


class _Maker:
    """Windows as sound, as tokens, and before the judges."""

    def __init__(self, work: Path, assets: Path, seconds: float):
        self.data, self.audio = TokenDataset(work / "tokens", SPLIT), work / "audio"
        self.codec = load_codec(assets / "models" / "codec")
        listener = Listener.from_folder(assets / "listener")
        self.jury = Jury(listener, ListenerEmbedder(listener))
        self.per_frame = round(self.codec.sample_rate_hz / self.codec.frame_rate_hz)
        self.seconds, self.frames = seconds, round(seconds * self.codec.frame_rate_hz)

    def piece(self, index: int) -> np.ndarray:
        """The sound [N] of a whole piece."""
        path = self.audio / f"{self.data.records[index]['id']}.flac"
        sound, rate = soundfile.read(path, dtype="float32")
        if rate != self.codec.sample_rate_hz:
            raise ValueError(f"{path} has {rate} samples a second; the codec's {self.codec.sample_rate_hz} are needed")
        return sound

    def sound(self, window: Window) -> Waveform:
        """A window as it was rendered."""
        first = window.start * self.per_frame
        part = self.piece(window.piece)[first : first + self.frames * self.per_frame]
        return Waveform(part[None], self.codec.sample_rate_hz)

    def written(self, window: Window) -> torch.Tensor:
        """Its tokens [K,T] in the token dataset: the notes as they are written, as models are trained on them."""
        return self.data.clip(window.piece)[:, window.start : window.start + self.frames]

    def codes(self, window: Window) -> torch.Tensor:
        """Its tokens [K,T] as the codec hears them, encoded with all that stands around it."""
        whole = self.codec.encode(torch.from_numpy(self.piece(window.piece))[None, None])[0]
        return whole[:, window.start : window.start + self.frames]

    def decoded(self, codes: torch.Tensor) -> Waveform:
        """Tokens [K,T] as sound, cut to -1..1 as a pipeline cuts it."""
        return Waveform(self.codec.decode(codes[None])[0].numpy().clip(-1.0, 1.0), self.codec.sample_rate_hz)

    def record(self, window: Window) -> dict:
        """The record of a window in the token dataset: one caption, the facts."""
        piece = self.data.records[window.piece]
        caption = random.Random(f"{piece['id']}/{window.start}").choice(piece["captions"])
        facts = {name: piece["facts"][name] for name in FACTS}
        return {"id": f"{piece['id']}@{window.start}", "captions": [caption], "bars": [0], "facts": facts}


def build_held_out(work: Path, assets: Path, seconds: float = SECONDS, steady_s: float = STEADY_S) -> Path:
    """Write `assets/evaluation` from `work/tokens`, `work/audio` and the codec and the listener in `assets`.

    Args:
        work, assets: of the recipe.
        seconds: length of the windows that clips are compared with.
        steady_s: length of the windows whose steadiness is kept; 20 or more.

    Raises:
        ValueError: there are no test tokens, or of too few tunes.
        ModelError: the codec or the listener cannot be used.
    """
    maker = _Maker(work, assets, seconds)
    real, reference = choose(maker.data, maker.frames)
    with tempfile.TemporaryDirectory(dir=assets, prefix=".evaluation-") as name:
        folder = Path(name)
        _write_real(maker, real, folder)
        _write_reference(maker, reference, folder)
        write_steady(_Maker(work, assets, steady_s), folder)
        config = {
            "listener": maker.jury.listener.name,
            "codec": codec_identity(maker.codec),
            "decoder": sha256_of(assets / "models" / "codec" / "decoder.safetensors")[:16],
            "seconds": seconds,
            "fidelity": list(MEASURES),
        }
        with whole_file(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        target = assets / FOLDER
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in sorted(folder.iterdir()):
            shutil.copyfile(file, target / file.name)
    return target


def _write_real(maker: _Maker, windows: list[Window], folder: Path) -> None:
    """Tokens, captions and judgements of the real windows, as rendered and after the codec."""
    real, round_trip, codes, records = [], [], [], []
    for window in _told("real windows", windows):
        records.append(maker.record(window))
        codes.append(maker.written(window))
        sound, decoded = maker.sound(window), maker.decoded(maker.codes(window))
        prompt = records[-1]["captions"][0]
        real.append(maker.jury.judge(sound, prompt).as_record())
        cost = fidelity(decoded.audio, sound.audio, sound.sample_rate_hz)
        round_trip.append(maker.jury.judge(decoded, prompt).as_record() | cost)
    write_records(folder / REAL_FILE, real)
    write_records(folder / ROUND_TRIP, round_trip)
    write_tokens(folder, SPLIT, codes, records)


def _write_reference(maker: _Maker, windows: list[Window], folder: Path) -> None:
    from safetensors.numpy import save_file

    sounds = (maker.sound(window) for window in _told("reference windows", windows))
    heard = [maker.jury.embedder.embed(sound.audio, sound.sample_rate_hz) for sound in sounds]
    save_file({"embeddings": np.stack(heard).astype(np.float16)}, folder / "reference.safetensors")


def write_steady(maker: _Maker, folder: Path) -> None:
    """How steady the maker's windows are: those of the reference, and the real ones as rendered and after the codec."""
    real, reference = choose(maker.data, maker.frames)
    records: list[dict] = []

    def keep(window: Window, kind: str, sound: Waveform) -> None:
        record = {"id": maker.record(window)["id"], "kind": kind, "seconds": maker.seconds}
        records.append(record | steadiness(sound.audio, sound.sample_rate_hz).as_record())

    for window in _told("steady windows of the reference", reference):
        keep(window, LIMITS, maker.sound(window))
    for window in _told("steady real windows", real):
        keep(window, REAL_AUDIO, maker.sound(window))
        keep(window, DECODED, maker.decoded(maker.codes(window)))
    write_records(folder / STEADY, records)


def _told(what: str, windows: list[Window]) -> Iterator[Window]:
    """The windows, with a line now and then about how far they are."""
    began = time.monotonic()
    for done, window in enumerate(windows):
        if done and done % 50 == 0:
            left = (time.monotonic() - began) / done * (len(windows) - done)
            print(f"held-out: {done}/{len(windows)} {what}, {left:.0f} s to go", flush=True)
        yield window
