"""The pipeline: text -> states -> frames -> sound -> clip."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .bundle import Parts
from .engine.decoder import DecoderConfig
from .engine.loop import frames, steps_for
from .records import Cancelled, Clip, ModelError, Progress, SamplingSpec, Timing, check_prompt
from .text import check_known

__all__ = ["Cancelled", "Pipeline", "generate"]

Report = Callable[[Progress], None]
SHARED_STEP_WEIGHTS = 2**25


class Pipeline:
    """A loaded model that turns a prompt into a clip; made by `tinymusician_core.load`.

    Attributes:
        name: the variant's name.
        hash: 16 hexadecimal digits over all that it was read from.
        files: everything on disk that generating reads.
        window_s: seconds of music that the language model can see at once.
        modules: "decoder", "text_encoder" and "codec"; a quantization plan names what lies under them.
    """

    def __init__(self, parts: Parts, name: str | None = None, device: str | torch.device = "cpu"):
        self.name = parts.name if name is None else name
        self.hash = parts.hash
        self.files = tuple(Path(file) for file in parts.files)
        self.window_s = float(parts.window_s)
        self.device = torch.device(device)
        modules = {"decoder": parts.decoder, "text_encoder": parts.text_encoder, "codec": parts.codec}
        self._check_fit(parts)
        self.modules = nn.ModuleDict(modules).eval()
        if self.device.type != "cpu":
            self.modules.to(self.device)

    @staticmethod
    def _check_fit(parts: Parts) -> None:
        config, codec = parts.decoder.config, parts.codec
        if config.codebooks != codec.codebooks or config.entries != codec.codebook_size:
            raise ModelError(
                f"the model {parts.name} makes {config.codebooks} codebooks of {config.entries} entries, "
                f"its codec reads {codec.codebooks} of {codec.codebook_size}"
            )

    @property
    def decoder(self) -> nn.Module:
        return self.modules["decoder"]

    @property
    def text_encoder(self) -> nn.Module:
        return self.modules["text_encoder"]

    @property
    def codec(self) -> nn.Module:
        return self.modules["codec"]

    @property
    def disk_bytes(self) -> int:
        """Bytes of every file that generating reads."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def sample_rate_hz(self) -> int:
        return self.codec.sample_rate_hz

    @property
    def frame_rate_hz(self) -> float:
        return self.codec.frame_rate_hz

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that this model has never seen."""
        return self.text_encoder.unknown_words(prompt)

    def generate(
        self,
        prompt: str,
        spec: SamplingSpec,
        on_progress: Report | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Clip:
        """Make one clip.

        Args:
            prompt: what to play.
            spec: length, seed and how to draw.
            on_progress: told of every step.
            should_stop: asked before every step and every stage.

        Raises:
            ValueError: a prompt that `check_prompt` refuses, or in which the model knows no word.
            Cancelled: `should_stop` said so.
            ModelError: the weights give no sound at all (not finite).
        """
        prompt = check_prompt(prompt)
        check_known(prompt, self.unknown_words(prompt))
        total = max(1, round(spec.seconds * self.frame_rate_hz))
        clock = _Clock(on_progress, should_stop)
        with torch.inference_mode():
            clock.enter("text", 1)
            states, mask = self.text_encoder.encode([prompt])
            clock.tick(1)
            codes = self._codes(states, mask, spec, total, clock)
            clock.enter("codec", 1)
            audio = self._sound(codes)
            clock.tick(1)
        spent = clock.finish()
        timing = Timing(
            text_s=spent["text"],
            lm_s=spent["lm"],
            codec_s=spent["codec"],
            first_sound_s=clock.total_s,
            total_s=clock.total_s,
            steps=steps_for(self.decoder, total),
        )
        return Clip(audio, self.sample_rate_hz, codes[0].cpu().numpy(), timing, prompt, spec, self.name, self.hash)

    def _codes(self, states: Tensor, mask: Tensor, spec: SamplingSpec, total: int, clock: _Clock) -> Tensor:
        """Text states [1,S,D] -> codes int64 [1,K,T]."""
        delay = max(self.decoder.config.delays)
        clock.enter("lm", total + delay)
        made = []
        with step_threads(self.decoder.config):
            for frame in frames(self.decoder, states, mask, spec, total, clock.should_stop):
                made.append(frame)
                clock.tick(len(made) + delay)
        return torch.stack(made, dim=2)

    def _sound(self, codes: Tensor) -> np.ndarray:
        """Codes int64 [1,K,T] -> float32 [C,N]; peaks beyond full scale are cut off."""
        audio = self.codec.decode(codes)[0].float().cpu().numpy()
        if not np.isfinite(audio).all():
            raise ModelError(f"the model {self.name} gave sound that is not finite; its weights are unusable")
        return audio.clip(-1.0, 1.0)


@contextmanager
def step_threads(config: DecoderConfig) -> Iterator[None]:
    """One CPU thread while a small decoder steps: its products are too short to be worth handing out to several."""
    weights = config.layers * config.width * (8 * config.width + 2 * config.ffn)
    threads = torch.get_num_threads()
    if weights < SHARED_STEP_WEIGHTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Clock:
    """Times the stages, reports progress, and passes on the wish to stop."""

    def __init__(self, on_progress: Report | None, should_stop: Callable[[], bool] | None):
        self._report, self.should_stop = on_progress, should_stop
        self._start = self._entered = time.perf_counter()
        self._stage, self._total = "", 0
        self._spent: dict[str, float] = {}
        self.total_s = 0.0

    def enter(self, stage: str, total: int) -> None:
        """Close the stage before, and begin one of `total` steps."""
        if self.should_stop is not None and self.should_stop():
            raise Cancelled(f"stopped before the stage {stage}")
        self._close()
        self._stage, self._total = stage, total
        self.tick(0)

    def tick(self, done: int) -> None:
        if self._report is not None:
            elapsed = time.perf_counter() - self._entered
            self._report(Progress(self._stage, done, self._total, elapsed))

    def _close(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._spent[self._stage] = now - self._entered
        self._entered = now

    def finish(self) -> dict[str, float]:
        """Seconds spent in each stage."""
        self._close()
        self.total_s = self._entered - self._start
        return self._spent


def generate(
    model: Pipeline,
    prompt: str,
    seconds: float = 8.0,
    seed: int = 7,
    cfg: float = 3.0,
    temperature: float = 1.0,
    top_k: int = 250,
    top_p: float = 0.0,
    greedy: bool = False,
) -> Clip:
    """Make one clip with a model from `load`; the same model, seed and machine give the same clip.

    Args:
        model: what `tinymusician_core.load` returned.
        prompt: what to play, at most 1000 characters.
        seconds: length, 0.5 to 30.
        seed: start of the random draws.
        cfg: guidance; 1 turns it off and halves the work.
        temperature: below 1 plays safer, above 1 bolder.
        top_k: draw from this many of the likeliest tokens; 0 allows all.
        top_p: draw from this share of the probability; 0 allows all.
        greedy: always take the likeliest token.

    Raises:
        ValueError: an argument out of range, or a model that did not come from `load`.
    """
    if not isinstance(model, Pipeline):
        raise ValueError(f"model must come from tinymusician_core.load, got {type(model).__name__}")
    return model.generate(prompt, SamplingSpec(seconds, seed, cfg, temperature, top_k, top_p, greedy))
