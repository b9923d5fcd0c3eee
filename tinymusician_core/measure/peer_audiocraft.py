"""AudioCraft's own MusicGen around the weights of a transformers model, for `peers`."""

from __future__ import annotations

import torch
from audiocraft.models import MusicGen
from audiocraft.models.encodec import EncodecModel
from audiocraft.models.lm import LMModel
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, T5Conditioner, TextConditioner
from audiocraft.modules.seanet import SEANetDecoder, SEANetEncoder
from audiocraft.quantization import ResidualVectorQuantizer
from audiocraft.utils.autocast import TorchAutocast
from torch import Tensor, nn

from ..audiocraft_codec import transformers_name
from ..audiocraft_format import rename
from ..records import Timing
from ..text import EXAMPLE
from .peer_models import CFG, TOP_K, FixedPrompt, OnStep, Watched, float_bytes

# How MusicGen's checkpoints set up the language model and the codec (the settings in their state_dict.bin).
_LM = {"activation": "gelu", "norm_first": True, "bias_ff": False, "bias_attn": False, "bias_proj": False}
_LM |= {"dropout": 0.0, "causal": True, "memory_efficient": True, "cross_attention": True}
_SEANET = {"n_residual_layers": 1, "norm": "weight_norm", "true_skip": True, "lstm": 2}


class Text(T5Conditioner):
    """AudioCraft's text conditioner around a T5 that is here already, where it would ask the hub."""

    def __init__(self, t5: nn.Module, width: int):
        TextConditioner.__init__(self, t5.config.d_model, width)
        self.device, self.finetune = "cpu", False
        self.word_dropout, self.normalize_text = 0.0, False
        self.autocast = TorchAutocast(enabled=False)
        self.t5_tokenizer = FixedPrompt()
        self.__dict__["t5"] = t5


class AudioCraft:
    """AudioCraft's MusicGen, its language model and its codec, with the weights of a transformers model in float32."""

    def __init__(self, model: nn.Module, scheme: str):
        if scheme != "fp32":
            raise ValueError(f"AudioCraft is measured in fp32 alone, got {scheme!r}")
        self.step_bytes = float_bytes(model, torch.float32)
        state = model.state_dict()
        lm, codec = _lm(model), _codec(model.audio_encoder.config)
        _fill(rename(lm.state_dict()), state)
        _fill({_name(name): tensor for name, tensor in codec.state_dict().items()}, model.audio_encoder.state_dict())
        self._music = MusicGen("peer", codec, lm, max_duration=30)
        self._watched = Watched()
        self._watched.count_steps(lm)
        text = lm.condition_provider.conditioners["description"]
        text.t5.forward = self._watched.timed("text", text.t5.forward)
        codec.decode = self._watched.timed("codec", codec.decode)

    def play(self, seconds: float, seed: int, on_step: OnStep) -> tuple[Timing, float]:
        """As `Ours.play`; all of the sound comes at the end."""
        torch.manual_seed(seed)
        self._music.set_generation_params(duration=seconds, top_k=TOP_K, cfg_coef=CFG)
        timing, sound = self._watched.time(lambda: self._music.generate([EXAMPLE]), on_step)
        return timing, sound.shape[-1] / self._music.sample_rate

    def greedy(self, count: int) -> Tensor:
        """As `Ours.greedy`."""
        attributes, _ = self._music._prepare_tokens_and_attributes([EXAMPLE], None)
        return self._music.lm.generate(None, attributes, max_gen_len=count, use_sampling=False, cfg_coef=CFG)[0]


def _lm(model: nn.Module) -> LMModel:
    config = model.config.decoder
    return LMModel(
        DelayedPatternProvider(config.num_codebooks, delays=list(range(config.num_codebooks))),
        ConditioningProvider({"description": Text(model.text_encoder, config.hidden_size)}),
        ConditionFuser({"cross": ["description"], "prepend": [], "sum": [], "input_interpolate": []}),
        n_q=config.num_codebooks,
        card=config.vocab_size,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        hidden_scale=config.ffn_dim // config.hidden_size,
        cfg_coef=CFG,
        **_LM,
    )


def _codec(config) -> EncodecModel:
    sizes = {"dimension": config.hidden_size, "n_filters": config.num_filters, "ratios": config.upsampling_ratios}
    options = {**sizes, "pad_mode": config.pad_mode, **_SEANET}
    quantizer = ResidualVectorQuantizer(
        config.hidden_size, n_q=config.num_quantizers, bins=config.codebook_size, kmeans_init=False
    )
    encoder, decoder = SEANetEncoder(**options), SEANetDecoder(**options)
    return EncodecModel(encoder, decoder, quantizer, config.frame_rate, config.sampling_rate, channels=1)


def _name(name: str) -> str:
    """transformers' name of a codec weight; it splits normalised weights in another way than AudioCraft."""
    halves = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    rest, _, last = transformers_name(name).rpartition(".")
    return f"{rest}.{halves.get(last, last)}"


@torch.no_grad()
def _fill(theirs: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Give the tensors of one program, already under transformers' names, the values that they have there."""
    for name, tensor in theirs.items():
        tensor.copy_(state[name])
