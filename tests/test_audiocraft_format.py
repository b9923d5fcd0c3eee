"""AudioCraft checkpoints without AudioCraft: the model that transformers would load, and a sentence for each fault."""

import shutil
from pathlib import Path

import pytest
import torch

from tinymusician_core import ModelError, SamplingSpec, load
from tinymusician_core.audiocraft_format import Settings, text_place

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
PROMPT = "a calm piano waltz in g major"


@pytest.fixture
def folder(tiny_audiocraft, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_audiocraft, tmp_path / "mine"))


def change(path: Path, edit) -> None:
    package = torch.load(path, weights_only=True)
    edit(package)
    torch.save(package, path)


def set_text(path: Path, old: str, new: str) -> None:
    def edit(package):
        assert old in package["xp.cfg"]
        package["xp.cfg"] = package["xp.cfg"].replace(old, new)

    change(path, edit)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_it_is_the_model_that_it_is_in_transformers_format(tiny_audiocraft, tiny_musicgen):
    ours, theirs = load(tiny_audiocraft), load(tiny_musicgen)
    assert ours.decoder.config == theirs.decoder.config
    for name, weight in theirs.decoder.named_parameters():
        torch.testing.assert_close(ours.decoder.get_parameter(name), weight.half().float(), rtol=0, atol=0)
    tokens = torch.randint(0, 65, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    found, wanted = (model.decoder.logits(tokens, *model.text_encoder.encode([PROMPT])) for model in (ours, theirs))
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    codes = torch.randint(0, 64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.codec.decode(codes), theirs.codec.decode(codes))


def test_name_window_files_and_hash_are_its_own(tiny_audiocraft, folder):
    model = load(tiny_audiocraft)
    assert (model.name, model.window_s) == ("tiny-audiocraft", 12.0)
    read = {file.relative_to(tiny_audiocraft).as_posix() for file in model.files}
    assert read >= {LM, CODEC, "t5/config.json", "t5/model.safetensors", "t5/tokenizer.json"}
    assert load(folder).hash == model.hash
    change(folder / LM, lambda package: package["best_state"]["emb.0.weight"].mul_(1.01))
    assert load(folder).hash != model.hash
    assert model.generate(PROMPT, SamplingSpec(seconds=0.5)).audio.shape == (1, 16000)


def test_weights_stored_in_float32_and_by_older_torch_load_too(folder, tiny_audiocraft):
    package = torch.load(folder / LM, weights_only=True)
    package["best_state"] = {name: tensor.float() for name, tensor in package["best_state"].items()}
    torch.save(package, folder / LM, _use_new_zipfile_serialization=False)
    expected = dict(load(tiny_audiocraft).decoder.named_parameters())
    assert all(torch.equal(weight, expected[name]) for name, weight in load(folder).decoder.named_parameters())


def test_it_can_be_quantized(folder, tmp_path):
    from tinymusician_core.quant.apply import quantize

    quantize(folder, "int8", tmp_path / "small")
    small = load(tmp_path / "small")
    assert small.window_s == 12.0
    assert str(tmp_path) not in (tmp_path / "small" / "config.json").read_text()
    assert small.generate(PROMPT, SamplingSpec(seconds=0.5)).audio.shape == (1, 16000)


def test_a_codec_that_is_only_named_is_read_from_beside_it(folder, tiny_musicgen, tiny_audiocraft):
    from transformers import MusicgenForConditionalGeneration

    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, folder / CODEC)
    whole = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen)
    whole.audio_encoder.save_pretrained(folder / "encodec")
    codes = torch.randint(0, 64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(load(folder).codec.decode(codes), load(tiny_audiocraft).codec.decode(codes))
    torch.save({"pretrained": "dac_44khz", "exported": True}, folder / CODEC)
    assert "names the codec dac_44khz, and only EnCodec is supported" in refusal(folder)


def test_codebooks_that_the_language_model_does_not_use_are_left_out(folder, tiny_audiocraft):
    def edit(package):
        for name, tensor in [*package["best_state"].items()]:
            if name.startswith("quantizer.vq.layers.3."):
                package["best_state"][name.replace(".3.", ".4.", 1)] = tensor + 1

    change(folder / CODEC, edit)
    set_text(folder / CODEC, "n_q: 4", "n_q: 5")
    codes = torch.randint(0, 64, (1, 4, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(load(folder).codec.decode(codes), load(tiny_audiocraft).codec.decode(codes))
    set_text(folder / CODEC, "n_q: 5", "n_q: 3")
    assert "has 3 codebooks, and its language model needs 4" in refusal(folder)


@pytest.mark.parametrize("name", ["T5", "EnCodec"])
def test_what_the_hub_would_have_to_give_is_named_with_the_way_out(folder, monkeypatch, name):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def unreachable(repo_id, **_):
        asked.append(repo_id)
        raise LocalEntryNotFoundError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    if name == "T5":
        shutil.rmtree(folder / "t5")
        wanted, place = "google-t5/t5-base", folder / "t5"
    else:
        torch.save({"pretrained": "facebook/encodec_32khz"}, folder / CODEC)
        wanted, place = "facebook/encodec_32khz", folder / "encodec"
    said = refusal(folder)
    assert set(asked) == {wanted}
    assert f"{wanted} is no folder here and could not be had from the hub" in said
    assert said.endswith(f"into {place}")


def test_an_earlier_download_of_the_text_encoder_is_used(folder, tiny_audiocraft, monkeypatch):
    import huggingface_hub

    shutil.move(folder / "t5", folder.parent / "cache")

    def offline(repo_id, local_files_only=False, **_):
        assert local_files_only, "the network was asked for"
        return str(folder.parent / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert load(folder).hash == load(tiny_audiocraft).hash


def test_a_hub_repository_of_audiocraft_alone_is_downloaded(tiny_audiocraft, monkeypatch, tmp_path):
    import huggingface_hub

    def download(repo_id, allow_patterns, local_files_only=False, **_):
        return str(tiny_audiocraft if "state_dict.bin" in allow_patterns else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("someone/audiocraft-only").decoder.config.layers == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (LM, "transformer_lm\ncodebooks", "transformer_lm_magnet\ncodebooks", "lm_model 'transformer_lm_magnet'"),
        (LM, "modeling: delay", "modeling: parallel", "has the codebook pattern 'parallel'"),
        (LM, "modeling: delay", "modeling: null", "has the codebook pattern None"),
        (LM, "[0, 1, 2, 3]", "[0, 1, 1, 1]", r"codebook delays [0, 1, 1, 1], and only [0, 1, 2, 3] are supported"),
        (LM, "norm_first: true", "norm_first: false", "norm_first False, and only True is supported"),
        (LM, "positional_embedding: sin", "positional_embedding: rope", "positional_embedding 'rope'"),
        (LM, "qk_layer_norm: false", "qk_layer_norm: true", "qk_layer_norm True"),
        (LM, "activation: gelu", "activation: selu", "activation must be one of"),
        (LM, "normalize_text: false", "normalize_text: true", "normalize_text True"),
        (LM, "model: t5,", "model: clap,", "conditioners.description.model 'clap'"),
        (LM, "conditioners:\n", "conditioners:\n  genre: {model: lut}\n", "is conditioned on genre"),
        (LM, "sum: []", "sum: [genre]", "is conditioned on description by cross, genre by sum; a description by"),
        (LM, "cross: [description]", "cross: []", "is conditioned on nothing"),
        (LM, "num_layers: 3", "num_layers: 4", "weights lack decoder.model.decoder.layers.3."),
        (LM, "num_layers: 3", "num_layers: 2", "weights that this model has no place for"),
        (LM, "dim: 32", "dim: [32]", "state_dict.bin cannot be loaded: "),
        (LM, "cross: [description]", "cross: null", "state_dict.bin cannot be loaded: "),
        (CODEC, "ratios: [8, 5, 4, 4]", "ratios: eight", "compression_state_dict.bin cannot be loaded: "),
        (LM, "num_heads: 4, ", "", "lack transformer_lm.num_heads"),
        (LM, "segment_duration: 12", "segment_duration: 0", "window_s of 0"),
        (LM, "card: 64", "card: '${codebooks}'", "lack transformer_lm.card"),
        (LM, "card: 64", "card: '${transformer_lm.card}'", "refer to one another in a circle"),
        (LM, "lm_model:", "lm_model: [", "the settings in"),
        (CODEC, "compression_model: encodec", "compression_model: dac", "compression_model 'dac'"),
        (CODEC, "norm: weight_norm", "norm: time_group_norm", "seanet.norm 'time_group_norm'"),
        (CODEC, "lstm: 1", "lstm: 0", "has no LSTM in its codec"),
        (CODEC, "dimension: 8", "dimension: 16", "does not hold the codec that its settings describe: size mismatch"),
        (CODEC, "lstm: 1", "lstm: 2", "does not hold the codec that its settings describe: Missing key"),
        (CODEC, "bins: 64", "bins: 32", "does not hold the codec that its settings describe"),
    ],
)
def test_what_is_not_supported_is_named(folder, file, old, new, said):
    set_text(folder / file, old, new)
    assert said in refusal(folder)


def test_weights_that_have_no_place_or_are_missing_are_named(folder):
    change(folder / LM, lambda p: p["best_state"].update({"transformer.layers.0.linear1.bias": torch.zeros(48)}))
    assert "holds 1 weights that this model has no place for" in refusal(folder)
    change(folder / LM, lambda p: p["best_state"].pop("transformer.layers.0.linear1.bias"))
    change(folder / LM, lambda p: p["best_state"].pop("linears.2.weight"))
    assert "the decoder's weights lack decoder.lm_heads.2.weight" in refusal(folder)


@pytest.mark.parametrize("name", [LM, CODEC])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_files_that_were_cut_short_are_one_sentence(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    assert name in refusal(folder)
    assert "damaged" in refusal(folder)


def test_no_code_in_a_checkpoint_is_run(folder):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (folder / "sprung",))

    torch.save({"best_state": Trap(), "xp.cfg": ""}, folder / LM)
    assert "is damaged, or no plain checkpoint" in refusal(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ([1, 2], "is no AudioCraft checkpoint: it holds a list"),
        ({"best_state": {"emb.0.weight": torch.zeros(2, 2)}}, "holds no settings"),
        ({"best_state": {"model": {}}, "xp.cfg": "a: 1"}, "holds no weights"),
        ({"xp.cfg": "a: 1"}, "holds no weights"),
        ({"best_state": {}, "xp.cfg": "a: 1"}, "the settings in"),
    ],
)
def test_other_files_of_that_name_are_refused(folder, package, said):
    torch.save(package, folder / LM)
    assert said in refusal(folder)


def test_a_missing_codec_is_named(folder):
    (folder / CODEC).unlink()
    assert refusal(folder).endswith(f"{CODEC} is missing")


def test_transformers_files_beside_it_are_preferred(folder, tiny_musicgen):
    for file in tiny_musicgen.iterdir():
        shutil.copy(file, folder)
    assert {file.name for file in load(folder).files} >= {"config.json", "model.safetensors"}
    assert LM not in {file.name for file in load(folder).files}


def test_the_oldest_checkpoints_name_their_pattern_elsewhere(folder):
    set_text(folder / LM, "modeling: delay", "modeling: null")
    set_text(folder / LM, "n_q: 4,", "n_q: 4, q_modeling: delay,")
    assert load(folder).decoder.config.delays == (0, 1, 2, 3)


MELODY = """
sample_rate: 32000
fuser: {sum: [], prepend: [self_wav, description], cross: [], input_interpolate: []}
conditioners:
  args: {drop_desc_p: 0.5}
  self_wav:
    model: chroma_stem
    chroma_stem: {sample_rate: "${sample_rate}", n_chroma: 12, radix2_exp: 14, argmax: true, cache_path: null}
  description: {model: t5}
dataset: {segment_duration: 30}
"""


def test_a_melody_checkpoint_has_room_for_its_melody_and_then_the_text():
    path = Path(LM)
    assert text_place(Settings(MELODY, path)) == ("prepend", 235)  # what transformers calls chroma_length
    assert text_place(Settings(MELODY.replace("duration: 30", "duration: 0.1"), path)) == ("prepend", 5)
    with pytest.raises(ModelError, match="argmax False, and only True is supported"):
        text_place(Settings(MELODY.replace("argmax: true", "argmax: false"), path))
    with pytest.raises(ModelError, match="conditioned on description by cross, self_wav by prepend"):
        text_place(
            Settings(MELODY.replace("self_wav, description], cross: []", "self_wav], cross: [description]"), path)
        )
    with pytest.raises(ModelError, match="conditioned on self_wav, unused"):
        text_place(
            Settings(MELODY.replace("prepend: [self_wav, description], cross: []", "cross: [description]"), path)
        )
