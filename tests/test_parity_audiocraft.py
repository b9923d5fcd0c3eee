"""Our engine and our reading of checkpoints against AudioCraft itself, on random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer, scramble
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tinymusician_core import SamplingSpec, load
from tinymusician_core.engine import frames

audiocraft = pytest.importorskip("audiocraft", reason="needs AudioCraft: python launch.py test --with audiocraft")

from audiocraft.models import MusicGen, builders  # noqa: E402
from audiocraft.modules import conditioners  # noqa: E402
from audiocraft.utils import export  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]

FRAMES = 12
PROMPT = "a calm piano waltz in g major"
T5_NAME = "t5-small"  # AudioCraft knows its width: 512
LM = """
device: cpu
dtype: float32
channels: {channels}
sample_rate: 32000
lm_model: transformer_lm
interleave_stereo_codebooks:
  use: {stereo}
  per_timestep: false
codebooks_pattern:
  modeling: delay
  delay: {{delays: {delays}, flatten_first: 0, empty_initial: 0}}
  unroll: {{flattening: [0, 1, 2, 3], delays: [0, 0, 0, 0]}}
transformer_lm:
  dim: 32
  num_heads: 4
  num_layers: 3
  hidden_scale: 4
  n_q: {codebooks}
  card: 64
  dropout: 0.0
  emb_lr: null
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  past_context: null
  causal: true
  custom: {custom}
  memory_efficient: false
  attention_as_float32: false
  layer_scale: null
  positional_embedding: sin
  xpos: false
  checkpointing: none
  weight_init: gaussian
  depthwise_init: current
  zero_bias_init: true
  norm: layer_norm
  cross_attention: false
  qk_layer_norm: false
  qk_layer_norm_cross: false
  attention_dropout: null
  kv_repeat: 1
  two_step_cfg: false
classifier_free_guidance: {{training_dropout: 0.3, inference_coef: 3.0}}
attribute_dropout: {{}}
fuser:
  cross_attention_pos_emb: false
  cross_attention_pos_emb_scale: 1
  sum: []
  prepend: {prepend}
  cross: {cross}
  input_interpolate: []
conditioners: {melody}
  description:
    model: t5
    t5: {{name: t5-small, finetune: false, word_dropout: 0.3, normalize_text: false}}
dataset:
  segment_duration: 30
"""
MELODY = """
  self_wav:
    model: chroma_stem
    chroma_stem:
      {sample_rate: "${sample_rate}", n_chroma: 12, radix2_exp: 14, argmax: true, match_len_on_eval: false,
       eval_wavs: null, n_eval_wavs: 100, cache_path: null}"""
CODEC = """
device: cpu
sample_rate: 32000
channels: 1
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: CAUSAL
  renormalize: false
seanet:
  dimension: 8
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 2
  n_residual_layers: 1
  ratios: [8, 5, 4, 4]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: PAD_MODE
  true_skip: TRUE_SKIP
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
  encoder: {}
rvq:
  n_q: 4
  q_dropout: false
  bins: 64
  decay: 0.99
  kmeans_init: false
  kmeans_iters: 50
  threshold_ema_dead_code: 2
  orthogonal_reg_weight: 0.0
  orthogonal_reg_active_codes_only: false
"""


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    """A tiny T5 of the width that AudioCraft expects of t5-small, in transformers format."""
    folder = tmp_path_factory.mktemp("t5") / "t5"
    sizes = {"d_model": 512, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(make_tokenizer()), pad_token_id=0, eos_token_id=1, **sizes)
    scramble(T5EncoderModel(config), seed=21).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


class T5Here:
    """Stands for transformers' classes where AudioCraft would ask the hub."""

    def __init__(self, make):
        self._make = make

    def from_pretrained(self, name):
        assert name == T5_NAME
        return self._make()


