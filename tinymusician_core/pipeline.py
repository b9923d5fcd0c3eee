"""The pipeline: text -> states -> frames -> sound -> clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .bundle import Parts
from .clock import Report
from .continuation import check_sound
from .guidance import ScaleRange
from .records import Cancelled, Clip, ModelError, SamplingSpec, Timing, Waveform, check_prompt
from .stream import Stream, Take
from .text import check_known

__all__ = ["Cancelled", "Pipeline", "generate"]


class Pipeline:
    """A loaded model that turns a prompt into a clip; made by `tinymusician_core.load`.

    Attributes:
        name: the variant's name.
        hash: 16 hexadecimal digits over all that it was read from.
        files: everything on disk that generating reads.
        window_s: seconds of music that the language model can see at once.
        modules: "decoder", "text_encoder" and "codec"; a quantization plan names what lies under them.
        window_frames: frames that the language model sees at once; longer music goes on from the end of a window.
        guidance: the scale that a guidance-distilled model has built in, or the range of them that it takes as an
            input; None where guidance is a second pass.
        made_for: what it plays with where nothing else is asked for; its scale is of guidance as a second pass.
    """

    def __init__(self, parts: Parts, name: str | None = None, device: str | torch.device = "cpu"):
        self.name = parts.name if name is None else name
        self.hash = parts.hash
        self.files = tuple(Path(file) for file in parts.files)
        self.window_s = float(parts.window_s)
        self.guidance, self.made_for = parts.guidance, parts.made_for
        self.device = torch.device(device)
        modules = {"decoder": parts.decoder, "text_encoder": parts.text_encoder, "codec": parts.codec}
        self._check_fit(parts)
        self.window_frames = max(1, round(parts.window_s * parts.codec.frame_rate_hz))
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

    def settled(self, spec: SamplingSpec) -> SamplingSpec:
        """The spec with a scale of guidance and a top_p: where it names none, the model's usual ones."""
        cfg = self.usual_cfg if spec.cfg is None else spec.cfg
        return replace(spec, cfg=cfg, top_p=self.made_for.top_p if spec.top_p is None else spec.top_p)

    def engine_spec(self, spec: SamplingSpec) -> SamplingSpec:
        """The spec that the engine is run with: guidance that is built in, or an input, takes no second pass.

        Raises:
            ValueError: the model has guidance of another scale built in, or takes none of this scale.
        """
        if self.guidance is None:
            return spec
        if isinstance(self.guidance, ScaleRange):
            if spec.cfg not in self.guidance:
                raise ValueError(f"the model {self.name} takes cfg from {self.guidance}, got {spec.cfg:g}")
        elif spec.cfg != self.guidance:
            raise ValueError(
                f"the model {self.name} has guidance of {self.guidance:g} built in; "
                f"cfg must be {self.guidance:g}, got {spec.cfg:g}"
            )
        return replace(spec, cfg=1.0)

    def text_scale(self, spec: SamplingSpec) -> float | None:
        """The scale that the text encoder is told of; None in a model that does not take it as an input."""
        return spec.cfg if isinstance(self.guidance, ScaleRange) else None

    @property
    def usual_cfg(self) -> float:
        """What music is made with where nothing else is said: what is built in, else what the model is made for."""
        if self.guidance is None:
            return self.made_for.cfg
        return self.guidance.base if isinstance(self.guidance, ScaleRange) else self.guidance

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that this model has never seen."""
        return self.text_encoder.unknown_words(prompt)

    def stream(
        self,
        prompt: str,
        spec: SamplingSpec,
        on_progress: Report | None = None,
        should_stop: Callable[[], bool] | None = None,
        continue_from: Waveform | None = None,
    ) -> Stream:
        """Make music and hand it out while it is made: an iterator of float32 [C,n] chunks.

        What is longer than `window_frames` goes on from its opening and its last seconds, again and again; should it
        have fallen silent by then, it is taken up from its opening alone.

        Args:
            prompt: what to play.
            spec: length, seed and how to draw.
            on_progress: told of every step.
            should_stop: asked before every step; a stop ends the stream, and `stopped` says so.
            continue_from: a sound that the music goes on from, of any rate and channels. It comes first, in the
                model's rate and channels; `spec.seconds` of new music follow.

        Raises:
            ValueError: a prompt that `check_prompt` refuses, or in which the model knows no word; a sound that is none;
                a cfg that the model, with guidance built in, does not take.
            ModelError: while it runs, the weights give no sound at all (not finite), or there is no codec encoder to
                read `continue_from` with.
        """
        if continue_from is not None:
            check_sound(continue_from)
        specs = [self.settled(spec)]
        return Stream(Take(self, [self._check_prompt(prompt)], specs, on_progress, should_stop, continue_from))

    def generate(
        self,
        prompt: str,
        spec: SamplingSpec,
        on_progress: Report | None = None,
        should_stop: Callable[[], bool] | None = None,
        continue_from: Waveform | None = None,
        on_audio: Callable[[np.ndarray], None] | None = None,
    ) -> Clip:
        """Make one clip: the chunks of `stream` put together, so the two are the same to the last bit.

        Args:
            prompt, spec, on_progress, should_stop, continue_from: as for `stream`.
            on_audio: given each chunk, float32 [C,n], as it comes.

        Returns:
            The clip. After `continue_from` it holds that sound and the new music, and the codes of the new music alone.

        Raises:
            ValueError, ModelError: as for `stream`.
            Cancelled: `should_stop` said so; its `clip` is what was made until then.
        """
        spec = self.settled(spec)
        stream = self.stream(prompt, spec, on_progress, should_stop, continue_from)
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            if on_audio is not None:
                on_audio(chunk)
        made = stream.codes.shape[1]
        clip = self._clip(np.concatenate(chunks, axis=1), stream.codes, stream.timing, prompt, spec) if made else None
        if stream.stopped:
            raise Cancelled(self._stopped(made, spec), clip)
        return clip

    def generate_batch(
        self,
        prompts: Sequence[str],
        specs: Sequence[SamplingSpec],
        on_progress: Report | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Clip]:
        """Make a clip of each prompt, all at once; each equals its single run of the same seed.

        A model that reads the text before the music, in the same sequence, makes them one after the other: prompts of
        different lengths would stand at different places.

        Args:
            prompts: what to play.
            specs: one for each prompt, alike in `seconds` and `cfg`.
            on_progress, should_stop: as for `stream`.

        Returns:
            One clip a prompt. Their timing is that of the whole batch.

        Raises:
            ValueError: no prompts, specs that do not fit, or a prompt that `stream` would refuse.
            ModelError: as for `stream`.
            Cancelled: `should_stop` said so; its `clip` is the list of what was made until then.
        """
        if not len(prompts):
            raise ValueError("a batch needs at least one prompt, got none")
        if isinstance(prompts, str) or len(prompts) != len(specs):
            raise ValueError(f"a batch needs a list of prompts and as many specs, got {prompts!r} and {len(specs)}")
        specs = [self.settled(spec) for spec in specs]
        if len({(spec.seconds, spec.cfg) for spec in specs}) > 1:
            raise ValueError("all clips of a batch must have the same seconds and cfg")
        if self.decoder.config.text == "prepend":
            return self._one_by_one(prompts, specs, on_progress, should_stop)
        take = Take(self, [self._check_prompt(prompt) for prompt in prompts], specs, on_progress, should_stop)
        chunks = list(take)
        made = take.codes.shape[2]
        clips = None
        if made:
            sounds, timing = np.concatenate(chunks, axis=2), take.timing
            rows = zip(sounds, take.codes.numpy(), prompts, specs, strict=True)
            clips = [self._clip(sound, codes, timing, prompt, spec) for sound, codes, prompt, spec in rows]
        if take.stopped:
            raise Cancelled(self._stopped(made, specs[0]), clips)
        return clips

    def _one_by_one(self, prompts: Sequence[str], specs: Sequence[SamplingSpec], *callbacks) -> list[Clip]:
        clips: list[Clip] = []
        try:
            for prompt, spec in zip(prompts, specs, strict=True):
                clips.append(self.generate(prompt, spec, *callbacks))
        except Cancelled as stop:
            clips += [stop.clip] if stop.clip is not None else []
            raise Cancelled(str(stop), clips or None) from stop
        return clips

    def _check_prompt(self, prompt: str) -> str:
        prompt = check_prompt(prompt)
        check_known(prompt, self.unknown_words(prompt))
        return prompt

    def _clip(self, audio: np.ndarray, codes: np.ndarray, timing: Timing, prompt: str, spec: SamplingSpec) -> Clip:
        return Clip(audio, self.sample_rate_hz, codes, timing, prompt, spec, self.name, self.hash)

    def _stopped(self, frames: int, spec: SamplingSpec) -> str:
        return f"stopped after {frames / self.frame_rate_hz:.1f} of {spec.seconds:g} seconds"


def generate(
    model: Pipeline,
    prompt: str | Sequence[str],
    seconds: float = 8.0,
    seed: int | Sequence[int] = 7,
    cfg: float | None = None,
    temperature: float = 1.0,
    top_k: int = 250,
    top_p: float | None = None,
    greedy: bool = False,
    continue_from: Waveform | None = None,
) -> Clip | list[Clip]:
    """Make one clip, or several at once, with a model from `load`.

    The same model, seed and machine give the same clip.

    Args:
        model: what `tinymusician_core.load` returned.
        prompt: what to play, at most 1000 characters; a list of prompts makes a list of clips in one batch.
        seconds: length, 0.5 to 600.
        seed: start of the random draws; with a list of prompts a list of seeds may stand beside it.
        cfg: guidance; 1 turns it off and halves the work; None for what the model is made for.
        temperature: below 1 plays safer, above 1 bolder.
        top_k: draw from this many of the likeliest tokens; 0 allows all.
        top_p: draw from this share of the probability; 0 allows all; None for what the model is made for.
        greedy: always take the likeliest token.
        continue_from: a sound that the music goes on from, as `audio.read` gives it; one prompt only.

    Raises:
        ValueError: an argument out of range, lists that do not fit together, or a model that did not come from `load`.
        ModelError: as for `Pipeline.stream`.
    """
    if not isinstance(model, Pipeline):
        raise ValueError(f"model must come from tinymusician_core.load, got {type(model).__name__}")
    settings = (cfg, temperature, top_k, top_p, greedy)
    if isinstance(prompt, str):
        return model.generate(prompt, SamplingSpec(seconds, seed, *settings), continue_from=continue_from)
    if continue_from is not None:
        raise ValueError("continue_from takes one prompt, got a list")
    prompts = list(prompt)
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"seed must be one number or as many as prompts, got {len(seeds)} beside {len(prompts)}")
    return model.generate_batch(prompts, [SamplingSpec(seconds, each, *settings) for each in seeds])
