"""The models that `peers` measures: one MusicGen of random weights, as transformers, AudioCraft and we run it.

B batch, K codebooks, T frames, C channels, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..bundle import Parts
from ..codec.encodec import EncodecCodec
from ..engine.decoder import Decoder, DecoderConfig
from ..engine.loop import frames
from ..engine.weights import from_musicgen
from ..pipeline import Pipeline
from ..quant.apply import apply_plan
from ..quant.plan import PRESETS, Plan, preset
from ..records import Progress, SamplingSpec, Timing
from ..stored import quiet_transformers, take_projection
from ..text import EXAMPLE, TextEncoder
from .peers import Shape
from .weights import step_bytes

CODEBOOKS, VOCABULARY, FRAME_RATE_HZ = 4, 32128, 50
CFG, TOP_K = 3.0, 250
# A prompt's tokens as T5 has them, with </s> at the end. No tokenizer is needed, and what they say does not matter.
PROMPT = (3, 9, 4447, 8355, 30872, 16, 350, 779, 28, 3, 7, 1)
OnStep = Callable[[int], None]


class FixedPrompt:
    """Stands where a tokenizer does, and gives `PROMPT` for every text."""

    unk_token_id = None

    def __call__(self, texts, **_):
        from transformers import BatchEncoding

        ids = torch.tensor([PROMPT] * len(texts))
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def make_musicgen(shape: Shape, layers: int, seed: int) -> nn.Module:
    """transformers' MusicgenForConditionalGeneration with the random weights that this seed always gives.

    Its tokens' embeddings are as large as the states of the positions, and its codebooks are not empty, so that the
    tokens matter.
    """
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    entries = shape.decoder["vocab_size"]
    special = {"pad_token_id": entries, "bos_token_id": entries}
    bits_per_s = CODEBOOKS * (entries - 1).bit_length() * FRAME_RATE_HZ
    codec = EncodecConfig(
        target_bandwidths=[bits_per_s / 1000],
        sampling_rate=32000,
        audio_channels=1,
        normalize=False,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=entries,
        codebook_dim=shape.codec["hidden_size"],
        num_lstm_layers=2,
        use_causal_conv=False,
        use_conv_shortcut=False,
        **shape.codec,
    )
    decoder = MusicgenDecoderConfig(num_hidden_layers=layers, num_codebooks=CODEBOOKS, **special, **shape.decoder)
    text = T5Config(vocab_size=VOCABULARY, **shape.text)
    torch.manual_seed(seed)
    with quiet_transformers():
        parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder.to_dict()}
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts)).eval()
    with torch.no_grad():
        for table in model.decoder.model.decoder.embed_tokens:
            table.weight.normal_()
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config.update(decoder_start_token_id=entries, **special)
    return model


def steps_in(seconds: float) -> int:
    """Steps of the language model for so much music: the delay pattern adds three."""
    return round(seconds * FRAME_RATE_HZ) + CODEBOOKS - 1


def _config(model: nn.Module) -> DecoderConfig:
    return DecoderConfig.from_dict(model.config.decoder.to_dict())


def float_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """As `step_bytes`, for the weights of a MusicgenForConditionalGeneration in a float type."""
    with torch.device("meta"):
        return step_bytes(Decoder(_config(model))) * dtype.itemsize // 4


class Ours:
    """Our pipeline around a model's weights, streaming as it always does.

    Args:
        model: a MusicgenForConditionalGeneration; its weights are taken over.
        scheme: fp32, a float type for the decoder and the text encoder, or a preset of `quant.plan`.
    """

    def __init__(self, model: nn.Module, scheme: str):
        state, config = model.state_dict(), _config(model)
        decoder = from_musicgen(config, state, "decoder.")
        text_encoder = TextEncoder(FixedPrompt(), model.text_encoder, take_projection(state)).eval()
        codec = EncodecCodec(model.audio_encoder, config.audio_channels).eval()
        self._pipeline = Pipeline(Parts("peer", decoder, text_encoder, codec, (), ""))
        if scheme != "fp32":
            apply_plan(self._pipeline.modules, _plan(scheme, self._pipeline.modules))
        self.step_bytes = step_bytes(self._pipeline.decoder)

    def play(self, seconds: float, seed: int, on_step: OnStep) -> tuple[Timing, float]:
        """Play the prompt; how long it took, and the seconds of sound."""

        def report(progress: Progress) -> None:
            if progress.stage == "lm":
                on_step(progress.done)

        spec = SamplingSpec(seconds=seconds, seed=seed, cfg=CFG, top_k=TOP_K)
        stream = self._pipeline.stream(EXAMPLE, spec, report)
        samples = sum(chunk.shape[1] for chunk in stream)
        return stream.timing, samples / self._pipeline.sample_rate_hz

    def greedy(self, count: int) -> Tensor:
        """The first `count` frames int64 [K,T] where always the likeliest token is taken."""
        states, mask = self._pipeline.text_encoder.encode([EXAMPLE])
        made = frames(self._pipeline.decoder, states, mask, SamplingSpec(cfg=CFG, greedy=True), count)
        return torch.stack([frame[0] for frame in made], dim=1)


def _plan(scheme: str, modules: nn.ModuleDict) -> Plan:
    if scheme in PRESETS:
        return preset(scheme, modules)
    return Plan.of({"decoder.*": scheme, "text_encoder.*": scheme}, scheme)


class Watched:
    """What times another program's text encoder and codec, and counts the steps of its language model."""

    def __init__(self):
        self._spent = {"text": 0.0, "codec": 0.0}
        self._steps = 0
        self._on_step: OnStep | None = None

    def count_steps(self, decoder: nn.Module) -> None:
        """Every call of this module is a step."""

        def count(*_) -> None:
            self._steps += 1
            if self._on_step is not None:
                self._on_step(self._steps)

        decoder.register_forward_hook(count)

    def timed(self, stage: str, function: Callable) -> Callable:
        """The function, with the time that it takes added to "text" or "codec"."""

        def call(*args, **kwargs):
            start = time.perf_counter()
            made = function(*args, **kwargs)
            self._spent[stage] += time.perf_counter() - start
            return made

        return call

    def time(self, play: Callable[[], Tensor], on_step: OnStep) -> tuple[Timing, Tensor]:
        """Time a call; what is neither text nor codec counts as the language model's, and sound comes at the end."""
        self._spent.update(text=0.0, codec=0.0)
        self._steps, self._on_step = 0, on_step
        start = time.perf_counter()
        sound = play()
        total = time.perf_counter() - start
        text, codec = self._spent["text"], self._spent["codec"]
        return Timing(text, total - text - codec, codec, total, total, self._steps), sound


