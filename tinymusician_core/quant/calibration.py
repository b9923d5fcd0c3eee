"""The tokens on which schemes are tried: of a token folder's training split, or sampled by the model itself.

R windows, K codebooks, T frames, P = T + the longest delay.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..delay import delay
from ..domain import INSTRUMENTS, KIND, MODES, PLAYED_BY, STYLES, TEMPI, TEMPO, TONICS
from ..pipeline import Pipeline
from ..playing import play
from ..records import SamplingSpec
from ..text import EXAMPLE
from ..tokens import TokenDataset

WINDOWS, SECONDS = 16, 6.0
AT_ONCE = 8  # clips that are sampled in one batch


@dataclass(frozen=True, eq=False)
class Calibration:
    """Windows of tokens with their prompts.

    Attributes:
        codes: int64 [R,K,T], -1 past a clip's end.
        prompts: a caption a window.
        inputs: int64 [R,K,P], what the decoder reads: the delayed codes behind a column of padding.
        valid: bool [R,K,P], where the next token is one that counts.
        source: where they come from, in words.
    """

    codes: Tensor
    prompts: tuple[str, ...]
    inputs: Tensor
    valid: Tensor
    source: str

    @classmethod
    def of(cls, codes: Tensor, prompts: list[str], delays: tuple[int, ...], pad: int, source: str) -> Calibration:
        """From codes int64 [R,K,T], -1 past a clip's end; ValueError where there is a token that the model has not."""
        if codes.shape[1] != len(delays) or int(codes.max()) >= pad:
            raise ValueError(
                f"the tokens have {codes.shape[1]} codebooks with codes up to {int(codes.max())}; "
                f"this model has {len(delays)} of {pad} entries"
            )
        shifted, real = delay(codes, delays, pad)
        valid = real & (shifted >= 0)
        inputs = functional.pad(shifted.masked_fill(~valid, pad), (1, 0), value=pad)[..., :-1]
        return cls(codes, tuple(prompts), inputs, valid.expand_as(shifted), source)

    def part(self, first: int, end: int) -> Calibration:
        """The windows from `first` to before `end`."""
        some = slice(first, end)
        source = f"{end - first} of {self.source}"
        return Calibration(self.codes[some], self.prompts[some], self.inputs[some], self.valid[some], source)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over the tokens and the prompts."""
        digest = hashlib.sha256("\n".join(self.prompts).encode())
        digest.update(self.codes.to(torch.int32).numpy().tobytes())
        return digest.hexdigest()[:16]


def from_folder(
    pipeline: Pipeline,
    folder: str | Path,
    split: str = "train",
    seed: int = 0,
    windows: int = WINDOWS,
    seconds: float | None = None,
) -> Calibration:
    """Windows of a token folder's split with their captions, each of `SECONDS` where nothing else is said.

    Raises:
        ValueError: no such tokens, or tokens that are not this model's.
    """
    dataset, config = TokenDataset(folder, split), pipeline.decoder.config
    count = max(1, round((SECONDS if seconds is None else seconds) * pipeline.frame_rate_hz))
    codes, captions = dataset.batch(torch.Generator().manual_seed(seed), windows, count)
    return Calibration.of(codes, captions, config.delays, config.pad, f"{windows} windows of the {split} split")


def sampled(
    pipeline: Pipeline,
    seed: int = 0,
    windows: int = WINDOWS,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    seconds: float | None = None,
) -> Calibration:
    """What the model itself plays to captions of the demo family's domain, each window of `SECONDS` where nothing else
    is said: no data is needed.

    Raises:
        Cancelled: `should_stop` said so.
    """
    config, prompts = pipeline.decoder.config, captions(pipeline, seed, windows)
    length_s, cfg = SECONDS if seconds is None else seconds, pipeline.usual_cfg
    specs = [SamplingSpec(seconds=length_s, seed=windows * seed + i, cfg=cfg) for i in range(windows)]
    codes: list[Tensor] = []
    for first in range(0, windows, AT_ONCE):
        some = slice(first, first + AT_ONCE)
        codes += play(pipeline, prompts[some], specs[some], should_stop)
        if on_progress is not None:
            on_progress(len(codes), windows)
    source = f"{windows} windows that the model played itself"
    return Calibration.of(torch.stack(codes), prompts, config.delays, config.pad, source)


def captions(pipeline: Pipeline, seed: int, count: int) -> list[str]:
    """Captions of the demo family's domain, in words that the model knows."""
    rng = random.Random(seed)
    return [_caption(pipeline, rng) for _ in range(count)]


def _caption(pipeline: Pipeline, rng: random.Random) -> str:
    """A caption of which the model knows every word, where a hundred draws give one."""
    for _ in range(100):
        tempo, style = rng.choice(TEMPI), rng.choice(STYLES)
        words = (rng.choice(TEMPO[tempo]), rng.choice(PLAYED_BY[rng.choice(INSTRUMENTS)]), rng.choice(KIND[style]))
        caption = f"{' '.join(words)} in {rng.choice(TONICS)} {rng.choice(MODES)}"
        if not pipeline.unknown_words(caption):
            return caption
    return EXAMPLE
