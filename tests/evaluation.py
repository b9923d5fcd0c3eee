"""A tiny held-out split and a tiny listener with random weights, laid out as the recipe leaves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import scramble

from tinymusician_core.codec.spectral import SpectralCodec, SpectralEncoder
from tinymusician_core.evaluate import run, second_opinion
from tinymusician_core.evaluate.listener import HEADS, save_listener
from tinymusician_core.evaluate.listener_net import ListenerConfig, ListenerNet
from tinymusician_core.pretrain.held_out import build_held_out
from tinymusician_core.tokens import write_tokens

RATE_HZ, FRAME = 32000, 1280
TUNES, FRAMES, BAR = 24, 110, 25
INSTRUMENTS, TEMPI, MODES = ("piano", "flute", "violin", "guitar"), ("slow", "fast"), ("major", "minor")


def save_tiny_listener(folder: Path) -> None:
    """A listener that hears something or other, the same in the same sound."""
    sizes = ListenerConfig(rhythm_dim=16, rhythm_blocks=2, pitch_dim=4, chroma_dim=8, chroma_blocks=1, embedding_dim=8)
    net = scramble(ListenerNet(sizes, {head: len(classes) for head, classes in HEADS.items()}), seed=21)
    accuracy = {head: {"real": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}} for head in HEADS}
    save_listener(folder, net, accuracy)


def save_tiny_work(work: Path, codec: SpectralCodec, tunes: int = TUNES) -> None:
    """Test tunes of a few seconds, as sound and as tokens with captions."""
    rng = np.random.default_rng(5)
    (work / "audio").mkdir(parents=True)
    codes, records = [], []
    for number in range(tunes):
        instrument, tempo, mode = (names[number % len(names)] for names in (INSTRUMENTS, TEMPI, MODES))
        facts = {"instrument": instrument, "style": "waltz", "tempo": tempo, "mode": mode}
        facts |= {"bpm": 90, "tonic": number % 12, "texture": "solo"}
        name = f"tune{number:02}-0"
        sound = _tones(rng, FRAMES * FRAME)
        soundfile.write(work / "audio" / f"{name}.flac", sound, RATE_HZ)
        codes.append(codec.encode(torch.from_numpy(sound)[None, None])[0])
        caption = f"a {tempo} {instrument} waltz in g {mode}"
        bars = list(range(0, FRAMES, BAR))
        records.append({"id": name, "captions": [caption, caption.upper()], "bars": bars, "facts": facts})
    write_tokens(work / "tokens", "test", codes, records)


def _tones(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Eight tones a second, with three partials each."""
    time = np.arange(samples) / RATE_HZ
    pitch = 220 * 2 ** (rng.integers(0, 24, samples // 4000 + 1).repeat(4000)[:samples] / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    sound = sum(np.sin(part * phase) / part for part in (1, 2, 3)) * (0.5 + 0.5 * np.cos(2 * np.pi * 8 * time))
    return (0.2 * sound).astype(np.float32)


def make_assets(folder: Path, models: Path) -> Path:
    """Assets with the models of `models`, a tiny listener, and held-out music in windows of one second."""
    assets, work = folder / "assets", folder / "work"
    shutil.copytree(models, assets / "models")
    codec = SpectralCodec.from_folder(assets / "models" / "codec")
    codec.save(assets / "models" / "codec", scramble(SpectralEncoder(codec.config), seed=22))
    save_tiny_listener(assets / "listener")
    save_tiny_work(work, SpectralCodec.from_folder(assets / "models" / "codec"))
    build_held_out(work, assets, seconds=1.0)
    return assets


def quick_judges(patch: pytest.MonkeyPatch) -> None:
    """Fewer halves an interval, and a key that is read off the level: librosa's takes long to set up for every clip."""
    patch.setattr(run, "DRAWS", 20)
    patch.setattr(second_opinion, "key_of", lambda samples: (int(1e4 * np.abs(samples).mean()) % 12, "minor"))


def records(path: Path) -> list[dict]:
    """The lines of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