class Transformers:
    """transformers' own `generate` over a MusicgenForConditionalGeneration.

    In bf16 the language model and the text encoder are bfloat16; the codec stays float32.
    """

    def __init__(self, model: nn.Module, scheme: str):
        if scheme == "bf16":
            for part in (model.text_encoder, model.enc_to_dec_proj, model.decoder):
                part.to(torch.bfloat16)
        self.step_bytes = float_bytes(model, model.decoder.dtype)
        self._model, self._watched = model, Watched()
        self._watched.count_steps(model.decoder)
        model.text_encoder.forward = self._watched.timed("text", model.text_encoder.forward)
        self._decode = model.audio_encoder.decode
        model.audio_encoder.decode = self._watched.timed("codec", self._seen)
        self._inputs = dict(FixedPrompt()([EXAMPLE]))
        self._codes: Tensor | None = None

    def _seen(self, codes: Tensor, **options):
        self._codes = codes[0]
        return self._decode(codes, **options)

    def _generate(self, steps: int, **draw) -> Tensor:
        return self._model.generate(**self._inputs, **draw, guidance_scale=CFG, max_new_tokens=steps)

    def play(self, seconds: float, seed: int, on_step: OnStep) -> tuple[Timing, float]:
        """As `Ours.play`; all of the sound comes at the end."""
        torch.manual_seed(seed)
        steps, draw = steps_in(seconds), {"do_sample": True, "top_k": TOP_K}
        timing, sound = self._watched.time(lambda: self._generate(steps, **draw), on_step)
        return timing, sound.shape[-1] / self._model.config.audio_encoder.sampling_rate

    def greedy(self, count: int) -> Tensor:
        """As `Ours.greedy`."""
        self._generate(count + CODEBOOKS - 1, do_sample=False)
        return self._codes[0]
