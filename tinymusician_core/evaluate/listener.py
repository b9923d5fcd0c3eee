"""The listener: a small network of our own that says which instrument leads a piece of music, in which style, how fast
and in which mode it is, and gives the embedding in which distances between sets of clips are measured.

It was trained on rendered audio of the family's training tunes alone (`pretrain/listener.py`), its bands turned up and
down as a mixing desk does and some of them held at their mean, but never on noisy or decoded sound, so that its
embedding moves when sound gets worse. What it says is worth what its `accuracy` on held-out tunes is worth: show the
one beside the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..audio import resample
from ..domain import INSTRUMENTS, MODES, STYLES, TEMPI
from ..files import check_safetensors, reading, sha256_of, verify_files, whole_file
from ..records import ModelError, Waveform
from ..variants import assets_folder
from .listener_net import ListenerConfig, ListenerNet
from .spectra import SAMPLE_RATE_HZ, spectra

HEADS: dict[str, tuple[str, ...]] = {"instrument": INSTRUMENTS, "style": STYLES, "tempo": TEMPI, "mode": MODES}
MODEL_TYPE = "tinymusician-listener"
WEIGHTS = "model.safetensors"
MIN_S, WINDOW_S = 1.0, 10.0


@dataclass(frozen=True)
class Heard:
    """What the listener makes of a sound: `embedding` float32 [D], `probabilities` head -> float32 [classes]."""

    embedding: np.ndarray
    probabilities: Mapping[str, np.ndarray]

    def best(self, head: str) -> str:
        """The likeliest class of a head.

        Raises:
            ValueError: no such head.
        """
        if head not in self.probabilities:
            raise ValueError(f"the listener judges {', '.join(self.probabilities)}, got {head!r}")
        return HEADS[head][int(self.probabilities[head].argmax())]


class Listener:
    """A trained network with its name and its accuracy.

    Attributes:
        name: "listener-" and the first 8 hexadecimal digits of its weights' sha256.
        accuracy: head -> "real" and "codec" (the same windows after the codec's round trip) -> `value`, `low` and
            `high` (95%), `n` windows of `tunes` held-out tunes, `balanced` (mean recall of the classes that occur) and
            `majority` (what always naming the commonest class would reach). Empty before it was measured.
    """

    def __init__(self, net: ListenerNet, name: str, accuracy: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        self.net, self.name, self.accuracy = net.eval(), name, accuracy

    @classmethod
    def from_folder(cls, folder: str | Path | None = None) -> Listener:
        """Read config.json and model.safetensors; without a folder, the listener in `assets/listener`.

        Raises:
            ModelError: the folder or a file is missing, damaged, changed, or made for other classes.
        """
        folder = assets_folder() / "listener" if folder is None else Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"there is no listener at {folder}: its config.json is missing")
        with reading(folder):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config.get("model_type") != MODEL_TYPE:
                raise ModelError(f"{folder} holds no listener: its config.json does not say model_type {MODEL_TYPE!r}")
            if {k: tuple(v) for k, v in config["classes"].items()} != HEADS:
                raise ModelError(f"the listener at {folder} was trained for other classes than domain.py has")
            verify_files(folder, config["files"])
            check_safetensors(folder / WEIGHTS)
            net = ListenerNet(ListenerConfig(**config["sizes"]), {head: len(HEADS[head]) for head in HEADS})
            net.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
        return cls(net, f"listener-{config['files'][WEIGHTS][:8]}", config["accuracy"])

    @torch.inference_mode()
    def hear(self, audio: np.ndarray, sample_rate_hz: int) -> Heard:
        """Judge a sound: float32 [C,N] in -1..1, at least 1 s, at any rate.

        It is mixed to mono, resampled and brought to one level. A sound of 15 s or more is heard in equal windows of
        about 10 s, and their embeddings and probabilities are averaged.

        Raises:
            ValueError: less than 1 s, or no sound at all (shape, type, rate, not finite).
        """
        sound = Waveform(audio, sample_rate_hz)
        if sound.seconds < MIN_S:
            raise ValueError(f"the listener needs at least {MIN_S:g} s of sound, got {sound.seconds:.3g} s")
        mono = resample(Waveform(sound.audio.mean(0, keepdims=True), sample_rate_hz), SAMPLE_RATE_HZ)
        judged = self.net(spectra(windows_of(torch.from_numpy(mono.audio[0]))).levelled())
        probabilities = {head: x.softmax(-1).mean(0).numpy() for head, x in judged.logits.items()}
        return Heard(judged.embedding.mean(0).numpy(), probabilities)


def windows_of(sound: Tensor) -> Tensor:
    """Sound [N] -> equal windows [n,N // n], as near to `WINDOW_S` long as can be."""
    count = max(1, round(len(sound) / (WINDOW_S * SAMPLE_RATE_HZ)))
    length = len(sound) // count
    return sound[: count * length].reshape(count, length)


def save_listener(folder: Path, net: ListenerNet, accuracy: Mapping) -> None:
    """Write the folder that `Listener.from_folder` reads, the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / WEIGHTS) as partial:
        save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, partial)
    record = {
        "model_type": MODEL_TYPE,
        "sizes": net.config.as_dict(),
        "classes": HEADS,
        "accuracy": accuracy,
        "files": {WEIGHTS: sha256_of(folder / WEIGHTS)},
    }
    with whole_file(folder / "config.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