@pytest.fixture(scope="module")
def their_t5(t5):
    """AudioCraft finds our tiny T5 where it asks the hub for t5-small."""
    names = ["input_ids", "attention_mask"]
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = T5Here(lambda: PreTrainedTokenizerFast.from_pretrained(t5, model_input_names=names))
        patch.setattr(conditioners, "T5Tokenizer", tokenizer)
        patch.setattr(conditioners, "T5EncoderModel", T5Here(lambda: T5EncoderModel.from_pretrained(t5)))
        yield


class NoStems(torch.nn.Module):
    """Demucs, which AudioCraft loads from the hub with a melody model and asks nothing where no melody is given."""

    sources = ("drums", "bass", "other", "vocals")


@pytest.fixture(scope="module")
def no_demucs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demucs.pretrained.get_model", lambda name: NoStems())
        yield


@contextmanager
def own_pickles() -> Iterator[None]:
    """AudioCraft's export reads training checkpoints, which hold OmegaConf objects, the way torch did before 2.6."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        yield


def export_codec(folder: Path, causal=False, pad_mode="constant", true_skip=True):
    """A random codec, written by AudioCraft's own export."""
    text = CODEC.replace("CAUSAL", str(causal).lower()).replace("TRUE_SKIP", str(true_skip).lower())
    cfg = OmegaConf.create(text.replace("PAD_MODE", pad_mode))
    model = scramble(builders.get_compression_model(cfg), seed=31)
    generator = torch.Generator().manual_seed(32)
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.copy_(torch.randn(layer._codebook.embed.shape, generator=generator))
    torch.save({"best_state": {"model": model.state_dict()}, "xp.cfg": cfg}, folder / "codec.th")
    with own_pickles():
        export.export_encodec(folder / "codec.th", folder / "compression_state_dict.bin")
    return model.eval()


def export_lm(folder: Path, stereo=False, custom=True, melody=False):
    """A random language model, written by AudioCraft's own export."""
    values = {
        "channels": 2 if stereo else 1,
        "stereo": str(stereo).lower(),
        "delays": [0, 0, 1, 1, 2, 2, 3, 3] if stereo else [0, 1, 2, 3],
        "codebooks": 8 if stereo else 4,
        "custom": str(custom).lower(),
        "prepend": "[self_wav, description]" if melody else "[]",
        "cross": "[]" if melody else "[description]",
        "melody": MELODY if melody else "",
    }
    cfg = OmegaConf.create(LM.format(**values))
    model = scramble(builders.get_lm_model(cfg), seed=41)
    with torch.no_grad():
        for table in model.emb:
            table.weight.mul_(8)  # so that the last tokens decide, and the greedy ones vary
    torch.save({"fsdp_best_state": {}, "best_state": {"model": model.state_dict()}, "xp.cfg": cfg}, folder / "lm.th")
    with own_pickles():
        export.export_lm(folder / "lm.th", folder / "state_dict.bin")


@pytest.fixture(
    scope="module",
    params=[(False, True, False), (True, True, False), (False, False, False), (False, True, True), (True, True, True)],
    ids=["mono", "stereo", "mono with torch's attention", "melody", "stereo melody"],
)
def pair(request, t5, their_t5, no_demucs, tmp_path_factory):
    """AudioCraft's MusicGen and our pipeline, from the same folder."""
    stereo, custom, melody = request.param
    folder = tmp_path_factory.mktemp("audiocraft") / "tiny"
    folder.mkdir()
    (folder / "t5").symlink_to(t5)
    export_codec(folder)
    export_lm(folder, stereo, custom, melody)
    return MusicGen.get_pretrained(str(folder), device="cpu"), load(folder)


def their_conditions(theirs, prompts):
    """What AudioCraft makes of prompts: the conditions of its LMModel, with the unconditional half for guidance."""
    attributes, _ = theirs._prepare_tokens_and_attributes(prompts, None)
    empty = conditioners.ClassifierFreeGuidanceDropout(p=1.0)(attributes)
    return theirs.lm.condition_provider(theirs.lm.condition_provider.tokenize(attributes + empty))


