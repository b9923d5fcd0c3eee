"""Music while it is made: frames from the language model, sound from the codec, chunk after chunk.

B batch, K codebooks, T frames, S text tokens, D width, C channels, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .clock import Clock, Report
from .continuation import WARM_S, Given, encode, fit, joined
from .engine.loop import frames
from .engine.threads import step_threads
from .engine.window import kept_of
from .records import Cancelled, ModelError, SamplingSpec, Timing, Waveform
from .silence import Silence

if TYPE_CHECKING:
    from .pipeline import Pipeline

FIRST_S, CHUNK_S = 0.5, 1.0


class Take(Iterator[np.ndarray]):
    """A batch of prompts being made: an iterator of sound float32 [B,C,n] in -1..1, which keeps none of it.

    The first chunk is short, `FIRST_S` seconds, so that there is soon something to hear; later ones last `CHUNK_S`.
    A stop ends the making within one step; what was made until then still comes, as a last chunk.

    Attributes:
        stopped: whether `should_stop` ended it early.
    """

    def __init__(
        self,
        model: Pipeline,
        prompts: Sequence[str],
        specs: Sequence[SamplingSpec],
        on_progress: Report | None = None,
        should_stop: Callable[[], bool] | None = None,
        sound: Waveform | None = None,
    ):
        self._model, self._prompts, self._sound = model, prompts, sound
        self._specs, self._scale = [model.engine_spec(spec) for spec in specs], model.text_scale(specs[0])
        self._should_stop = should_stop
        self._clock = Clock(on_progress)
        self._silence = Silence(len(prompts), model.sample_rate_hz)
        self._total = max(1, round(specs[0].seconds * model.frame_rate_hz))
        self._codes = torch.zeros(len(prompts), model.codec.codebooks, self._total, dtype=torch.long)
        self._made = 0
        self.stopped = False
        self._chunks = self._run()

    def __next__(self) -> np.ndarray:
        return next(self._chunks)

    @property
    def codes(self) -> Tensor:
        """The codes int64 [B,K,T] made so far."""
        return self._codes[:, :, : self._made]

    @property
    def timing(self) -> Timing:
        """The time taken so far, for the whole batch; waiting for whoever takes the chunks does not count."""
        return self._clock.timing(self._made + self._delay if self._made else 0)

    @property
    def _delay(self) -> int:
        return max(self._model.decoder.config.delays)

    @torch.inference_mode()
    def _run(self) -> Iterator[np.ndarray]:
        if self._should_stop is not None and self._should_stop():
            self.stopped = True
            return
        given = self._encoded()
        pieces = self._pieces(self._frames(given))
        if given is None:
            yield from self._decoded(pieces)
            return
        warm = given.codes[:, :, -round(WARM_S * self._model.frame_rate_hz) :]
        rate = self._model.sample_rate_hz
        decoded = round(warm.shape[2] * rate / self._model.frame_rate_hz)
        yield from joined(given.audio, self._decoded(pieces, warm), decoded, rate)

    def _encoded(self) -> Given | None:
        """The sound to go on from, in the model's rate, channels and codes."""
        if self._sound is None:
            return None
        model = self._model
        with self._clock.stage("codec"):
            audio = fit(self._sound, model.sample_rate_hz, model.codec.channels)
            there = round(audio.shape[1] / model.sample_rate_hz * model.frame_rate_hz)
            return encode(model.codec, audio, kept_of(there, self._total, model.window_frames), model.device)

    def _frames(self, given: Given | None) -> Iterator[Tensor]:
        """Read the prompts; the language model's frames [B,K] are yet to be made."""
        with self._clock.stage("text"):
            self._clock.tell("text", 0, 1)
            states, mask = self._model.text_encoder.encode_each(self._prompts, self._scale)
            self._clock.tell("text", 1, 1)
        codes = None if given is None else given.codes
        batch = (states, mask, self._specs, self._total, self._should_stop, codes, self._model.window_frames)
        return frames(self._model.decoder, *batch, self._silence.over)

    def _pieces(self, made: Iterator[Tensor]) -> Iterator[Tensor]:
        """Have the frames made, and give the codes int64 [B,K,t] of one chunk after the other; t may be 0 at a stop."""
        rate, delay, total = self._model.frame_rate_hz, self._delay, self._total
        end = round(FIRST_S * rate) + self._model.codec.lookahead_frames
        self._clock.tell("lm", 0, total + delay)
        while self._made < total and not self.stopped:
            begin = self._made
            try:
                with self._clock.stage("lm"), step_threads(self._model.decoder.config):
                    for frame in islice(made, end - begin):
                        self._codes[:, :, self._made] = frame
                        self._made += 1
                        self._clock.tell("lm", self._made + delay, total + delay)
            except Cancelled:
                self.stopped = True
            yield self._codes[:, :, begin : self._made]
            end += round(CHUNK_S * rate)

    def _decoded(self, pieces: Iterator[Tensor], warm: Tensor | None = None) -> Iterator[np.ndarray]:
        """Codes to sound; the sound of the codes `warm` [B,K,t], which the codec hears first, comes before that."""
        codec = self._model.codec.stream(len(self._prompts))
        for codes in pieces:
            last = self.stopped or self._made == self._total
            codes = codes.to(self._model.device)
            if warm is not None:
                codes, warm = torch.cat([warm, codes], dim=2), None
            if not self._made:
                return
            if last:
                self._clock.tell("codec", 0, 1)
            with self._clock.stage("codec"):
                parts = [codec.push(codes)] if codes.shape[2] else []
                parts += [codec.finish()] if last else []
                sound = self._checked(torch.cat(parts, dim=2))
            if last:
                self._clock.tell("codec", 1, 1)
            if sound.shape[2]:
                self._clock.sound()
                self._silence.hear(sound)
                yield sound

    def _checked(self, sound: Tensor) -> np.ndarray:
        """Sound [B,C,n] as an array; peaks beyond full scale are cut off."""
        audio = sound.float().cpu().numpy()
        if not np.isfinite(audio).all():
            raise ModelError(f"the model {self._model.name} gave sound that is not finite; its weights are unusable")
        return audio.clip(-1.0, 1.0)


class Stream(Iterator[np.ndarray]):
    """One prompt being made: an iterator of sound float32 [C,n] in -1..1, which keeps none of it."""

    def __init__(self, take: Take):
        self._take = take

    def __next__(self) -> np.ndarray:
        return next(self._take)[0]

    @property
    def codes(self) -> np.ndarray:
        """The codes int64 [K,T] made so far."""
        return self._take.codes[0].numpy()

    @property
    def timing(self) -> Timing:
        """The time taken so far; waiting for whoever takes the chunks does not count."""
        return self._take.timing

    @property
    def stopped(self) -> bool:
        """Whether `should_stop` ended it early."""
        return self._take.stopped
