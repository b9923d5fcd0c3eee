"""One interface to what turns sound into the vectors that FAD and KAD compare.

"listener" is ours, ships with the repository and works offline. A transformers CLAP model (Wu et al., "Large-Scale
Contrastive Language-Audio Pretraining", arXiv 2211.06687) is read from a folder, or from the hub where it can be had;
it also says how well sound fits a text.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ..audio import resample
from ..files import check_safetensors, reading
from ..hub import fetch
from ..records import ModelError, Waveform, check_prompt
from ..stored import check_complete, combined_identity, quiet_transformers

if TYPE_CHECKING:
    from .listener import Listener

CLAP = "laion/larger_clap_music"
ALLOWED = f'"listener", "clap" (for {CLAP}), or a folder or hub id of a transformers CLAP model'
CONFIGS, WEIGHTS = ("config.json", "preprocessor_config.json"), ("model.safetensors", "pytorch_model.bin")
FILES = (*CONFIGS, *WEIGHTS, "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Embedder(Protocol):
    """Sound to vectors.

    Attributes:
        name: what figures name it by; another name means vectors that cannot be compared.
        width: D.
    """

    name: str
    width: int

    def embed(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Sound float32 [C,N] in -1..1 -> float32 [D]; ValueError where it is none."""
        ...


class ListenerEmbedder:
    """The listener's embedding, the one that its judgements are read off.

    Attributes:
        listener: the network itself, to be asked for more.
    """

    def __init__(self, listener: Listener):
        self.listener, self.name = listener, listener.name
        self.width = listener.net.config.embedding_dim

    def embed(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Sound float32 [C,N] -> float32 [D]; ValueError for less than a second."""
        return self.listener.hear(audio, sample_rate_hz).embedding


class ClapEmbedder:
    """A CLAP model's embedding of sound, and of text beside it; both of length 1.

    CLAP hears 10 s at a time. Longer sound is heard in equal windows, whose embeddings are averaged and brought back to
    length 1: transformers' own way, a crop at random, would give another figure at every call.
    """

    def __init__(self, model: torch.nn.Module, processor, name: str):
        self.name, self.width = name, int(model.config.projection_dim)
        self._model, self._processor = model.eval(), processor

    @torch.inference_mode()
    def embed(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Sound float32 [C,N] in -1..1, mixed to mono and resampled -> float32 [D] of length 1.

        Raises:
            ValueError: no sound at all (shape, type, rate, not finite).
        """
        sound, extractor = Waveform(audio, sample_rate_hz), self._processor.feature_extractor
        mono = Waveform(sound.audio.mean(0, keepdims=True), sample_rate_hz)
        parts = _windows(resample(mono, extractor.sampling_rate).audio[0], extractor.nb_max_samples)
        mean = torch.stack([self._hear(part) for part in parts]).mean(0)
        return torch.nn.functional.normalize(mean, dim=0).numpy()

    def _hear(self, sound: np.ndarray) -> torch.Tensor:
        """At most 10 s [n] -> [D]. One window at a time: of several, transformers would treat one at random as long."""
        extractor = self._processor.feature_extractor
        seen = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return self._model.get_audio_features(**seen.to(torch.float32)).pooler_output[0]

    @torch.inference_mode()
    def text_score(self, prompt: str, audio: np.ndarray, sample_rate_hz: int) -> float:
        """The CLAP score: the cosine, -1 to 1, between a prompt and a sound float32 [C,N].

        Raises:
            ValueError: a prompt that `check_prompt` refuses, or no sound.
        """
        words = self._processor.tokenizer([check_prompt(prompt)], truncation=True, return_tensors="pt")
        text = self._model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output[0]
        return float(text.numpy() @ self.embed(audio, sample_rate_hz))


def _windows(sound: np.ndarray, longest: int) -> list[np.ndarray]:
    """A sound [N] in equal windows of at most `longest` samples; a twentieth over still counts as one."""
    count = max(1, math.ceil(len(sound) / longest - 0.05))
    return [part[:longest] for part in np.array_split(sound, count)]


def load_embedder(source: str | os.PathLike = "listener") -> Embedder:
    """An embedder by name.

    Args:
        source: "listener", "clap", or a folder or hub id of a transformers CLAP model.

    Raises:
        ValueError: none of these.
        ModelError: its files are missing, damaged or cannot be had.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if text == "listener":
        from .listener import Listener

        return ListenerEmbedder(Listener.from_folder())
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return _load_clap(Path(path), Path(path).resolve().name)
    name = CLAP if text == "clap" else text
    if os.path.exists(path) or not _HUB_ID.fullmatch(name):
        raise ValueError(f"no such embedder: got {source!r}; allowed are {ALLOWED}")
    otherwise = f'use the embedder "listener", or download https://huggingface.co/{name} elsewhere and name its folder'
    return _load_clap(fetch(name, FILES, is_whole, otherwise), name.rsplit("/", 1)[1])


def is_whole(folder: Path) -> bool:
    """Whether a folder has all that a CLAP model needs."""
    has = [(folder / name).is_file() for name in (*WEIGHTS, "tokenizer.json", "vocab.json")]
    return any(has[:2]) and any(has[2:]) and all((folder / name).is_file() for name in CONFIGS)


def _load_clap(folder: Path, label: str) -> ClapEmbedder:
    """Read the folder; ModelError where it holds no CLAP model that is whole.

    LAION's own model is stored as pytorch_model.bin, which transformers reads by torch.load(weights_only=True): tensors
    alone, no code.
    """
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapProcessor

    if not is_whole(folder):
        wanted = f"{', '.join(CONFIGS)}, a tokenizer and {' or '.join(WEIGHTS)}"
        raise ModelError(f"{folder} is no CLAP model of transformers that is whole: it needs {wanted}")
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    if weights.suffix == ".safetensors":
        check_safetensors(weights)
    with reading(folder), quiet_transformers():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clap":
            raise ModelError(f"{folder} is no CLAP model: its config.json says model_type {kind!r}")
        processor = ClapProcessor(
            ClapFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )
        model, info = ClapModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        check_complete(info, folder)
    return ClapEmbedder(model, processor, f"{label}-{combined_identity([weights])[:8]}")