def test_a_folder_that_audiocraft_exported_loads(pair):
    theirs, ours = pair
    channels = theirs.compression_model.channels
    assert ours.name == "tiny"
    assert (ours.sample_rate_hz, ours.frame_rate_hz, ours.window_s) == (32000, 50.0, 30.0)
    assert ours.codec.channels == channels
    assert ours.decoder.config.delays == tuple(theirs.lm.pattern_provider.delays)
    names = {"state_dict.bin", "compression_state_dict.bin", "config.json", "model.safetensors", "tokenizer.json"}
    assert {file.name for file in ours.files} >= names
    assert ours.generate(PROMPT, SamplingSpec(seconds=0.5)).audio.shape == (channels, 16000)


def test_text_states_and_logits_are_those_of_audiocraft(pair):
    theirs, ours = pair
    config = ours.decoder.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.entries + 1, (2, config.codebooks, 9), generator=generator)
    with torch.inference_mode():
        conditions = their_conditions(theirs, [PROMPT])
        expected = theirs.lm(tokens, conditions=[], condition_tensors=conditions)
        states, mask = ours.text_encoder.encode([PROMPT])
        states, mask = (torch.cat([x, torch.zeros_like(x)]) for x in (states, mask))
        cache = ours.decoder.prepare(states, mask, 9)
        stepped = torch.stack([ours.decoder.step(tokens[:, :, t], cache) for t in range(9)], dim=2)
        whole = ours.decoder.logits(tokens, states, mask)
    torch.testing.assert_close(states, conditions["description"][0], atol=1e-4, rtol=0)
    assert states.std() > 0.1, "states that are all alike prove nothing"
    assert expected.std() > 0.1, "logits that are all alike prove nothing"
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_greedy_tokens_and_sound_are_those_of_audiocraft(pair, cfg):
    theirs, ours = pair
    attributes, _ = theirs._prepare_tokens_and_attributes([PROMPT], None)
    # Guidance of 1 is the conditional half alone, which AudioCraft computes all the same.
    expected = theirs.lm.generate(None, attributes, max_gen_len=FRAMES, use_sampling=False, cfg_coef=cfg)
    states, mask = ours.text_encoder.encode([PROMPT])
    made = torch.stack(list(frames(ours.decoder, states, mask, SamplingSpec(cfg=cfg, greedy=True), FRAMES)), dim=2)
    assert torch.equal(made, expected)
    assert len(made.unique()) > 8, "a model that repeats one token proves nothing"
    sound = theirs.generate_audio(expected)
    torch.testing.assert_close(ours.codec.decode(made), sound, atol=1e-4, rtol=0)
    assert sound.abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{}, {"pad_mode": "reflect", "true_skip": False}, {"causal": True, "pad_mode": "reflect"}],
    ids=["as in MusicGen", "reflect and a convolved shortcut", "causal"],
)
def test_the_codec_is_that_of_audiocraft_both_ways(options, t5, their_t5, tmp_path):
    (tmp_path / "t5").symlink_to(t5)
    theirs = export_codec(tmp_path, **options)
    export_lm(tmp_path)
    ours = load(tmp_path).codec
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 64, (2, 4, 31), generator=generator)
    sound = torch.randn(2, 1, 640 * 9 + 100, generator=generator) * 0.3
    with torch.inference_mode():
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-4, rtol=0)
        expected, scale = theirs.encode(sound)
        assert scale is None
        assert torch.equal(ours.encode(sound), expected)


def test_a_sound_is_encoded_as_in_audiocraft_left_and_right_alternating(pair):
    theirs, ours = pair
    generator = torch.Generator().manual_seed(6)
    sound = torch.randn(1, ours.codec.channels, 6400, generator=generator) * 0.3
    with torch.inference_mode():
        expected, _ = theirs.compression_model.encode(sound)
    assert torch.equal(ours.codec.encode(sound), expected)
    if ours.codec.channels == 2:
        left = ours.codec.encode(sound[:, :1].expand(-1, 2, -1))
        assert torch.equal(expected[:, 0::2], left[:, 0::2])
        assert torch.equal(left[:, 0::2], left[:, 1::2])
